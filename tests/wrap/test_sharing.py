"""One quantizer for a tensor that several layers read, and one for a weight that several layers hold."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bitalloc.errors import PolicyError, QuantizerError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import Bits, Policy
from bitalloc.space import Candidates, SearchSpace
from bitalloc.wrap import (
    QuantizerSettings,
    active_bits,
    calibrate,
    float_state_dict,
    inherit,
    prepare_joint,
    quantize,
    quantized_layers,
    switch,
)

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SHAPES = {"q": (4, 4), "k": (4, 4), "out": (3, 4)}


class Branches(nn.Module):
    """Two layers read the input, one their product."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.norm(self.q(x) * self.k(x)))


def branches():
    torch.manual_seed(0)
    return Branches().eval()


def policy(bits=None, shared=(("q", "k"),)):
    bits = {"q": "w4a4", "k": "w2a4", "out": "w4a8"} if bits is None else bits
    return Policy({name: Bits.parse(text) for name, text in bits.items()}, SHAPES, {}, shared)


def space(act=(8, 4)):
    return SearchSpace(dict.fromkeys(SHAPES, Candidates((8, 4), act)), (), (), (("q", "k"),))


def description():
    layers = tuple(LayerInfo(name, "linear", shape, 16, 4, shape[0]) for name, shape in SHAPES.items())
    return Description(layers, (), {"norm": "k"}, ("q", "k"), ("out",))


def test_layers_that_read_one_tensor_have_one_quantizer():
    quantized = quantize(branches(), policy(), calibration=[X])
    assert quantized.q.input_quantizer is quantized.k.input_quantizer
    assert quantized.q.input_quantizer.name == "the input of layers q, k"
    assert [key for key in quantized.state_dict() if "input_quantizer.step" in key] == [
        "q.input_quantizer.step_4",
        "out.input_quantizer.step_8",
    ]
    assert sum(name.endswith("step_4") and "input" in name for name, _ in quantized.named_parameters()) == 1
    assert set(quantized_layers(quantized)) == set(SHAPES)


def test_the_same_numbers_as_with_a_quantizer_each():
    together, apart = (quantize(branches(), policy(shared=shared), calibration=[X]) for shared in ((("q", "k"),), ()))
    assert torch.equal(together(X), apart(X))
    for model in (together, apart):
        model(X).square().sum().backward()
    steps = [apart.q.input_quantizer.step_4.grad, apart.k.input_quantizer.step_4.grad]
    torch.testing.assert_close(together.q.input_quantizer.step_4.grad, steps[0] + steps[1])


def test_copies_pickles_and_casts_share_too():
    quantized = quantize(branches(), policy(), calibration=[X])
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), copy.deepcopy(quantized).to(torch.float64)):
        assert twin.q.input_quantizer is twin.k.input_quantizer
        assert twin.q.input_quantizer is not quantized.q.input_quantizer
    assert twin(X.double()).dtype == torch.float64
    torch.testing.assert_close(twin(X.double()).float(), quantized(X))


def test_layers_that_share_are_switched_together():
    joint = prepare_joint(branches(), space(), description())
    calibrate(joint, [X])
    with pytest.raises(PolicyError, match="layers q and k share a quantizer and cannot have 8 and 4 bits"):
        switch(joint, {"q": Bits(8, 8), "k": Bits(8, 4)})
    switch(joint, {"q": Bits(4, 4), "k": Bits(8, 4)})
    assert active_bits(joint) == {"q": Bits(4, 4), "k": Bits(8, 4), "out": Bits(8, 8)}


def test_pairs_that_differ_start_at_the_widest_activation():
    allowed = {"q": {"w8a4", "w4a8"}, "k": {"w8a8", "w4a4"}, "out": {"w8a8"}}
    candidates = {name: Candidates((8, 4), (8, 4), frozenset(map(Bits.parse, pairs))) for name, pairs in allowed.items()}
    joint = prepare_joint(branches(), SearchSpace(candidates, (), (), (("q", "k"),)), description())
    assert active_bits(joint) == {"q": Bits(8, 8), "k": Bits(8, 8), "out": Bits(8, 8)}


