import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitalloc.quantizers import MIN_STEP, bounds, fake_quantize, positive

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
GRIDS = [(bits, signed) for bits in WIDTHS for signed in (True, False)]

grids = st.sampled_from(GRIDS)
steps = st.floats(2**-12, 64, width=32)
# Few distinct values in a wide range: many of them fall on ties, on levels and beyond both ends.
numbers = st.one_of(st.floats(-1e4, 1e4, width=32), st.integers(-600, 600).map(lambda i: i / 4))
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=numbers)


def closed_form(x, step, low, high):
    return np.rint(np.clip(x / np.float32(step), low, high)).astype(np.float32) * np.float32(step)


def gradients(x, step, low, high, scale, incoming):
    """Equations 2 and 3 of the LSQ paper, element by element in Python."""
    ratio = x / step
    d_x, d_step = np.zeros_like(x), np.zeros_like(x)
    for place, r in np.ndenumerate(ratio):
        if r <= low:
            d_step[place] = low
        elif r >= high:
            d_step[place] = high
        else:
            d_x[place], d_step[place] = 1, np.rint(r) - r
    return d_x * incoming, d_step * incoming * scale


@pytest.mark.parametrize(
    ("bits", "signed", "expected"), [(2, True, (-2, 1)), (8, True, (-128, 127)), (2, False, (0, 3)), (8, False, (0, 255))]
)
def test_bounds(bits, signed, expected):
    assert bounds(bits, signed) == expected


@given(arrays, steps, grids)
def test_closed_form(x, step, grid):
    low, high = bounds(*grid)
    out = fake_quantize(torch.from_numpy(x), torch.tensor([step]), low, high, 1.0)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), closed_form(x, step, low, high))


@given(arrays, steps, grids)
def test_idempotent_monotone_and_few_levels(x, step, grid):
    low, high = bounds(*grid)
    ordered, s = torch.from_numpy(x).flatten().sort().values, torch.tensor([step])
    out = fake_quantize(ordered, s, low, high, 1.0)
    assert torch.equal(fake_quantize(out, s, low, high, 1.0), out)
    assert bool((out.diff() >= 0).all())
    assert len(out.unique()) <= 2 ** grid[0]


@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_every_level_is_used(bits, signed):
    low, high = bounds(bits, signed)
    out = fake_quantize(torch.linspace(-300, 300, 6001), torch.tensor([1.0]), low, high, 1.0)
    assert out.unique().tolist() == list(range(low, high + 1))
    assert high - low + 1 == 2**bits


def test_ties_go_to_the_even_level():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]) * 0.25
    assert (fake_quantize(x, torch.tensor([0.25]), -8, 7, 1.0) / 0.25).tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_division_is_a_true_division():
    """Multiplying by the reciprocal gives other levels than ONNX QuantizeLinear, which divides."""
    step = np.float32(0.3)
    x = ((np.arange(-128, 128) + np.float32(0.5)) * step).astype(np.float32)
    divided, multiplied = np.rint(x / step), np.rint(x * (np.float32(1) / step))
    assert (divided != multiplied).any()
    out = fake_quantize(torch.from_numpy(x), torch.tensor([step]), -128, 127, 1.0)
    np.testing.assert_array_equal(np.rint(out.numpy() / step), np.clip(divided, -128, 127))


@given(arrays, steps, grids, st.floats(0.01, 2), st.integers(0, 2**31))
def test_gradients_per_tensor(x, step, grid, scale, seed):
    low, high = bounds(*grid)
    tensor, s = torch.from_numpy(x).requires_grad_(), torch.tensor([step], requires_grad=True)
    incoming = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    fake_quantize(tensor, s, low, high, scale).backward(incoming)
    d_x, d_step = gradients(x, np.float32(step), low, high, scale, incoming.numpy())
    np.testing.assert_array_equal(tensor.grad.numpy(), d_x)
    assert s.grad.shape == (1,)
    assert s.grad.item() == pytest.approx(d_step.sum(dtype=np.float64), rel=1e-4, abs=1e-3 * high * scale)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 4, 1, 1), (4, 1, 5), (2, 1), (1,), (3, 4, 2, 5)])
