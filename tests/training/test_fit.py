import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.errors import TrainingError
from bitalloc.placement import to_device
from bitalloc.training import CheckpointConfig, Engine, Progress, Schedule, WarmupCosine, backward, cross_entropy_loss, fit, loss_step, sgd


def linear(value=1.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def mean_output(model, batch):
    """Its gradient with respect to the weight is the mean input."""
    return model(batch).mean()


def train(model, loader, **options):
    options = {"step": loss_step(mean_output), "optimizer": sgd(model, 0.5, momentum=0.0), "total_steps": 1} | options
    return fit(model, loader, **options)


def test_closed_form_of_three_steps_over_two_epochs():
    model = linear()
    result = train(model, [torch.full((2, 1), 1.0), torch.full((3, 1), 2.0)], total_steps=3)
    # w: 1 -> 1 - 0.5 * 1 -> 0.5 - 0.5 * 2 -> -0.5 - 0.5 * 1; the loss is w * x
    assert model.weight.item() == -1.0
    assert result.losses == (1.0, 1.0, -0.5)
    assert (result.steps, result.images) == (3, 7)
    assert result.seconds > 0


def test_gradients_of_several_passes_add_up_and_start_empty():
    def three_passes(model, batch):
        assert model.weight.grad is None
        for _ in range(3):
            backward(mean_output(model, batch))
        return 0.0

    model = linear()
    train(model, [torch.ones(1, 1)], step=three_passes, total_steps=2)
    assert model.weight.item() == 1 - 2 * 0.5 * 3


def test_clipping():
    batch = torch.full((1, 1), 8.0)
    by_value, by_norm, small = linear(), linear(), linear()
    train(by_value, [batch], clip_value=1.0)
    assert by_value.weight.item() == 1 - 0.5 * 1
    train(by_norm, [batch], clip_norm=2.0)
    assert by_norm.weight.item() == pytest.approx(1 - 0.5 * 2, abs=1e-6)
    train(small, [torch.full((1, 1), 0.5)], clip_value=1.0, clip_norm=2.0)
    assert small.weight.item() == 1 - 0.5 * 0.5


def test_schedule_is_applied_from_the_first_step():
    model = linear(0.0)
    schedule = WarmupCosine(0.5, total_steps=4, warmup_steps=2)
    train(model, [torch.ones(1, 1)], total_steps=4, schedule=schedule)
    rates = [0.25, 0.5, 0.5, 0.25]
    assert model.weight.item() == pytest.approx(-sum(rates))


def test_training_mode_inside_and_modes_put_back():
    seen = []

    def step(model, batch):
        seen.append([module.training for module in model.modules()])
        return loss_step(mean_output)(model, batch)

    model = nn.Sequential(linear(), nn.Dropout(0.1))
    model[1].eval()
    train(model, [torch.ones(1, 1)], step=step)
    assert seen == [[True, True, True]]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_learns_a_separable_problem():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 2, generator=generator)
    labels = (inputs[:, 0] > inputs[:, 1]).long()
    model = nn.Linear(2, 2)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True)
    result = fit(model, loader, step=loss_step(cross_entropy_loss(0.0)), optimizer=sgd(model, 0.5), total_steps=40)
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.95
    assert result.losses[-1] < result.losses[0]


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.ones(3, 1)), batch_size=4, drop_last=True)])
def test_empty_loader(loader):
    with pytest.raises(TrainingError, match="the loader is empty"):
        train(linear(), loader)


def test_loader_that_can_be_read_only_once():
    with pytest.raises(TrainingError, match=r"epoch 2.*only once"):
        train(linear(), iter([torch.ones(1, 1)]), total_steps=2)


def test_epochs_are_announced():
    class Loader(list):
        def __init__(self):
            super().__init__([torch.ones(1, 1)] * 2)
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    loader = Loader()
    train(linear(), loader, total_steps=5)
    assert loader.epochs == [0, 1, 2]


