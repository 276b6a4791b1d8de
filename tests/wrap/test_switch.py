import pytest
import torch
from torch import nn

from bitalloc.choices import search_space
from bitalloc.errors import PolicyError, QuantizerError
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import active_bits, calibrate, prepare_joint, quantize, switch
from bitalloc.wrap.describe import describe

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CHOICES = [Bits(weight, act) for weight in (8, 4, 2) for act in (6, 3)]


def joint_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3))
    description = describe(model, X)
    joint = prepare_joint(model, search_space(description.layers, (8, 4, 2), (6, 3)), description).eval()
    calibrate(joint, [X])
    return model.eval(), joint


@pytest.mark.parametrize("bits", CHOICES, ids=str)
def test_a_switched_model_computes_what_a_model_quantized_at_these_widths_does(bits):
    model, joint = joint_model()
    policy = Policy.uniform(describe(model, X).layers, bits, {"0": Bits(4, 6)})
    switch(joint, policy.bits)
    assert active_bits(joint) == dict(policy.bits)
    assert torch.equal(joint(X), quantize(model, policy, calibration=[X])(X))


def test_there_and_back():
    _, joint = joint_model()
    before = joint(X)
    switch(joint, {"0": Bits(2, 3), "2": Bits(2, 3)})
    assert not torch.equal(joint(X), before)
    switch(joint, {"0": Bits(8, 6), "2": Bits(8, 6)})
    assert torch.equal(joint(X), before)


def test_layers_and_batch_norms_that_are_not_named_keep_their_widths():
    _, joint = joint_model()
    switch(joint, {"2": Bits(2, 3)})
    assert active_bits(joint) == {"0": Bits(8, 6), "2": Bits(2, 3)}
    assert joint[3].active == 2
    switch(joint, {"0": Bits(4, 3)})
    assert active_bits(joint) == {"0": Bits(4, 3), "2": Bits(2, 3)}
    assert joint[3].active == 2


def test_switching_to_floating_point_and_a_plain_layer():
    model, joint = joint_model()
    switch(joint, {"0": Bits(32, 32), "2": Bits(32, 32)})
    assert torch.equal(joint(X), model(X))
    plain = quantize(model, Policy.uniform(describe(model, X).layers, Bits(4, 4), {"0": Bits(32, 32)}), calibration=[X])
    switch(plain, {"0": Bits(32, 32), "2": Bits(4, 4)})
    with pytest.raises(PolicyError, match="cannot switch layer '0' to w4a4: the model has no quantized layer of that name"):
        switch(plain, {"0": Bits(4, 4)})


def test_bad_names_and_widths():
    _, joint = joint_model()
    with pytest.raises(PolicyError, match="cannot switch layer 'tail' to w8a8"):
        switch(joint, {"tail": Bits(8, 8)})
    with pytest.raises(PolicyError, match="cannot switch layer 'tail' to w32a32"):
        switch(joint, {"tail": Bits(32, 32)})
    with pytest.raises(PolicyError, match="cannot switch layer '1' to w8a8"):
        switch(joint, {"1": Bits(8, 8)})
    with pytest.raises(QuantizerError, match="the weight of layer 2 has no step size for 3 bits; it knows 8, 4, 2"):
        switch(joint, {"2": Bits(3, 3)})
    with pytest.raises(QuantizerError, match="the input of layer 2 has no step size for 8 bits; it knows 6, 3"):
        switch(joint, {"2": Bits(8, 8)})
