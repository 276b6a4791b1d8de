import math

import pytest
import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training import reestimate_batchnorm


def images(count=23, seed=0):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_statistics_are_exact_over_uneven_batches():
    data = images()
    norm = nn.BatchNorm2d(3)
    assert reestimate_batchnorm(nn.Sequential(norm), list(data.split(8))) == ("0",)
    channels = data.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(norm.running_mean.double(), channels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), channels.var(1), rtol=1e-6, atol=1e-6)
    assert norm.num_batches_tracked.item() == 3


def test_deeper_norms_see_batches_normalized_as_in_training():
    data = images()
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    reestimate_batchnorm(model, list(data.split(8)))
    normalized = [nn.functional.batch_norm(batch, None, None, training=True) for batch in data.split(8)]
    channels = model[1](torch.cat(normalized)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[2].running_mean, channels.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[2].running_var, channels.var(1), rtol=1e-5, atol=1e-5)


def test_evaluation_after_it_equals_training_on_one_batch():
    data = images(64)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    reestimate_batchnorm(model, [data])
    in_training = model.train()(data)
    reestimate_batchnorm(model, [data])
    torch.testing.assert_close(model.eval()(data), in_training, rtol=1e-2, atol=1e-2)


def test_inputs_without_spatial_dimensions_and_pairs():
    data = torch.randn(10, 4)
    norm = nn.BatchNorm1d(4)
    reestimate_batchnorm(norm, [(data, torch.zeros(10))])
    torch.testing.assert_close(norm.running_var, data.var(0))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.plain = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, inputs):
        return self.plain(self.dropout(self.used(inputs)))


def test_only_what_takes_part_is_changed_and_modes_momentum_gradients_stay():
    model = Branches()
    model.other(images() * 2)
    model.dropout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert reestimate_batchnorm(model, [images()]) == ("used",)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"used.running_mean", "used.running_var", "used.num_batches_tracked"}
    assert [module.training for module in model.modules()] == modes
    assert model.used.momentum == 0.1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.used._forward_pre_hooks


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    data = images()
    reestimate_batchnorm(model, [data])
    torch.testing.assert_close(model[1].running_mean, data.mean((0, 2, 3)))


def test_stops_after_the_batch_that_reaches_the_number_of_images():
    data = images()
    norm = nn.BatchNorm2d(3)
    reestimate_batchnorm(norm, list(data.split(8)), images=9)
    torch.testing.assert_close(norm.running_mean, data[:16].mean((0, 2, 3)))


def test_model_without_batch_norms_is_not_even_run():
    def forbidden():
        raise AssertionError
        yield

    assert reestimate_batchnorm(nn.Linear(1, 1), forbidden()) == ()


@pytest.mark.parametrize(("loader", "words"), [([], "the loader is empty"), ([images() * math.nan], "batch norm 0 is not finite")])
def test_bad_data_leaves_the_statistics(loader, words):
    model = nn.Sequential(nn.BatchNorm2d(3))
    model(images())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match=words):
        reestimate_batchnorm(model, loader)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_number_of_images():
    with pytest.raises(TrainingError, match="images is 0"):
        reestimate_batchnorm(nn.BatchNorm2d(3), [images()], images=0)
