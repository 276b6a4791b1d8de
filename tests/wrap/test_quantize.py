import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from bitalloc.errors import PolicyError, QuantizerError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits, Policy
from bitalloc.quantizers import bounds
from bitalloc.wrap import QuantizedLayer, QuantizerSettings, calibrate, quantize, quantized_layers, switch
from bitalloc.wrap.describe import describe
from bitalloc.wrap.layers import QUANTIZED


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sized(nn.Module):
    """A transposed convolution with an output size that its stride leaves open."""

    def __init__(self, layer, size):
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x):
        return self.layer(x, output_size=self.size)


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), sample(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), sample(2, 4, 9, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), sample(2, 2, 4, 5, 3)),
    "positive input": (lambda: nn.Conv2d(4, 6, 3), sample(2, 4, 5, 5).abs()),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), sample(2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), sample(2, 4, 5, 5)),
    "dilated": (lambda: nn.Conv1d(4, 6, 3, dilation=2), sample(2, 4, 9)),
    "reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), sample(2, 4, 5, 5)),
    "circular": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), sample(2, 4, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2, dilation=2), sample(2, 4, 5)),
    "transposed 2d, sized": (lambda: Sized(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2), [13, 14]), sample(2, 4, 5, 5)),
    "transposed 3d, grouped": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2, dilation=2, padding=1), sample(2, 4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(5, 3), sample(4, 5)),
    "linear on tokens": (lambda: nn.Linear(5, 3, bias=False), sample(2, 4, 5)),
}
kinds = pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=list(LAYERS))


def built(make):
    torch.manual_seed(1)
    return make().eval()


def policy_for(model, x, bits, pins=None):
    pins = {name: Bits.parse(pin) for name, pin in (pins or {}).items()}
    return Policy.uniform(describe(model, x).layers, Bits.parse(bits), pins)


def on_grid(x, step, bits, signed):
    low, high = bounds(bits, signed)
    return torch.clamp(x / step, low, high).round() * step


def by_hand(layer, x, bits):
    """The float layer with a quantized copy of its weight, on the quantized input."""
    inner = layer.layer if isinstance(layer, Sized) else layer
    twin = copy.deepcopy(layer)
    weight = inner.weight.detach()
    reach = max(abs(weight.mean() - 3 * weight.std(correction=0)), abs(weight.mean() + 3 * weight.std(correction=0)))
    signed = bool((x < 0).any())
    step = 2 * x.double().abs().mean() / math.sqrt(bounds(bits.act, signed)[1])
    with torch.no_grad():
        target = twin.layer if isinstance(twin, Sized) else twin
        target.weight.copy_(on_grid(weight, reach / 2 ** (bits.weight - 1), bits.weight, signed=True))
        return twin(on_grid(x, step.float(), bits.act, signed))


