import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import MIN_STEP, InputLSQ, WeightLSQ, bounds, is_step_size

WIDTHS = (8, 4, 3, 2)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(*batches, widths=WIDTHS, gradient="features", grid="auto"):
    quantizer = InputLSQ("the input of layer stem", widths, gradient, grid)
    quantizer.observe()
    for batch in batches:
        assert quantizer(batch) is batch  # passed through meanwhile
    quantizer.initialise()
    quantizer.forget()
    return quantizer


FAMILY = {
    "weight per tensor": lambda x: WeightLSQ("w", WIDTHS, x),
    "weight per channel": lambda x: WeightLSQ("w", WIDTHS, x, 0),
    "weight per channel of a transposed convolution": lambda x: WeightLSQ("w", WIDTHS, x, 1),
    "input": calibrated,
    "input on an asymmetric grid": lambda x: calibrated(x, grid="asymmetric"),
    "input on an unsigned grid whatever the data": lambda x: calibrated(x, grid="unsigned"),
}
INPUTS = {
    "normal": sample(3, 4, 5),
    "positive": sample(3, 4, 5).abs(),
    "all zero": torch.zeros(3, 4, 5),
    "constant": torch.full((3, 4, 5), -0.7),
    "one element": torch.full((1, 1, 1), 0.3),
    "tiny": 1e-30 * sample(3, 4, 5),
    "huge": 1e20 * sample(3, 4, 5),
}
family = pytest.mark.parametrize("member", FAMILY.values(), ids=list(FAMILY))
inputs = pytest.mark.parametrize("x", INPUTS.values(), ids=list(INPUTS))
widths = pytest.mark.parametrize("bits", WIDTHS)


@family
@inputs
@widths
def test_properties_of_every_quantizer(member, x, bits):
    quantizer = member(x)
    quantizer.switch(bits)
    leaf = x.clone().requires_grad_()
    out = quantizer(leaf)
    assert out.shape == x.shape
    assert torch.equal(quantizer(out), out)
    axis = getattr(quantizer, "channel_axis", None)
    for rows in (out.detach().reshape(1, -1),) if axis is None else (out.detach().movedim(axis, 0).flatten(1),):
        assert all(len(row.unique()) <= 2**bits for row in rows)
    out.square().sum().backward()
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(leaf.grad).all())
    assert bool((quantizer.step > 0).all())
    if x.abs().max() < 1e10:  # beyond, the gradient itself overflows
        assert bool(torch.isfinite(quantizer.raw_step(bits).grad).all())


@pytest.mark.parametrize("member", [FAMILY["weight per tensor"], FAMILY["input"], FAMILY["input on an asymmetric grid"]])
@widths
def test_monotone(member, bits):
    x = sample(200)
    quantizer = member(x)
    quantizer.switch(bits)
    assert bool((quantizer(x.sort().values).diff() >= 0).all())


def test_initial_weight_step_per_tensor():
    weight = 0.3 + 2 * sample(5, 4, 3, 3)
    quantizer = WeightLSQ("w", WIDTHS, weight)
    values = weight.double().numpy()
    reach = max(abs(values.mean() - 3 * values.std()), abs(values.mean() + 3 * values.std()))
    for bits in WIDTHS:
        assert quantizer.raw_step(bits).tolist() == pytest.approx([reach / 2 ** (bits - 1)], rel=1e-5)


def test_initial_weight_step_takes_the_side_that_reaches_further():
    weight = torch.tensor([-5.0, -3.0])  # mean -4, deviation 1
    assert WeightLSQ("w", (4,), weight).raw_step(4).item() == pytest.approx(7 / 8)