def test_gradients_of_broadcast_steps(shape, signed):
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(3, 4, 2, 5, generator=generator)).requires_grad_()
    step = (0.2 + torch.rand(shape, generator=generator)).requires_grad_()
    incoming = torch.randn(x.shape, generator=generator)
    low, high = bounds(3, signed)
    out = fake_quantize(x, step, low, high, 0.3)
    out.backward(incoming)
    spread = np.broadcast_to(step.detach().numpy(), x.shape)
    d_x, d_step = gradients(x.detach().numpy(), spread, low, high, 0.3, incoming.numpy())
    np.testing.assert_array_equal(out.detach().numpy(), np.rint(np.clip(x.detach().numpy() / spread, low, high)) * spread)
    np.testing.assert_array_equal(x.grad.numpy(), d_x)
    assert step.grad.shape == shape
    torch.testing.assert_close(step.grad, torch.from_numpy(d_step).sum_to_size(shape))


def test_gradient_at_the_ends_of_the_grid():
    """On the last level nothing more can be gained within the grid: it counts as outside."""
    x, step = torch.tensor([-1.0, -0.99, 0.74, 0.75], requires_grad=True), torch.tensor([0.25], requires_grad=True)
    fake_quantize(x, step, -4, 3, 1.0).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    assert step.grad.item() == pytest.approx(-4 + (-4 + 3.96) + (3 - 2.96) + 3)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_wanted_gradient_is_computed(wanted):
    x, step = torch.ones(2, requires_grad=wanted[0]), torch.full((1,), 0.3, requires_grad=wanted[1])
    fake_quantize(x, step, -8, 7, 1.0).sum().backward()
    assert ((x.grad is not None), (step.grad is not None)) == wanted


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_no_elements(shape):
    x, step = torch.zeros(shape, requires_grad=True), torch.ones(1, requires_grad=True)
    out = fake_quantize(x, step, 0, 15, 1.0)
    out.sum().backward()
    assert out.shape == x.grad.shape == shape
    assert step.grad.tolist() == [0.0]


@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 1e30])
def test_constant_input_at_the_smallest_step(value):
    x, step = torch.full((3,), value, requires_grad=True), torch.tensor([MIN_STEP], requires_grad=True)
    out = fake_quantize(x, step, -8, 7, 1.0)
    out.sum().backward()
    level = float(np.clip(np.rint(np.float64(value) / MIN_STEP), -8, 7))
    assert out.tolist() == [level * MIN_STEP] * 3
    assert math.isfinite(step.grad.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_input_is_kept(dtype):
    x = torch.linspace(-2, 2, 41).to(dtype).requires_grad_()
    step = torch.tensor([0.25], requires_grad=True)
    out = fake_quantize(x, step, -4, 3, 0.5)
    assert out.dtype == dtype
    expected = np.rint(np.clip(x.detach().double().numpy() / 0.25, -4, 3)) * 0.25
    np.testing.assert_array_equal(out.detach().double().numpy(), expected)
    out.sum().backward()
    assert (x.grad.dtype, step.grad.dtype) == (dtype, torch.float32)
    assert torch.equal(x.grad.bool(), (x.detach() > -1) & (x.detach() < 0.75))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8))
def test_positive_is_the_step_with_a_floor(values):
    raw = torch.tensor(values, requires_grad=True)
    out = positive(raw)
    assert out.tolist() == [max(value, MIN_STEP) for value in torch.tensor(values).tolist()]


def test_gradient_of_positive_lets_a_step_grow_from_the_floor_and_not_sink_below():
    raw = torch.tensor([0.5, 0.5, MIN_STEP, MIN_STEP, -1.0, -1.0, 0.0, 0.0], requires_grad=True)
    positive(raw).backward(torch.tensor([2.0, -2.0] * 4))
    assert raw.grad.tolist() == [2, -2, 0, -2, 0, -2, 0, -2]


def test_a_step_below_the_floor_recovers_by_training():
    """The values lie far beyond the grid, so the loss pulls the step up."""
    x, raw = torch.full((4,), 3.0), torch.tensor([-0.1], requires_grad=True)
    optimizer = torch.optim.SGD([raw], lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        (fake_quantize(x, positive(raw), -4, 3, 1.0) - x).square().mean().backward()
        optimizer.step()
    assert raw.item() == pytest.approx(1.0, abs=0.05)
