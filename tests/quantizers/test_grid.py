"""The levels of activation quantizers: signed, unsigned, or with an integer zero point for a small negative tail."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import InputLSQ, WeightLSQ
from bitalloc.quantizers.grid import Observed, best_grid, levels

WIDTHS = (8, 7, 6, 5, 4, 3, 2)
TAILS = {"silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish, "mish": F.mish}
widths = pytest.mark.parametrize("bits", WIDTHS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(*batches, grid="auto", widths=WIDTHS):
    quantizer = InputLSQ("the input of layer stem", widths, grid=grid)
    quantizer.observe()
    for batch in batches:
        quantizer(batch)
    quantizer.initialise()
    quantizer.forget()
    return quantizer


def zero_points(quantizer):
    return {bits: quantizer.zero_point(bits) for bits in quantizer.widths}


def error(x, bits, zero_point, step):
    low, high = levels(bits, zero_point)
    return float(((x / step).round().clamp(low, high) * step - x).double().square().mean())


def least_error(x, bits, zero_point):
    """Of a fine search for the step."""
    reach = float(x.abs().max())
    return min(error(x, bits, zero_point, reach * share) for share in np.geomspace(2e-3, 2, 250))


SIGNED, UNSIGNED = {bits: 2 ** (bits - 1) for bits in WIDTHS}, dict.fromkeys(WIDTHS, 0)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (normal(64, 40), SIGNED),
        (torch.cat([normal(64, 40).pow(3), -normal(64, 40).pow(3)]), SIGNED),
        (normal(64, 40).sign(), SIGNED),
        (normal(64, 40).relu(), UNSIGNED),
        (normal(64, 40).softmax(1), UNSIGNED),
        (torch.zeros(64, 40), UNSIGNED),
        (F.silu(normal(4, 10)), SIGNED),  # too few values to tell
    ],
    ids=["normal", "heavy tails", "two values", "relu", "softmax", "zero", "few values"],
)
def test_the_sign_decides_where_no_other_grid_is_clearly_better(x, expected):
    quantizer = calibrated(x)
    assert zero_points(quantizer) == expected
    for bits in WIDTHS:
        largest = 2**bits - 1 - expected[bits]
        assert quantizer.raw_step(bits).item() == pytest.approx(max(2 * float(x.abs().mean()) / math.sqrt(largest), 2.0**-23), rel=1e-5)


@pytest.mark.parametrize("tail", TAILS)
@widths
def test_a_small_negative_tail_gets_the_levels_that_it_is_worth(tail, bits):
    x = TAILS[tail](normal(8, 8, 64))
    quantizer = calibrated(*x, widths=(bits,))
    found = error(x, bits, quantizer.zero_point(bits), quantizer.raw_step(bits).item())
    signed, unsigned = least_error(x, bits, 2 ** (bits - 1)), least_error(x, bits, 0)
    assert found < 0.6 * signed
    assert found < 1.05 * unsigned
    # As good as the best of all zero points, but for the coarseness of the search.
    assert found < 1.15 * min(least_error(x, bits, zero_point) for zero_point in range(min(2 ** (bits - 1), 36)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_finds_the_best_grid(bits):
    x = F.logsigmoid(normal(700)) + 0.3  # reaches far below zero, and a little above
    zero_point, step = best_grid(x.double(), bits, prefer_signed=False)
    every = {other: least_error(x, bits, other) for other in range(2**bits)}
    assert zero_point > 2 ** (bits - 1)
    assert error(x, bits, zero_point, step) < 1.1 * min(every.values())


def test_the_choice_can_be_overridden():
    x, positive = F.silu(normal(64, 64)), normal(64, 64).abs()
    assert zero_points(calibrated(x, grid="signed")) == zero_points(calibrated(positive, grid="signed")) == SIGNED
    assert zero_points(calibrated(x, grid="unsigned")) == UNSIGNED
    assert 0 < calibrated(x, grid="asymmetric").zero_point(8) < 64
    step = calibrated(x, grid="signed").raw_step(4).item()
    assert step == pytest.approx(2 * float(x.abs().mean()) / math.sqrt(7), rel=1e-5)


def test_signed_means_that_a_width_has_negative_levels():
    assert calibrated(F.silu(normal(64, 64))).signed
    assert not calibrated(normal(64, 64).abs()).signed
    with pytest.raises(QuantizerError, match="not calibrated"):
        _ = InputLSQ("x", WIDTHS).signed
    assert WeightLSQ("w", (4,), normal(3)).levels == (-8, 7)


@given(st.integers(2, 8), st.data())
def test_levels(bits, data):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    low, high = levels(bits, zero_point)
    assert high - low + 1 == 2**bits
    assert low <= 0 <= high


@given(st.integers(0, 255), st.floats(0.01, 10))
def test_zero_stays_zero_and_the_closed_form_holds_on_every_grid(zero_point, step):
    quantizer = at(8, zero_point, step)
    x = 100 * normal(50)
    x[0] = 0.0
    ratio = (x / torch.tensor([step])).numpy()
    expected = np.rint(np.clip(ratio, -zero_point, 255 - zero_point)).astype(np.float32) * np.float32(step)
    np.testing.assert_array_equal(quantizer(x).detach().numpy(), expected)
    assert quantizer(x)[0].item() == 0.0


def at(bits, zero_point, step):
    quantizer = InputLSQ("x", (bits,))
    quantizer.load_state_dict({f"step_{bits}": torch.tensor([step]), f"zero_point_{bits}": torch.tensor([zero_point])})
    return quantizer


@pytest.mark.parametrize(("zero_point", "largest"), [(0, 15), (3, 12), (8, 7), (12, 12), (15, 15)])
def test_step_gradient(zero_point, largest):
    quantizer, x = at(4, zero_point, 0.3), 2 * normal(5, 6)
    quantizer(x).sum().backward()
    low, high = -zero_point, 15 - zero_point
    ratio = x.double().numpy() / np.float32(0.3)
    slope = np.where((ratio > low) & (ratio < high), np.rint(ratio) - ratio, np.clip(ratio, low, high))
    assert quantizer.step_4.grad.item() == pytest.approx(slope.sum() / math.sqrt(largest * 6), rel=1e-4)


def test_a_state_dict_carries_the_zero_points():
    source, x = calibrated(F.silu(normal(64, 64))), F.silu(normal(9, 9, seed=1))
    target = InputLSQ("copy", WIDTHS)
    target.load_state_dict(source.state_dict())
    assert zero_points(target) == zero_points(source)
    for bits in WIDTHS:
        source.switch(bits)
        target.switch(bits)
        assert target.levels == levels(bits, source.zero_point(bits))
        assert torch.equal(target(x), source(x))


def test_a_checkpoint_of_before_there_were_zero_points_is_refused_with_a_reason():
    state = {"step_4": torch.ones(1), "signed_flag": torch.tensor([1], dtype=torch.int8)}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="of an earlier version, which had no zero points"):
            InputLSQ("x", (4,)).load_state_dict(state, strict=strict)


def test_the_sample_is_bounded_the_same_every_time_and_covers_all_calls():
    def observe():
        seen = Observed()
        for index in range(300):
            seen.add(torch.full((50, 60), float(index)))
        return seen

    first, second = observe(), observe()
    assert torch.equal(first.sample, second.sample)
    assert 2048 <= first.sample.numel() <= 8192
    assert float(first.sample.mean()) == pytest.approx(149.5, abs=5)
    assert first.mean_magnitude == pytest.approx(149.5)
    many = Observed()
    for _ in range(9000):
        many.add(torch.ones(1))
    assert many.sample.numel() <= 8192


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    calibrated(F.silu(normal(64, 64)))
    assert torch.equal(torch.get_rng_state(), before)


def test_other_memory_orders_and_types_are_sampled_alike():
    x = F.silu(normal(4, 8, 6, 6))
    expected = zero_points(calibrated(x))
    assert zero_points(calibrated(x.to(memory_format=torch.channels_last))) == expected
    assert zero_points(calibrated(x.double())) == expected
    assert zero_points(calibrated(x.bfloat16()))[4] == expected[4]