@pytest.mark.parametrize("axis", [0, 1])
def test_initial_weight_step_per_channel(axis):
    weight = sample(3, 4, 2, 2) * torch.tensor([1.0, 2, 3]).reshape(3, 1, 1, 1) + torch.arange(4.0).reshape(1, 4, 1, 1)
    quantizer = WeightLSQ("w", (4, 2), weight, axis)
    for channel in range(weight.shape[axis]):
        alone = WeightLSQ("w", (4, 2), weight.select(axis, channel))
        for bits in (4, 2):
            assert quantizer.raw_step(bits)[channel].item() == pytest.approx(alone.raw_step(bits).item(), rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@widths
def test_every_channel_is_quantized_as_if_alone(axis, bits):
    weight = sample(3, 4, 2, 2) * torch.tensor([1.0, 2, 3]).reshape(3, 1, 1, 1) * torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    quantizer = WeightLSQ("w", WIDTHS, weight, axis)
    quantizer.switch(bits)
    quantizer(weight).square().sum().backward()
    for channel in range(weight.shape[axis]):
        alone = WeightLSQ("w", WIDTHS, weight.select(axis, channel))
        alone.load_state_dict({f"step_{b}": quantizer.raw_step(b)[channel : channel + 1] for b in WIDTHS})
        alone.switch(bits)
        out = alone(weight.select(axis, channel))
        assert torch.equal(quantizer(weight).select(axis, channel), out)
        out.square().sum().backward()
        assert quantizer.raw_step(bits).grad[channel].item() == pytest.approx(alone.raw_step(bits).grad.item(), rel=1e-5)


@widths
def test_weight_step_gradient_scale(bits):
    weight = sample(6, 5)
    quantizer = WeightLSQ("w", WIDTHS, weight)
    quantizer.switch(bits)
    quantizer(weight).sum().backward()
    low, high = bounds(bits, signed=True)
    ratio = weight.double().numpy() / quantizer.raw_step(bits).item()
    slope = np.where((ratio > low) & (ratio < high), np.rint(ratio) - ratio, np.clip(ratio, low, high))
    assert quantizer.raw_step(bits).grad.item() == pytest.approx(slope.sum() / math.sqrt(high * 30), rel=1e-3, abs=1e-5)
    others = [quantizer.raw_step(other).grad for other in WIDTHS if other != bits]
    assert others == [None] * 3  # the steps of other widths take no part


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6), min_size=1, max_size=4))
def test_initial_input_step_and_sign(batches):
    quantizer = calibrated(*(torch.tensor([batch]) for batch in batches))
    values = np.array([value for batch in batches for value in batch], dtype=np.float64)
    signed = bool(values.min() < 0)
    assert quantizer.signed is signed
    for bits in WIDTHS:
        expected = 2 * np.abs(values).mean() / math.sqrt(bounds(bits, signed)[1])
        assert quantizer.raw_step(bits).item() == pytest.approx(max(expected, MIN_STEP), rel=1e-5)


def test_a_negative_value_is_clipped_where_calibration_saw_none():
    quantizer = calibrated(torch.tensor([0.0, 1.0, 2.0]))
    assert quantizer(torch.tensor([-1.0])).tolist() == [0.0]
    quantizer = calibrated(torch.tensor([-0.001, 1.0, 2.0]))
    assert quantizer(torch.tensor([-1.0])).item() == pytest.approx(-1, rel=0.1)


@pytest.mark.parametrize(("gradient", "counted"), [("features", 6), ("batch", 30)])
def test_input_step_gradient_scale(gradient, counted):
    x = sample(5, 2, 3)
    quantizer = calibrated(x, widths=(3,), gradient=gradient)
    quantizer(x).sum().backward()
    ratio = x.double().numpy() / quantizer.raw_step(3).item()
    slope = np.where((ratio > -4) & (ratio < 3), np.rint(ratio) - ratio, np.clip(ratio, -4, 3))
    assert quantizer.raw_step(3).grad.item() == pytest.approx(slope.sum() / math.sqrt(3 * counted), rel=1e-3)


