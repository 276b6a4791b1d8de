import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bitalloc.errors import ExportError, QuantizerError
from bitalloc.export import DeployedLayer, deploy
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import prepare_joint, quantize, quantized_layers, switch
from bitalloc.wrap.describe import describe

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, groups=2), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, dilation=2), (3, 4, 8, 8)),
    "conv2d reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (3, 4, 8, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (3, 4, 5, 5)),
    "transposed grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), (3, 4, 5)),
    "linear": (nn.Linear(12, 5), (3, 12)),
    "linear on sequences": (nn.Linear(12, 5), (3, 7, 12)),
    "linear without bias": (nn.Linear(12, 5, bias=False), (3, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", ["w8a8", "w2a3", "w5a32", "w32a4"])
def test_a_deployed_layer_equals_the_quantized_one_up_to_the_rounding_of_the_bias(name, bits, quantized):
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    model, _ = quantized(nn.Sequential(copy.deepcopy(layer)), x, bits)
    deployed = deploy(model, x).model
    with torch.no_grad():
        expected, found = model(x), deployed(x)
    allowed = torch.tensor(1e-5)
    if layer.bias is not None and hasattr(deployed[0], "bias_codes"):
        allowed = allowed + deployed[0].output_scale.max() / 2
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= allowed


@given(st.sampled_from(range(2, 9)), st.sampled_from(range(2, 9)), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_output_is_the_exact_integer_sum_times_the_scale(weight_bits, act_bits, signed, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 6, 6, generator=random)
    x = x if signed else x.abs()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    policy = Policy({"0": Bits(weight_bits, act_bits)}, {"0": (4, 3, 3, 3)})
    layer = deploy(quantize(net, policy, calibration=[x]), x).model[0]
    low, high = (-(2 ** (act_bits - 1)), 2 ** (act_bits - 1) - 1) if signed else (0, 2**act_bits - 1)
    levels = torch.round(x / layer.input_scale).clamp(low, high).long()
    patches = F.unfold(levels.double(), 3, padding=1).long()
    sums = layer.codes.reshape(4, -1).long() @ patches + layer.bias_codes.reshape(-1, 1)
    expected = (sums.float() * layer.output_scale.reshape(-1, 1)).reshape(2, 4, 6, 6)
    assert torch.equal(layer(x), expected)
    assert layer.codes.dtype == torch.int8
    assert -(2 ** (weight_bits - 1)) <= int(layer.codes.min())
    assert int(layer.codes.max()) <= 2 ** (weight_bits - 1) - 1


def test_sums_that_float32_cannot_hold_are_exact(quantized):
    x = torch.full((1, 4096), 255.0)
    model, _ = quantized(nn.Sequential(nn.Linear(4096, 1)), x, "w8a8")
    with torch.no_grad():
        model[0].weight.fill_(127.0)
        model[0].weight[0, 0] = 126.0
        model[0].bias.fill_(1.0)
        model[0].weight_quantizer.step_8.fill_(1.0)
        model[0].input_quantizer.step_8.fill_(1.0)
    layer = deploy(model, x).model[0]
    total = 4096 * 127 * 255 - 255 + 1
    assert total > 2**24
    assert float(layer(x)) == float(torch.tensor(float(total)))


def test_a_channel_of_zero_weights_still_gives_its_bias(quantized):
    x = torch.randn(4, 3)
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight[0] = 0.0
        net.bias.copy_(torch.tensor([1e6, 0.5]))
    model, _ = quantized(nn.Sequential(net), x, "w4a4")
    out = deploy(model, x).model(x)
    assert torch.allclose(out[:, 0], torch.full((4,), 1e6))


def test_a_bias_that_is_huge_next_to_the_weights_keeps_its_value(quantized):
    x = torch.randn(4, 3)
    model, _ = quantized(nn.Sequential(nn.Linear(3, 2)), x, "w4a4")
    with torch.no_grad():
        model[0].bias.fill_(1e6)
        model[0].weight.mul_(1e-6)
        model[0].weight_quantizer.step_4.mul_(1e-6)
    deployed = deploy(model, x).model
    assert int(deployed[0].bias_codes.abs().max()) <= 2**30
    assert torch.allclose(deployed(x), model(x))


def test_the_model_is_left_as_it_was_and_the_copy_has_no_quantizer(quantized):
    x = torch.randn(4, 3, 8, 8)
    model, description = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)), x, "w4a4")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deployed = deploy(model, x, description.producers).model
    assert model.training
    assert not deployed.training
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not quantized_layers(deployed)
    assert not list(deployed.parameters())


def test_a_shared_layer_becomes_one_deployed_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.other = self.one

        def forward(self, x):
            return self.other(torch.relu(self.one(x)))

    net, x = Twice(), torch.randn(8, 4)
    model = quantize(net, Policy({"one": Bits(8, 8)}, {"one": (4, 4)}), calibration=[x])
    deployed = deploy(model, x).model
    assert isinstance(deployed.one, DeployedLayer)
    assert deployed.one is deployed.other
    assert torch.allclose(deployed(x), model(x), atol=0.02)


def test_a_switchable_batch_norm_is_deployed_with_its_active_branch():
    from bitalloc.choices import search_space

    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(4, 3, 8, 8)
    description = describe(net, x)
    joint = prepare_joint(net, search_space(description.layers, (8, 4)), description).eval()
    from bitalloc.wrap import calibrate

    calibrate(joint, [x])
    with torch.no_grad():
        for index, branch in enumerate(joint[3].branches):
            branch.bias.fill_(10.0 * index)
    for bits in (8, 4):
        switch(joint, {"0": Bits(bits, bits), "2": Bits(bits, bits)})
        done = deploy(joint, x, description.producers)
        assert done.folded == {"3": "2"}
        assert torch.allclose(done.model(x), joint(x), atol=0.1)


def test_a_float_model_is_refused_with_advice():
    with pytest.raises(ExportError, match="no quantized layer"):
        deploy(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))


def test_an_uncalibrated_model_is_refused():
    model = quantize(nn.Sequential(nn.Linear(2, 2)), Policy({"0": Bits(4, 4)}, {"0": (2, 2)}))
    with pytest.raises(QuantizerError, match="not calibrated"):
        deploy(model, torch.zeros(1, 2))
