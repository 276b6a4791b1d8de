import math

import pytest
import torch
from torch import nn

from bitalloc.errors import QuantizerError
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import active_bits, calibrate, quantize, quantized_layers, run_on_inputs
from bitalloc.wrap.describe import describe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(4, 2)
        self.use_second = True

    def forward(self, x):
        x = self.drop(torch.relu(self.norm(self.first(x))))
        return self.second(x) if self.use_second else x


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, generator=generator) for size in range(4, 4 + count)]


def uncalibrated(bits="w2a3"):
    torch.manual_seed(0)
    model = Net()
    layers = describe(model, batches()[0]).layers
    return model, quantize(model, Policy.uniform(layers, Bits.parse(bits)))


def steps(model):
    return {name: layer.input_quantizer.step_3.item() for name, layer in quantized_layers(model).items()}


def test_steps_and_signs_come_from_the_float_network_in_eval_mode():
    model, quantized = uncalibrated()
    calibrate(quantized, batches())
    model.eval()
    inputs = torch.cat(batches())
    hidden = torch.relu(model.norm(model.first(inputs)))
    first, second = quantized.first.input_quantizer, quantized.second.input_quantizer
    assert (first.signed, second.signed) == (True, False)
    assert first.step_3.item() == pytest.approx(2 * inputs.abs().mean().item() / math.sqrt(3), rel=1e-5)
    assert second.step_3.item() == pytest.approx(2 * hidden.mean().item() / math.sqrt(7), rel=1e-5)


def test_widths_and_earlier_calibration_make_no_difference():
    _, quantized = uncalibrated()
    calibrate(quantized, [100 * batch for batch in batches()])
    calibrate(quantized, batches())
    _, other = uncalibrated("w8a3")
    calibrate(other, batches())
    assert steps(quantized) == steps(other)


def test_nothing_else_changes():
    _, quantized = uncalibrated()
    quantized.train()
    quantized.drop.eval()
    modes = {name: module.training for name, module in quantized.named_modules()}
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    calibrate(quantized, batches())
    assert {name: module.training for name, module in quantized.named_modules()} == modes
    assert active_bits(quantized) == {"first": Bits(2, 3), "second": Bits(2, 3)}
    changed = {name for name, value in quantized.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{layer}.input_quantizer.{part}" for layer in ("first", "second") for part in ("step_3", "zero_point_3")}
    assert all(parameter.grad is None for parameter in quantized.parameters())


def test_all_is_put_back_when_the_forward_pass_fails():
    _, quantized = uncalibrated()
    calibrate(quantized, batches())
    quantized.train()
    quantized.drop.eval()
    expected = steps(quantized)
    quantized.norm.eval()
    out = quantized(batches()[0])

    def failing(model, batch):
        assert active_bits(model) == {"first": Bits(32, 3), "second": Bits(32, 3)}
        assert not model.training
        model(batch)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        calibrate(quantized, [100 * batch for batch in batches()], failing)
    assert active_bits(quantized) == {"first": Bits(2, 3), "second": Bits(2, 3)}
    assert (quantized.training, quantized.drop.training) == (True, False)
    assert steps(quantized) == expected
    assert torch.equal(quantized(batches()[0]), out)  # quantizing again, no longer observing


def test_no_batch():
    _, quantized = uncalibrated()
    exhausted = iter(batches())
    list(exhausted)
    for nothing in ([], exhausted):
        with pytest.raises(QuantizerError, match="no calibration batch"):
            calibrate(quantized, nothing)
    assert active_bits(quantized)["first"] == Bits(2, 3)


def test_a_layer_that_is_not_reached_is_named():
    _, quantized = uncalibrated()
    quantized.use_second = False
    with pytest.raises(QuantizerError, match="the input of layer second was not reached"):
        calibrate(quantized, batches())


def test_activations_that_are_not_finite_name_the_layer():
    _, quantized = uncalibrated()
    with pytest.raises(QuantizerError, match="the input of layer first: calibration gave activations that are not finite"):
        calibrate(quantized, [torch.full((2, 3), math.nan)])


@pytest.mark.parametrize(
    "wrapped", [lambda x: (x, "labels"), lambda x: [x], lambda x: {"x": x}], ids=["inputs and labels", "list", "keyword arguments"]
)
def test_batches_of_other_forms(wrapped):
    _, quantized = uncalibrated()
    calibrate(quantized, batches())
    _, other = uncalibrated()
    calibrate(other, [wrapped(batch) for batch in batches()])
    assert steps(other) == steps(quantized)


def test_own_forward():
    _, quantized = uncalibrated()
    calibrate(quantized, batches())
    _, other = uncalibrated()
    calibrate(other, [{"image": batch} for batch in batches()], lambda model, batch: model(batch["image"]))
    assert steps(other) == steps(quantized)


def test_run_on_inputs():
    def model(first, second=0):
        return first, second

    assert run_on_inputs(model, 1) == (1, 0)
    assert run_on_inputs(model, (1, 2)) == (1, 0)
    assert run_on_inputs(model, {"first": 1, "second": 2}) == (1, 2)


def test_an_error_within_a_model_that_takes_the_batch_is_its_own():
    class Broken(nn.Module):
        def forward(self, x):
            return x + "one"

    with pytest.raises(TypeError, match="str"):
        run_on_inputs(Broken(), {"x": torch.ones(1)})