def test_nan_loss_names_step_and_gradients_and_leaves_the_weights():
    model = nn.Sequential(linear(), linear())
    with pytest.raises(TrainingError, match=r"the loss is nan at step 2 \(.*; gradients not finite: 0.weight, 1.weight\)"):
        train(model, [torch.ones(1, 1), torch.full((1, 1), math.nan)], total_steps=3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_nan_loss_names_the_parameter_that_is_not_finite():
    model = nn.Sequential(linear(), linear(math.inf))
    with pytest.raises(TrainingError, match=r"parameters not finite: 1\.weight"):
        train(model, [torch.ones(1, 1)])


def test_long_lists_of_names_are_cut():
    model = nn.Sequential(*(linear(math.nan) for _ in range(5)))
    with pytest.raises(TrainingError, match=r"parameters not finite: 0\.weight, 1\.weight, 2\.weight and 2 more"):
        train(model, [torch.ones(1, 1)])


@pytest.mark.parametrize("saving", [True, False])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, saving):
    """Loss and gradients of the second step are finite, its update is not."""

    class Growing(Schedule):
        def factor(self, step):
            return 1e30**step

    path = tmp_path / "last"
    config = CheckpointConfig(path, "", steps=1) if saving else None
    batches = [torch.ones(1, 1), torch.full((1, 1), 1e20)]
    with pytest.raises(TrainingError, match=r"not finite after step 2: weight"):
        train(linear(), batches, schedule=Growing(), engine=Engine(loss_limit=0), total_steps=2, checkpoint=config)
    assert [item.name for item in tmp_path.iterdir()] == (["last"] if saving else [])


def test_nan_in_running_statistics_is_noticed_and_infinite_masks_are_not():
    model = linear()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    train(model, [torch.ones(1, 1)])
    model.register_buffer("running_mean", torch.tensor([math.nan]))
    with pytest.raises(TrainingError, match="not finite after step 1: running_mean"):
        train(model, [torch.ones(1, 1)])


def test_step_without_gradients():
    with pytest.raises(TrainingError, match="no parameter got a gradient in step 1"):
        train(linear(), [torch.ones(1, 1)], step=lambda model, batch: 0.0)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (lambda model, batch: 1.0, "a float"),
        (lambda model, batch: model(batch), r"shape \(2, 1\)"),
        (lambda model, batch: batch.sum(), "without gradient"),
    ],
)
def test_loss_function_that_gives_no_loss(loss_fn, words):
    with pytest.raises(TrainingError, match=words):
        train(linear(), [torch.ones(2, 1)], step=loss_step(loss_fn))


@pytest.mark.parametrize("option", ["total_steps", "clip_value", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_bad_arguments_are_named(option, value):
    with pytest.raises(TrainingError, match=f"{option} is"):
        train(linear(), [torch.ones(1, 1)], **{option: value})


def test_progress_sees_every_step_and_the_end_of_a_failed_run():
    calls = []

    class Recorder(Progress):
        def start(self, name, total, completed=0):
            calls.append((name, total, completed))

        def advance(self, n=1, **metrics):
            calls.append((n, metrics["loss"], metrics["rate"]))

        def finish(self):
            calls.append("end")

    with pytest.raises(TrainingError):
        train(linear(), [torch.ones(1, 1), torch.full((1, 1), math.nan)], total_steps=2, progress=Recorder(), name="joint")
    assert calls == [("joint", 2, 0), (1, 1.0, 0.5), "end"]


def test_batches_of_any_shape_are_moved():
    from collections import namedtuple

    pair = namedtuple("pair", "image label")
    batch = {"a": [torch.ones(1), "text"], "b": (pair(torch.ones(2), 3), None)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"][0].image.device.type == "meta"
    assert isinstance(moved["b"][0], pair)
    assert (moved["a"][1], moved["b"][0].label, moved["b"][1]) == ("text", 3, None)