def test_inheriting_from_a_joint_model_that_shares_more_or_less():
    joint = prepare_joint(branches(), space(), description())
    calibrate(joint, [X])
    with torch.no_grad():
        joint.q.input_quantizer.step_4.mul_(1.5)
    bits = {"q": "w4a4", "k": "w8a4", "out": "w4a8"}
    for shared in ((("q", "k"),), ()):
        quantized = quantize(branches(), policy(bits, shared))
        inherit(quantized, joint)
        switch(joint, active_bits(quantized))
        assert torch.equal(quantized.eval()(X), joint.eval()(X))


def test_a_joint_model_gives_float_weights_back():
    model = branches()
    joint = prepare_joint(model, space(), description())
    state = float_state_dict(joint)
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)


def test_a_layer_of_a_group_that_stays_in_floating_point():
    bits = {"q": "w4a32", "k": "w32a32", "out": "w4a8"}
    quantized = quantize(branches(), policy(bits), calibration=[X])
    assert type(quantized.k) is nn.Linear


class Tied(nn.Module):
    """A language model whose output layer has the weights of its table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.table(ids))))


IDS = torch.tensor([[1, 2, 2], [0, 5, 1]])


def tied_policy(table="w4a32", head="w4a8"):
    shapes = {"table": (6, 4), "body": (4, 4), "head": (6, 4)}
    bits = {"table": table, "body": "w4a4", "head": head}
    return Policy({name: Bits.parse(text) for name, text in bits.items() if text}, {n: s for n, s in shapes.items() if bits[n]})


@pytest.mark.parametrize("per_channel", [False, True])
def test_tied_weights_have_one_quantizer(per_channel):
    torch.manual_seed(0)
    model = Tied()
    quantized = quantize(model, tied_policy(), calibration=[IDS], settings=QuantizerSettings(per_channel=per_channel))
    assert quantized.head.weight is quantized.table.weight
    assert quantized.head.weight_quantizer is quantized.table.weight_quantizer
    assert quantized.table.weight_quantizer.name == "the weight of layers table, head"
    weight = quantized.table.weight_quantizer(model.table.weight)
    hidden = torch.relu(quantized.body(weight[IDS]))
    torch.testing.assert_close(quantized(IDS), quantized.head.input_quantizer(hidden) @ weight.T)
    quantized(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in quantized.parameters())
    result = quantized.load_state_dict(model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert list(float_state_dict(quantized)) == list(model.state_dict())


def test_tied_weights_need_one_width():
    with pytest.raises(PolicyError, match="one weight width, and have: table w8a32, head w4a8"):
        quantize(Tied(), tied_policy(table="w8a32"))
    quantized = quantize(Tied(), tied_policy(table=None), calibration=[IDS])
    assert type(quantized.table) is nn.Embedding
    assert set(quantized_layers(quantized)) == {"body", "head"}


def test_grids_by_pattern():
    settings = QuantizerSettings(act_grids={"*": "signed", "out": "asymmetric"})
    quantized = quantize(branches(), policy(), calibration=[X.abs()], settings=settings)
    assert {name: layer.input_quantizer.grid for name, layer in quantized_layers(quantized).items()} == {
        "q": "signed",
        "k": "signed",
        "out": "asymmetric",
    }
    assert quantized.q.input_quantizer.levels == (-8, 7)
    assert settings.to_json()["act_grids"] == {"*": "signed", "out": "asymmetric"}
    with pytest.raises(Exception, match="the pattern 'head' matches no layer"):
        quantize(branches(), policy(), settings=QuantizerSettings(act_grids={"head": "signed"}))


def test_a_shared_quantizer_is_named_when_it_is_not_calibrated():
    with pytest.raises(QuantizerError, match="the input of layers q, k is not calibrated"):
        quantize(branches(), policy())(X)
