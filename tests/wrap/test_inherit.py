import pytest
import torch
from torch import nn

from bitalloc.choices import search_space
from bitalloc.errors import PolicyError
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import QuantizerSettings, active_bits, calibrate, inherit, prepare_joint, quantize, switch
from bitalloc.wrap.describe import describe

X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3)
        self.stem_norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3)
        self.body_norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.body_norm(self.body(x)))
        return self.head(x.mean((2, 3)))


def trained_joint(weight=(8, 4, 2), act=(8, 4, 2), settings=None, **pins):
    """As after a joint training: every tensor of it, each branch and step of its own, has moved."""
    torch.manual_seed(0)
    model = Net()
    description = describe(model, X)
    space = search_space(description.layers, weight, act, pins=pins or {"stem": Bits(8, 8)})
    joint = prepare_joint(model, space, description, settings)
    calibrate(joint, [X])
    with torch.no_grad():
        for tensor in joint.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape))
    return model, joint.eval(), description.layers


POLICIES = [
    {"body": "w2a2", "head": "w8a8"},
    {"body": "w8a8", "head": "w4a2"},
    {"body": "w4a4", "head": "w2a8"},
    {"body": "w8a2", "head": "w4a4"},
    {"body": "w8a4", "head": "w2a2"},
]


def quantized_like(model, layers, bits, **arguments):
    pins = {"stem": Bits(8, 8), **{name: Bits.parse(text) for name, text in bits.items()}}
    return quantize(model, Policy.uniform(layers, Bits(8, 8), pins), **arguments).eval()


@pytest.mark.parametrize("bits", POLICIES)
@pytest.mark.parametrize("settings", [None, QuantizerSettings(per_channel=True)])
def test_equal_to_the_joint_model_at_the_same_widths(bits, settings):
    model, joint, layers = trained_joint(settings=settings)
    quantized = quantized_like(model, layers, bits, calibration=[-X.abs()], settings=settings)
    inherit(quantized, joint)
    switch(joint, active_bits(quantized))
    assert torch.equal(quantized(X), joint(X))
    assert not hasattr(quantized.body_norm, "branches")


def test_uncalibrated_quantizers_become_calibrated():
    model, joint, layers = trained_joint()
    quantized = quantized_like(model, layers, POLICIES[0])
    inherit(quantized, joint)
    assert quantized.stem.input_quantizer.signed
    assert not quantized.head.input_quantizer.signed


def test_the_joint_model_is_only_read():
    model, joint, layers = trained_joint()
    before = {name: value.clone() for name, value in joint.state_dict().items()}
    quantized = quantized_like(model, layers, POLICIES[0])
    inherit(quantized, joint)
    for parameter in quantized.parameters():
        nn.init.constant_(parameter, 9.0)
    assert all(torch.equal(value, before[name]) for name, value in joint.state_dict().items())


def test_one_joint_model_serves_several_policies_in_any_order():
    model, joint, layers = trained_joint()
    outputs = {}
    for index in (0, 1, 2, 1, 0):
        quantized = quantized_like(model, layers, POLICIES[index])
        inherit(quantized, joint)
        outputs.setdefault(index, quantized(X))
        assert torch.equal(quantized(X), outputs[index])


def test_layers_that_the_policy_leaves_in_floating_point():
    model, joint, layers = trained_joint(weight=(32, 4), act=(32, 4))
    quantized = quantized_like(model, layers, {"body": "w32a32", "head": "w4a4"})
    inherit(quantized, joint)
    assert type(quantized.body) is nn.Conv2d
    switch(joint, {"stem": Bits(8, 8), "body": Bits(32, 32), "head": Bits(4, 4)})
    assert torch.equal(quantized(X), joint(X))


def test_a_joint_model_of_other_widths_or_another_network():
    model, joint, layers = trained_joint()
    with pytest.raises(PolicyError, match=r"the joint training has no head.weight_quantizer.step_5"):
        inherit(quantized_like(model, layers, {"head": "w5a8"}), joint)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 3))
    fitting = Policy.uniform(describe(other, X).layers, Bits(8, 8))
    with pytest.raises(PolicyError, match=r"the joint training has no 0\."):
        inherit(quantize(other, fitting), joint)
    wider = Net(width=4)
    quantized = quantize(wider, Policy.uniform(describe(wider, X).layers, Bits(8, 8)))
    with pytest.raises(PolicyError, match="the joint training has other shapes of"):
        inherit(quantized, joint)
    per_channel = quantized_like(model, layers, {}, settings=QuantizerSettings(per_channel=True))
    with pytest.raises(PolicyError, match=r"other shapes of body.weight_quantizer.step_8"):
        inherit(per_channel, joint)