class Net(nn.Module):
    """Has all that makes wrapping hard: a layer called twice, a batch norm, tied names, one layer never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.shared
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.shared(x))
        return self.head(torch.relu(self.again(x)).mean((2, 3)))


def net():
    torch.manual_seed(2)
    model = Net().eval()
    model.norm.running_mean.normal_()
    return model


X = sample(3, 1, 6, 6)


def test_a_quantized_layer_is_still_of_the_type_that_it_replaces():
    for kind, twin in QUANTIZED.items():
        assert issubclass(twin, kind)
        assert issubclass(twin, QuantizedLayer)


@kinds
def test_at_32_bits_equal_to_the_float_model_bit_for_bit(make, x):
    model = built(make)
    expected = model(x)
    quantized = quantize(model, policy_for(model, x, "w8a8"), calibration=[x])
    assert not torch.equal(quantized(x), expected)
    switch(quantized, dict.fromkeys(quantized_layers(quantized), Bits(32, 32)))
    assert torch.equal(quantized(x), expected)
    assert torch.equal(quantize(model, policy_for(model, x, "w32a32"))(x), expected)


@kinds
@pytest.mark.parametrize("bits", ["w8a8", "w4a3", "w2a5"])
def test_at_low_bits_equal_to_fake_quantization_by_hand(make, x, bits):
    model = built(make)
    quantized = quantize(model, policy_for(model, x, bits), calibration=[x])
    torch.testing.assert_close(quantized(x), by_hand(model, x, Bits.parse(bits)), rtol=1e-5, atol=1e-6)


@kinds
def test_gradients_reach_the_weight_both_steps_and_the_input(make, x):
    model = built(make)
    quantized = quantize(model, policy_for(model, x, "w4a4"), calibration=[x])
    leaf = x.clone().requires_grad_()
    quantized(leaf).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in quantized.parameters())
    assert bool(leaf.grad.any())


@pytest.mark.parametrize(("bits", "quantized_side"), [("w3a32", "weight"), ("w32a3", "input")])
def test_one_side_alone(bits, quantized_side):
    model = nn.Sequential(nn.Linear(5, 3, bias=False))
    x = sample(7, 5)
    quantized = quantize(model, policy_for(model, x, bits), calibration=[x])
    layer = quantized[0]
    weight, inputs = layer.weight, x
    if quantized_side == "weight":
        weight = on_grid(weight, layer.weight_quantizer.step, 3, signed=True)
    else:
        inputs = on_grid(x, layer.input_quantizer.step, 3, signed=True)
    torch.testing.assert_close(quantized(x), inputs @ weight.T)
    assert sum(name.rpartition(".")[2].startswith("step_") for name, _ in layer.named_parameters()) == 1


def test_the_float_model_stays_as_it_is():
    model = net().train()
    model.norm.eval()
    model.shared.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    kinds_before = [type(module) for module in model.modules()]
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    quantized = quantize(model, policy_for(model, X, "w2a2"), calibration=[X, X])
    for parameter in quantized.parameters():
        nn.init.constant_(parameter, 7.0)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds_before
    assert {name: list(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert (model.training, model.norm.training) == (True, False)
    modes = {name: module.training for name, module in quantized.named_modules()}
    assert modes.pop("norm") is False
    assert all(modes.values())
    assert not any(module.training for module in quantize(model.eval(), policy_for(model, X, "w2a2")).modules())


def test_frozen_weights_stay_frozen():
    model = net()
    model.stem.weight.requires_grad_(False)
    quantized = quantize(model, policy_for(model, X, "w4a4"))
    assert not quantized.stem.weight.requires_grad
    assert quantized.head.weight.requires_grad
    assert all(parameter.requires_grad for parameter in quantized.stem.weight_quantizer.parameters())


def test_a_shared_layer_stays_one_layer():
    model = net()
    description = describe(model, X)
    assert [(layer.name, layer.calls) for layer in description.layers] == [("stem", 1), ("shared", 2), ("head", 1)]
    quantized = quantize(model, policy_for(model, X, "w4a4"), calibration=[X])
    assert quantized.again is quantized.shared
    inputs = []
    quantized.shared.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    switch(quantized, dict.fromkeys(quantized_layers(quantized), Bits(32, 32)))
    quantized(X)
    values = torch.cat([tensor.flatten() for tensor in inputs])  # the step comes from both calls
    assert quantized.shared.input_quantizer.raw_step(4).item() == pytest.approx(2 * values.abs().mean().item() / math.sqrt(15), rel=1e-5)


class Pickled:
    """A hook that pickle can take along."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, args, output):
        self.calls += 1
        return output + 1


def test_hooks_of_the_float_layer_are_called():
    model = net()
    plain = quantize(model, policy_for(model, X, "w4a4"), calibration=[X])(X)
    model.head.register_forward_hook(Pickled())
    quantized = quantize(model, policy_for(model, X, "w4a4"), calibration=[X])
    torch.testing.assert_close(quantized(X), plain + 1)


def test_deepcopy_and_pickle_of_a_quantized_model():
    model = net()
    model.head.register_forward_hook(Pickled())
    quantized = quantize(model, policy_for(model, X, "w3a4", {"stem": "w8a8", "head": "w32a32"}), calibration=[X])
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(twin(X), quantized(X))
        assert twin.again is twin.shared
        nn.init.zeros_(twin.stem.weight)
        switch(twin, {"shared": Bits(3, 32)})
    assert quantized.shared.input_quantizer.bits == 4
    assert bool(quantized.stem.weight.any())