@pytest.mark.parametrize("gradient", ["features", "batch"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_empty_input(gradient, shape):
    quantizer = calibrated(torch.ones(2, 3), torch.zeros(0, 3), gradient=gradient)
    x = torch.zeros(shape, requires_grad=True)
    quantizer(x).sum().backward()
    assert quantizer.raw_step(8).grad.tolist() == [0.0]


def test_one_dimensional_input_has_no_batch():
    x = sample(7)
    grads = []
    for gradient in ("features", "batch"):
        quantizer = calibrated(x, gradient=gradient)
        quantizer(x).sum().backward()
        grads.append(quantizer.raw_step(8).grad.item())
    assert grads[0] == grads[1]


def test_use_before_calibration_names_the_layer():
    quantizer = InputLSQ("the input of layer stem", WIDTHS)
    assert not quantizer.calibrated
    with pytest.raises(QuantizerError, match="the input of layer stem is not calibrated"):
        quantizer(torch.ones(2))
    quantizer.observe()
    with pytest.raises(QuantizerError, match="the input of layer stem was not reached"):
        quantizer.initialise()
    quantizer(torch.zeros(0, 3))  # a batch without elements tells nothing either
    with pytest.raises(QuantizerError, match="was not reached"):
        quantizer.initialise()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad):
    with pytest.raises(QuantizerError, match="the weight of layer stem: the weights hold values that are not finite"):
        WeightLSQ("the weight of layer stem", WIDTHS, torch.tensor([1.0, bad]))
    with pytest.raises(QuantizerError, match="the input of layer stem: calibration gave activations that are not finite"):
        calibrated(torch.ones(2), torch.tensor([1.0, bad]))


@pytest.mark.parametrize("x", [sample(4, 3), sample(4, 3).abs()], ids=["signed", "unsigned"])
@pytest.mark.parametrize("there", [None, torch.ones(2), -torch.ones(2)], ids=["uncalibrated", "unsigned", "signed"])
def test_state_dict_carries_steps_and_sign(x, there):
    source = calibrated(x)
    target = InputLSQ("copy", WIDTHS) if there is None else calibrated(there)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert target.signed is source.signed
    for bits in (*WIDTHS, 32):
        source.switch(bits)
        target.switch(bits)
        assert torch.equal(target(x), source(x))


def test_an_uncalibrated_state_dict_stays_uncalibrated():
    quantizer = calibrated(torch.ones(2))
    quantizer.load_state_dict(InputLSQ("other", WIDTHS).state_dict())
    assert not quantizer.calibrated
    with pytest.raises(QuantizerError, match="is not calibrated"):
        quantizer(torch.ones(2))


def test_deepcopy_is_independent():
    quantizer = calibrated(sample(4, 3))
    twin = copy.deepcopy(quantizer)
    twin.switch(2)
    nn.init.constant_(twin.raw_step(8), 9.0)
    assert (quantizer.bits, twin.bits) == (8, 2)
    assert quantizer.raw_step(8).item() != 9.0
    assert twin.signed


@pytest.mark.parametrize("make", [lambda w: WeightLSQ("the weight of layer stem", w, sample(4)), lambda w: calibrated(sample(4), widths=w)])
def test_widths(make):
    quantizer = make((2, 8, 32, 4))
    assert quantizer.widths == (8, 4, 2)
    assert quantizer.bits == 8  # the widest is active first
    assert [name for name, _ in quantizer.named_parameters()] == ["step_8", "step_4", "step_2"]
    with pytest.raises(QuantizerError, match="of layer stem has no step size for 3 bits; it knows 8, 4, 2"):
        quantizer.switch(3)
    assert quantizer.bits == 8
    x = 100 * sample(3)
    quantizer.switch(32)
    assert quantizer(x) is x
    alone = make((32,))
    assert alone(x) is x
    assert list(alone.parameters()) == []
    with pytest.raises(QuantizerError, match="no step size for 8 bits; it knows none"):
        alone.switch(8)


def test_a_step_that_training_drove_below_zero_is_used_as_the_floor():
    quantizer = WeightLSQ("w", (4,), sample(4))
    nn.init.constant_(quantizer.raw_step(4), -1.0)
    assert quantizer.step.item() == MIN_STEP
    assert bool(torch.isfinite(quantizer(sample(4))).all())


def test_is_step_size():
    vector, matrix = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 3))
    assert is_step_size("stem.weight_quantizer.step_4", vector)
    assert is_step_size("step_2", vector)
    assert not is_step_size("stem.weight_quantizer.step_4", matrix)
    assert not is_step_size("stem.bias", vector)
    assert not is_step_size("step_embedding", vector)
    assert not is_step_size("step_4.bias", vector)
