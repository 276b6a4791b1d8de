"""A training that diverges stops with the step, the layer and the parameter named."""

import math

import pytest
import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training import CheckpointConfig, DivergenceError, Engine, cross_entropy_loss, fit, loss_step, sgd
from bitalloc.training.guards import gradient_problem, loss_problem


def losses_of(*losses):
    """A step whose loss is the next of ``losses``; it leaves a gradient of one."""
    left = list(losses)

    def step(model, batch):
        model.weight.grad = torch.ones_like(model.weight)
        return left.pop(0)

    return step


def train(model, loader, **options):
    options = {"step": loss_step(lambda model, batch: model(batch).mean()), "optimizer": sgd(model, 0.1), "total_steps": 1} | options
    return fit(model, loader, **options)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(loss):
    with pytest.raises(DivergenceError, match=rf"the loss is {loss} at step 3 \(all parameters and gradients are finite\)") as raised:
        train(nn.Linear(1, 1), [torch.ones(1, 1)], step=losses_of(2.0, 2.0, loss), total_steps=3)
    assert raised.value.step == 3


@pytest.mark.parametrize(
    ("loss", "before", "limit", "problem"),
    [
        (2001.0, [2.0] * 5, 1000, "more than 1000 times 2 "),
        (-2001.0, [2.0, -2.0], 1000, "more than 1000 times 2 "),
        (2000.0, [2.0] * 5, 1000, None),
        (0.5, [1e-6] * 100, 1000, None),  # an unusual image for a network that knows the others by heart
        (1001.0, [1e-6] * 100, 1000, "more than 1000 times 1 "),
        (1e5, [2.0] * 100 + [1e3] * 100, 1000, None),  # compared with the last hundred
        (1e9, [], 1000, None),  # nothing to compare with
        (1e9, [1.0], 0, None),  # turned off
        (31.0, [1.0, 3.0, 1.0], 30, "more than 30 times 1 "),
    ],
)
def test_exploding_losses(loss, before, limit, problem):
    found = loss_problem(loss, before, limit)
    assert found is None if problem is None else problem in found


def test_an_exploding_loss_ends_the_run_at_the_engines_limit():
    options = {"loader": [torch.ones(1, 1)], "total_steps": 3}
    with pytest.raises(DivergenceError, match="the loss exploded to 500.* at step 3"):
        train(nn.Linear(1, 1), step=losses_of(1.0, 1.0, 500.0), engine=Engine(loss_limit=100), **options)
    lenient = train(nn.Linear(1, 1), step=losses_of(1.0, 1.0, 500.0), engine=Engine(loss_limit=1000), **options)
    assert lenient.losses[-1] == 500


@pytest.mark.parametrize("seed", range(3))
def test_no_false_alarm_where_labels_are_noise_and_the_rate_is_high(seed):
    """A training without clipping that learns nothing and hops about."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(10)]
    result = train(model, batches, step=loss_step(cross_entropy_loss()), optimizer=sgd(model, 1.0), total_steps=100)
    assert result.steps == 100


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, bad):
    """The loss is finite; momentum would carry the gradient on."""
    model = nn.Linear(1, 1)

    def step(model, batch):
        loss = loss_step(lambda model, batch: model(batch).mean())(model, batch)
        if batch.sum() > 1:
            model.bias.grad.fill_(bad)
        return loss

    config = CheckpointConfig(tmp_path / "last", "", steps=1)
    with pytest.raises(DivergenceError, match=r"a gradient is not finite at step 2 \(.*gradients not finite: bias\)"):
        train(model, [torch.ones(1, 1), torch.full((1, 1), 2.0)], step=step, total_steps=2, clip_value=1.0, checkpoint=config)
    assert model.weight.isfinite().all()
    assert model.bias.isfinite().all()
    assert [item.name for item in tmp_path.iterdir()] == ["last"]


def test_large_gradients_are_no_problem():
    model = nn.Linear(2, 2)
    assert gradient_problem(model) is None
    model.weight.grad = torch.full((2, 2), 1e30)  # its sum of squares overflows
    assert gradient_problem(model) is None


class Overflow(nn.Module):
    def forward(self, x):
        return x * torch.tensor(1e38) * 10


def test_the_innermost_first_module_is_named_and_hooks_are_gone():
    inner = nn.Sequential(nn.Linear(1, 1), Overflow(), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    with pytest.raises(DivergenceError, match=r"the first output that is not finite is that of layer 0\.1 \(Overflow\)"):
        train(model, [torch.ones(1, 1)])
    assert all(not module._forward_hooks for module in model.modules())


def test_the_layer_of_a_parameter_that_is_not_finite():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"that of layer 1 \(Linear\); parameters not finite: 1\.weight; gradients not finite"):
        train(model, [torch.ones(1, 1)])


def test_the_random_numbers_of_the_failing_step_are_replayed():
    """Only one in ten draws breaks the layer, so a second draw would most likely find nothing."""

    class Fragile(nn.Module):
        def forward(self, x):
            return x / (torch.rand(()) > 0.1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), Fragile())
    with pytest.raises(DivergenceError, match=r"that of layer 1 \(Fragile\)"):
        train(model, [torch.ones(1, 1)], total_steps=200, optimizer=sgd(model, 1e-9))


def test_a_backward_pass_that_breaks_names_the_layer_nearest_to_the_loss():
    """The square root has an infinite slope at 0, times 0 that is NaN."""

    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x * 0).abs().sqrt()

    model = nn.Sequential(nn.Linear(1, 1), Root(1, 1, bias=False), nn.Linear(1, 1))
    pattern = r"a gradient is not finite at step 1 \(the forward pass is finite, the first gradient .* that of layer 1 \(Root\)"
    with pytest.raises(DivergenceError, match=pattern):
        train(model, [torch.ones(1, 1)])


def test_data_that_is_not_finite_is_blamed():
    batch = {"x": [torch.ones(2), (torch.tensor([1.0, math.nan]), 3)]}
    model = nn.Linear(1, 1)

    def step(model, batch):
        return loss_step(lambda model, batch: model(batch["x"][1][0][:, None]).mean())(model, batch)

    with pytest.raises(DivergenceError, match="the batch holds values that are not finite"):
        train(model, [batch], step=step)


def test_what_is_known_of_the_model_is_added():
    with pytest.raises(DivergenceError, match=r"at step 1 \(the screw is loose\)"):
        train(nn.Linear(1, 1), [torch.ones(1, 1)], step=losses_of(math.nan), explain=lambda model: "the screw is loose")
    with pytest.raises(DivergenceError, match=r"at step 1 \(all"):
        train(nn.Linear(1, 1), [torch.ones(1, 1)], step=losses_of(math.nan), explain=lambda model: "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("accumulate", 0), ("retries", -1), ("retry_rate", 0.0), ("retry_rate", 1.0), ("loss_limit", 0.5), ("loss_limit", math.nan)],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(TrainingError, match=f"engine: {name} is {value}, expected"):
        Engine(**{name: value})
