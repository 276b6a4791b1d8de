import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training import CheckpointConfig, SGDWithScales, WarmupCosine, fit, loss_step, sgd_with_scales

LR, SCALE_LR = 0.02, 0.05
magnitudes = st.floats(1e-4, 1e4)


class Scaled(nn.Module):
    """A linear layer with a positive scale an output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor([0.01, 0.3, 2.0]))

    def forward(self, x):
        return self.linear(x) * self.scale


def is_scale(name, parameter):
    return name == "scale"


def net():
    torch.manual_seed(0)
    return Scaled()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, generator=generator) for _ in range(count)]


def loss_fn(model, batch):
    return (model(batch) - 1).square().mean()


def train(model, optimizer, inputs):
    for batch in inputs:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


def scale_only(value, lr=SCALE_LR):
    parameter = nn.Parameter(torch.as_tensor(value, dtype=torch.float64))
    return parameter, SGDWithScales([{"params": [parameter], "lr": lr, "multiplicative": True}])


def set_gradient(parameter, value):
    parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.01), (0.9, 0.0), (0.0, 0.01), (0.0, 0.0)])
def test_all_but_the_scales_move_as_by_sgd_of_pytorch(momentum, weight_decay):
    """Bit for bit, with the same scales before every step."""
    model = net()
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale, momentum, weight_decay)
    twin = copy.deepcopy(model)
    groups = [{"params": [twin.linear.weight], "weight_decay": weight_decay}, {"params": [twin.linear.bias]}]
    reference = torch.optim.SGD(groups, lr=LR, momentum=momentum)
    for batch in batches(6):
        with torch.no_grad():
            twin.scale.copy_(model.scale)
        train(model, optimizer, [batch])
        train(twin, reference, [batch])
        assert torch.equal(model.linear.weight, twin.linear.weight)
        assert torch.equal(model.linear.bias, twin.linear.bias)


def test_scales_move_as_by_adam_in_their_logarithm():
    model = net()
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale)
    logarithm = nn.Parameter(model.scale.detach().double().log())
    reference = torch.optim.Adam([logarithm], lr=SCALE_LR, betas=(0.9, 0.99), eps=1e-12)
    for batch in batches(8):
        reference.zero_grad()
        twin = copy.deepcopy(model).double()
        loss = (twin.linear(batch.double()) * logarithm.exp() - 1).square().mean()
        loss.backward()
        reference.step()
        train(model, optimizer, [batch])
        torch.testing.assert_close(model.scale.double(), logarithm.exp().detach(), rtol=1e-4, atol=0)


@given(magnitudes, magnitudes, st.sampled_from((-1, 1)))
def test_the_first_step_changes_every_scale_by_the_same_share(start, gradient, sign):
    parameter, optimizer = scale_only([start])
    set_gradient(parameter, sign * gradient)
    optimizer.step()
    assert parameter.item() == pytest.approx(start * math.exp(-sign * SCALE_LR), rel=1e-4)


@given(magnitudes, st.lists(st.tuples(st.sampled_from((-1, 0, 1)), st.floats(-30, 30)), min_size=1, max_size=40))
def test_a_step_is_bounded_and_a_scale_stays_positive(start, gradients):
    """Of Adam with these betas no step is longer than sqrt(5.5) rates (Cauchy-Schwarz); a steady gradient gives one rate."""
    parameter, optimizer = scale_only([start], lr=0.5)
    for sign, exponent in gradients:
        before = parameter.item()
        set_gradient(parameter, sign * math.exp(exponent))
        optimizer.step()
        assert parameter.item() > 0
        assert abs(math.log(parameter.item() / before)) <= 0.5 * math.sqrt(5.5) + 1e-6


def test_a_steady_pull_changes_a_scale_by_the_rate():
    parameter, optimizer = scale_only([1.0, 1e-5, 1e5], lr=0.01)
    for _ in range(20):
        parameter.grad = 3 / parameter.detach()
        optimizer.step()
    expected = torch.tensor([1.0, 1e-5, 1e5], dtype=torch.float64) * math.exp(-0.2)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


def test_parameters_without_a_gradient_are_left_alone():
    model = net()
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale, weight_decay=0.1)
    train(model, optimizer, batches(3))
    before = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad(set_to_none=True)
    model.linear.bias.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(model.scale, before["scale"])
    assert torch.equal(model.linear.weight, before["linear.weight"])
    assert not torch.equal(model.linear.bias, before["linear.bias"])
    assert [torch.equal(optimizer.state[model.scale][key], state[2][key]) for key in ("mean", "square")] == [True, True]
    assert optimizer.state[model.scale]["count"] == 3


def test_a_scale_with_a_zero_gradient_stays():
    parameter, optimizer = scale_only([2.0])
    set_gradient(parameter, 0.0)
    optimizer.step()
    assert parameter.item() == 2.0


def test_without_a_rate_of_their_own_scales_move_by_sgd():
    model, twin = net(), net()
    optimizer = sgd_with_scales(model, LR, 0, is_scale, momentum=0.9, weight_decay=0.01)
    groups = [{"params": [twin.linear.weight], "weight_decay": 0.01}, {"params": [twin.linear.bias, twin.scale]}]
    reference = torch.optim.SGD(groups, lr=LR, momentum=0.9)
    train(model, optimizer, batches(3))
    train(twin, reference, batches(3))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_decay_is_for_weights_only():
    """With no other gradient the decay alone moves what it is for."""
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale, momentum=0.0, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.linear.weight.detach(), 0.99 * before["linear.weight"])
    assert torch.equal(model.linear.bias, before["linear.bias"])
    assert torch.equal(model.scale, before["scale"])


def test_frozen_parameters_are_left_out():
    model = net()
    model.linear.requires_grad_(False)
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale)
    assert [parameter is model.scale for group in optimizer.param_groups for parameter in group["params"]] == [True]
    before = model.linear.weight.clone()
    train(model, optimizer, batches(2))
    assert torch.equal(model.linear.weight, before)
    model.scale.requires_grad_(False)
    model.linear.weight.requires_grad_(True)
    optimizer = sgd_with_scales(model, LR, SCALE_LR, is_scale)
    assert [parameter is model.linear.weight for group in optimizer.param_groups for parameter in group["params"]] == [True]
    model.linear.weight.requires_grad_(False)
    with pytest.raises(TrainingError, match="no trainable parameter"):
        sgd_with_scales(model, LR, SCALE_LR, is_scale)


def test_a_schedule_keeps_the_ratio_of_the_two_rates():
    optimizer = sgd_with_scales(net(), LR, SCALE_LR, is_scale)
    WarmupCosine(LR, 10).apply(optimizer, 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([LR / 2, LR / 2, SCALE_LR / 2])


def test_the_rates_are_read_at_every_step():
    parameter, optimizer = scale_only([1.0])
    optimizer.param_groups[0]["lr"] = 0.2
    set_gradient(parameter, 1.0)
    optimizer.step()
    assert parameter.item() == pytest.approx(math.exp(-0.2))


def test_a_closure_may_compute_the_gradients():
    model, twin = net(), net()
    optimizer, reference = (sgd_with_scales(m, LR, SCALE_LR, is_scale) for m in (model, twin))
    (batch,) = batches(1)

    def closure():
        loss = loss_fn(model, batch)
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == loss_fn(twin, batch).item()
    train(twin, reference, [batch])
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert optimizer.step() is None


def test_the_state_dict_goes_on_identically():
    whole, first = net(), net()
    optimizer = sgd_with_scales(whole, LR, SCALE_LR, is_scale, weight_decay=0.01)
    train(whole, optimizer, batches(7))
    half = sgd_with_scales(first, LR, SCALE_LR, is_scale, weight_decay=0.01)
    train(first, half, batches(7)[:4])
    second = net()
    second.load_state_dict(first.state_dict())
    resumed = sgd_with_scales(second, LR, SCALE_LR, is_scale, weight_decay=0.01)
    resumed.load_state_dict(half.state_dict())
    train(second, resumed, batches(7)[4:])
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())


class Cut(Exception):
    """Stands for whatever ends a process."""


def test_an_interrupted_training_ends_in_the_same_bits(tmp_path):
    def run(path, cut_at=None):
        model, calls = net(), [0]
        plain = loss_step(loss_fn)

        def step(model, batch):
            calls[0] += 1
            if calls[0] == cut_at:
                raise Cut
            return plain(model, batch)

        fit(
            model,
            batches(3),
            step=step,
            optimizer=sgd_with_scales(model, LR, SCALE_LR, is_scale, weight_decay=0.01),
            schedule=WarmupCosine(LR, 8),
            total_steps=8,
            checkpoint=CheckpointConfig(path, "scales", steps=1),
        )
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Cut):
        run(tmp_path / "cut", cut_at=6)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