def test_a_float_state_dict_loads_and_keys_keep_their_names():
    model, other = net(), net()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    quantized = quantize(model, policy_for(model, X, "w4a4"), calibration=[X])
    assert set(model.state_dict()) < set(quantized.state_dict())
    result = quantized.load_state_dict(other.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all("_quantizer." in key for key in result.missing_keys)
    switch(quantized, dict.fromkeys(quantized_layers(quantized), Bits(32, 32)))
    assert torch.equal(quantized(X), other(X))


def test_a_quantized_state_dict_replaces_calibration():
    model = net()
    policy = policy_for(model, X, "w4a4")
    source, target = quantize(model, policy, calibration=[X]), quantize(model, policy)
    with torch.no_grad():
        source.stem.weight_quantizer.step_4.mul_(1.5)
    with pytest.raises(QuantizerError, match="the input of layer stem is not calibrated"):
        target(X)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(target(X), source(X))


def test_the_root_itself_may_be_the_layer():
    model, x = nn.Linear(5, 3), sample(4, 5)
    quantized = quantize(model, policy_for(model, x, "w4a4"), calibration=[x])
    assert type(model) is nn.Linear
    assert isinstance(quantized, QuantizedLayer)


def info(name, shape):
    return LayerInfo(name, "linear", shape, 1, 1, 1)


def policy(**shapes):
    return Policy.uniform([info(name, shape) for name, shape in shapes.items()], Bits(4, 4))


def test_a_policy_of_another_model_names_the_layers():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 4)})
    with pytest.raises(PolicyError, match="no widths for the layers: b"):
        quantize(model, policy(a=(3, 2)))
    with pytest.raises(PolicyError, match="quantizable layers named: c, d"):
        quantize(model, policy(a=(3, 2), b=(4, 3), d=(1, 1), c=(1, 1)))
    with pytest.raises(PolicyError, match=r"weight shapes differ: b \(policy \(4, 4\), model \(4, 3\)\)"):
        quantize(model, policy(a=(3, 2), b=(4, 4)))
    quantize(model, policy(a=(3, 2), b=(4, 3)))


def test_a_policy_moves_to_the_same_network_with_another_head():
    def network(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    small, large = sample(2, 3, 6, 6), sample(2, 3, 12, 12)
    found = policy_for(network(3), small, "w4a4")
    with pytest.raises(PolicyError, match=r"\(3, 4\), model \(5, 4\)\).*policy.transferred"):
        quantize(network(5), found)
    with pytest.raises(PolicyError, match=r"model \(4, 3\)\)\.$"):
        quantize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), policy(**{"0": (5, 3), "1": (2, 4)}))
    target = network(5)
    quantized = quantize(target, found.transferred(describe(target, large)), calibration=[large])
    assert quantized(large).shape == (2, 5)
    assert quantized_layers(quantized).keys() == found.bits.keys()


def test_a_quantized_model_is_not_quantized_again():
    model = net()
    quantized = quantize(model, policy_for(model, X, "w4a4"))
    with pytest.raises(PolicyError, match="head, shared, stem"):
        quantize(quantized, policy_for(model, X, "w4a4"))


def test_layers_that_are_never_called_may_be_left_out_when_the_policy_lists_them():
    model = net()
    model.spare = nn.Linear(2, 2)
    description = describe(model, X)
    fitting = Policy.uniform(description.layers, Bits(4, 4))
    with pytest.raises(PolicyError, match="no widths for the layers: spare"):
        quantize(model, fitting)
    left_out = [entry.name for entry in description.not_counted]
    quantized = quantize(model, Policy(fitting.bits, fitting.weight_shapes, {"not_counted": left_out}), calibration=[X])
    assert type(quantized.spare) is nn.Linear
    assert set(quantized_layers(quantized)) == {"stem", "shared", "head"}


