import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training import Constant, WarmupCosine, drop_unused_gradients, sgd


@given(total=st.integers(1, 200), share=st.floats(0, 1), base=st.floats(1e-4, 1), ratio=st.floats(0, 1))
def test_warmup_rises_to_the_base_and_the_cosine_falls_to_the_final_rate(total, share, base, ratio):
    warmup = int(share * total)
    schedule = WarmupCosine(base, total, warmup, ratio * base)
    rates = [schedule.rate(step) for step in range(total + 2)]
    assert all(a <= b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    if warmup:
        assert rates[warmup - 1] == base
    assert rates[total] == rates[total + 1] == ratio * base


def test_schedule_closed_form():
    schedule = WarmupCosine(0.8, total_steps=12, warmup_steps=4, final=0.2)
    assert [schedule.rate(step) for step in (0, 1, 3, 4)] == [0.2, 0.4, 0.8, 0.8]
    assert schedule.rate(8) == pytest.approx(0.5)
    assert schedule.rate(10) == pytest.approx(0.2 + 0.3 * (1 - math.sqrt(0.5)))


def test_groups_keep_their_ratio_whatever_was_applied_before():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01}])
    schedule = WarmupCosine(0.1, 10, 2)
    for step in (5, 0, 9, 6):
        schedule.apply(optimizer, step)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    Constant().apply(optimizer, 9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]


@pytest.mark.parametrize(
    "arguments", [(0.0, 10), (math.nan, 10), (0.1, 0), (0.1, 10, 11), (0.1, 10, -1), (0.1, 10, 0, 0.2), (0.1, 10, 0, -0.1)]
)
def test_bad_schedules(arguments):
    with pytest.raises(TrainingError, match="expected"):
        WarmupCosine(*arguments)


def test_schedule_for_another_rate_than_the_optimizer_has():
    with pytest.raises(TrainingError, match=r"base rate 0.2, the optimiser has \[0.1, 0.1\]"):
        WarmupCosine(0.2, 10).apply(sgd(nn.Linear(1, 1), 0.1), 0)


def test_momentum_and_decay_closed_form():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = sgd(model, 0.1, momentum=0.5, weight_decay=0.25)
    for gradient in (1.0, 3.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    # weight: v = 1 + 0.25 * 2 = 1.5, w = 1.85; v = 0.75 + 3 + 0.25 * 1.85 = 4.2125, w = 1.42875. The bias has no decay.
    assert model.weight.item() == pytest.approx(1.42875)
    assert model.bias.item() == pytest.approx(2 - 0.1 * 1 - 0.1 * 3.5)


def test_no_decay_is_chosen_by_name_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)
    with_decay, without = sgd(model, 0.1, weight_decay=0.3, no_decay=lambda name, parameter: name == "1.weight").param_groups
    assert {id(p) for p in with_decay["params"]} == {id(model[0].weight), id(model[1].bias)}
    assert [id(p) for p in without["params"]] == [id(model[1].weight)]
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.3, 0.0)


def test_nothing_to_train():
    with pytest.raises(TrainingError, match="no trainable parameter"):
        sgd(nn.ReLU(), 0.1)


def test_unused_parameters_are_moved_by_neither_momentum_nor_decay():
    """Both weights move once; then the first has a zero gradient and rests, its momentum waiting for the third step."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)
    optimizer = sgd(model, 0.1, momentum=0.5, weight_decay=0.1)

    def step(first, second):
        model[0].weight.grad, model[1].weight.grad = torch.full((1, 1), first), torch.full((1, 1), second)
        dropped = drop_unused_gradients(model)
        optimizer.step()
        return dropped

    assert step(1.0, 1.0) == 0
    rested, buffer = model[0].weight.item(), optimizer.state[model[0].weight]["momentum_buffer"].item()
    assert step(0.0, 1.0) == 1
    assert model[0].weight.item() == rested
    assert model[1].weight.item() != rested
    assert optimizer.state[model[0].weight]["momentum_buffer"].item() == buffer
    step(1.0, 1.0)
    assert model[0].weight.item() == pytest.approx(rested - 0.1 * (0.5 * buffer + 1 + 0.1 * rested))


def test_a_gradient_of_nan_is_not_dropped_and_no_gradient_is_no_matter():
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[0.0, math.nan]])
    assert drop_unused_gradients(model) == 0
    assert model.weight.grad is not None
    assert drop_unused_gradients(nn.Linear(1, 1)) == 0
