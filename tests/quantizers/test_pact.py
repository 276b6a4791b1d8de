import pytest
import torch

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import InputPACT, WeightPACT, is_clip_range

WIDTHS = (8, 4, 3, 2)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(x, grid="auto", start=6.0):
    quantizer = InputPACT("the input of layer stem", WIDTHS, grid, start)
    quantizer.observe()
    assert quantizer(x) is x  # passed through meanwhile
    quantizer.initialise()
    quantizer.forget()
    return quantizer


FAMILY = {
    "weight per tensor": lambda x: WeightPACT("w", WIDTHS),
    "weight per channel": lambda x: WeightPACT("w", WIDTHS, 0),
    "input": calibrated,
    "input from the data": lambda x: calibrated(x, start=None),
    "signed input": lambda x: calibrated(x, "signed"),
    "unsigned input": lambda x: calibrated(x, "unsigned"),
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
widths = pytest.mark.parametrize("bits", WIDTHS)


@pytest.mark.parametrize("member", FAMILY.values(), ids=list(FAMILY))
@pytest.mark.parametrize("x", INPUTS.values(), ids=list(INPUTS))
@widths
def test_properties_of_every_quantizer(member, x, bits):
    quantizer = member(x)
    quantizer.switch(bits)
    leaf = x.clone().requires_grad_()
    out = quantizer(leaf)
    assert out.shape == x.shape
    assert torch.equal(quantizer(out), out)
    per_channel = getattr(quantizer, "channel_axis", None) is not None
    assert all(len(row.unique()) <= 2**bits for row in (out.detach().flatten(1) if per_channel else out.detach().reshape(1, -1)))
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(leaf.grad).all())
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in quantizer.parameters())
    quantizer.switch(32)
    assert quantizer(x) is x


@pytest.mark.parametrize("member", [FAMILY["weight per tensor"], FAMILY["input"], FAMILY["unsigned input"]])
@widths
def test_monotone(member, bits):
    quantizer = member(sample(200))
    quantizer.switch(bits)
    assert bool((quantizer((4 * sample(200)).sort().values).diff() >= 0).all())


@widths
def test_input_levels_and_gradients_behind_a_relu(bits):
    x = torch.tensor([0.0, 0.1, 0.9, 1.5, 2.0, 2.7], dtype=torch.float64).float().requires_grad_()
    quantizer = calibrated(x.detach(), start=2.0)
    quantizer.switch(bits)
    step = 2.0 / (2**bits - 1)
    out = quantizer(x)
    expected = [step * round(min(max(value, 0.0), 2.0) / step) for value in x.tolist()]
    assert out.tolist() == pytest.approx(expected, abs=1e-6)
    incoming = torch.tensor([1.0, 2, 3, 4, 5, 6])
    out.backward(incoming)
    assert x.grad.tolist() == [0, 2, 3, 4, 0, 0]  # inside (0, r)
    assert quantizer.clip_range.grad.tolist() == [11]  # where x >= r


@widths
def test_signed_input_is_clipped_on_both_sides(bits):
    x = torch.tensor([-3.0, -1.03, 0.4, 1.1, 2.0, 5.0], requires_grad=True)
    quantizer = calibrated(x.detach(), start=2.0)
    quantizer.switch(bits)
    high = 2 ** (bits - 1) - 1
    assert quantizer.levels == (-high, high)
    out = quantizer(x)
    assert out.tolist() == pytest.approx([2 / high * round(min(max(v, -2), 2) * high / 2) for v in x.tolist()], abs=1e-6)
    out.backward(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert x.grad.tolist() == [0, 2, 3, 4, 0, 0]
    assert quantizer.clip_range.grad.tolist() == [10]  # 5 + 6 above, less 1 below


@widths
def test_weights_reach_from_their_largest_magnitude_to_its_negative(bits):
    weight = torch.tensor([[0.3, -0.8], [0.05, 0.5]], requires_grad=True)
    high = 2 ** (bits - 1) - 1
    quantizer = WeightPACT("w", WIDTHS)
    quantizer.switch(bits)
    out = quantizer(weight)
    assert out.flatten().tolist() == pytest.approx([0.8 / high * round(v * high / 0.8) for v in weight.flatten().tolist()], abs=1e-6)
    incoming = sample(2, 2)
    out.backward(incoming)
    assert torch.equal(weight.grad, incoming)


@widths
@pytest.mark.parametrize("axis", [None, 0])
def test_rows_of_a_table_are_those_of_the_quantized_table(bits, axis):
    table, index = sample(7, 4), torch.tensor([[0, 3], [6, 3]])
    quantizer = WeightPACT("w", WIDTHS, axis)
    quantizer.switch(bits)
    assert torch.equal(quantizer.rows(table[index], index, table), quantizer(table)[index])


def test_the_sign_survives_a_checkpoint():
    quantizer = calibrated(sample(20))
    other = InputPACT("x", WIDTHS)
    with pytest.raises(QuantizerError, match="not calibrated"):
        other(sample(3))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(sample(9)), quantizer(sample(9)))


def test_a_range_at_or_below_zero_can_grow_again():
    quantizer = calibrated(sample(20).abs())
    with torch.no_grad():
        quantizer.clip_range.fill_(-1.0)
    x = sample(20).abs()
    (-quantizer(x).sum()).backward()
    assert quantizer.clip_range.grad.item() < 0  # descent makes it larger


def test_the_range_is_found_by_name():
    assert [name for name, parameter in calibrated(sample(3)).named_parameters() if is_clip_range(name, parameter)] == ["clip_range"]


@pytest.mark.parametrize(("arguments", "message"), [(("asymmetric",), "no zero point"), (("auto", -1.0), "starts at -1.0")])
def test_what_pact_cannot_be(arguments, message):
    with pytest.raises(QuantizerError, match=message):
        InputPACT("the input of layer a", WIDTHS, *arguments)


@pytest.mark.parametrize("batches", [(), (torch.zeros(0, 3),), (torch.tensor([float("nan")]),)])
def test_calibration_needs_sound_values(batches):
    quantizer = InputPACT("the input of layer a", WIDTHS)
    quantizer.observe()
    for batch in batches:
        quantizer(batch)
    with pytest.raises(QuantizerError, match="the input of layer a"):
        quantizer.initialise()