def test_a_layer_with_a_computed_weight_may_be_left_out():
    """As pruning and weight normalisation leave it: ``weight`` is a plain attribute."""
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 4)})
    weight = model["b"].weight
    del model["b"].weight
    model["b"].register_parameter("weight_orig", weight)
    model["b"].weight = weight.detach()
    assert set(quantized_layers(quantize(model, policy(a=(3, 2))))) == {"a"}
    assert set(quantized_layers(quantize(model, policy(a=(3, 2), b=(4, 3))))) == {"a", "b"}


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_that_the_policy_does_not_name_are_left_alone():
    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 2))
    quantized = quantize(model, Policy.uniform([info("1", (2, 4))], Bits(4, 4)))
    assert type(quantized[0]) is Doubled


def test_a_layer_at_32_bits_stays_a_plain_layer():
    model = net()
    quantized = quantize(model, policy_for(model, X, "w4a4", {"head": "w32a32"}))
    assert type(quantized.head) is nn.Linear
    assert list(quantized.head.state_dict()) == ["weight", "bias"]
    assert set(quantized_layers(quantized)) == {"stem", "shared"}


@pytest.mark.parametrize(("name", "axis_size"), [("conv2d", 6), ("grouped", 6), ("transposed 1d", 3), ("linear", 3)])
def test_one_step_an_output_channel(name, axis_size):
    make, x = LAYERS[name]
    model = built(make)
    quantized = quantize(model, policy_for(model, x, "w3a8"), calibration=[x], settings=QuantizerSettings(per_channel=True))
    (layer,) = quantized_layers(quantized).values()
    axis = 1 if name.startswith("transposed") else 0
    assert layer.weight_quantizer.step.shape == (axis_size,)
    for channel in range(axis_size):
        part = layer.weight.detach().select(axis, channel)
        reach = max(abs(part.mean() - 3 * part.std(correction=0)), abs(part.mean() + 3 * part.std(correction=0)))
        assert layer.weight_quantizer.step[channel].item() == pytest.approx(reach.item() / 4, rel=1e-5)
    assert layer.input_quantizer.step.shape == (1,)
    assert quantized(x).shape == model(x).shape


def test_the_gradient_scale_of_activations_is_a_setting():
    model, x = nn.Linear(5, 3), sample(9, 5)
    gradients = []
    for kind in ("features", "batch"):
        quantized = quantize(model, policy_for(model, x, "w8a4"), calibration=[x], settings=QuantizerSettings(act_gradient=kind))
        quantized(x).square().sum().backward()
        gradients.append(quantized.input_quantizer.step_4.grad.item())
    assert gradients[0] == pytest.approx(3 * gradients[1], rel=1e-5)  # the root of the batch size
    assert QuantizerSettings(True, "batch").to_json() == {"per_channel": True, "act_gradient": "batch", "act_grids": {}}


def test_weights_that_are_not_finite_name_the_layer():
    model = net()
    fitting = policy_for(model, X, "w4a4")
    with torch.no_grad():
        model.shared.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(QuantizerError, match="the weight of layer shared"):
        quantize(model, fitting)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_types(dtype):
    model, x = net(), X.to(dtype)
    fitting = policy_for(model, X, "w8a8")
    expected = model(X).detach()
    quantized = quantize(model.to(dtype), fitting, calibration=[x])
    out = quantized(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    out.float().square().sum().backward()
    for name, parameter in quantized.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype
        assert bool(parameter.grad.isfinite().all()), name


def test_a_quantized_model_can_be_cast_afterwards():
    model = net()
    quantized = quantize(model, policy_for(model, X, "w8a8"), calibration=[X])
    expected = quantized(X)
    assert quantized.to(torch.bfloat16)(X.to(torch.bfloat16)).dtype == torch.bfloat16
    torch.testing.assert_close(quantized(X.to(torch.bfloat16)).float(), expected, rtol=0.05, atol=0.05)


def test_under_autocast():
    model = net()
    quantized = quantize(model, policy_for(model, X, "w8a8"), calibration=[X])
    expected = quantized(X)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantized(X)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_an_empty_batch_passes_as_in_the_float_model():
    model = net()
    quantized = quantize(model, policy_for(model, X, "w4a4"), calibration=[X])
    assert quantized(X[:0]).shape == (0, 3)


def test_calibration_later():
    model = net()
    fitting = policy_for(model, X, "w4a4")
    later = quantize(model, fitting)
    calibrate(later, [X])
    assert torch.equal(later(X), quantize(model, fitting, calibration=[X])(X))
