import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitalloc.choices import search_space
from bitalloc.errors import PolicyError
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace
from bitalloc.wrap import (
    SwitchableBatchNorm,
    active_bits,
    branch_of,
    calibrate,
    prepare_joint,
    quantized_layers,
    switch,
    uniform_passes,
)
from bitalloc.wrap.describe import describe

X = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
widths = st.lists(st.sampled_from((2, 3, 4, 5, 6, 7, 8)), min_size=1, unique=True).map(tuple)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first_norm = nn.BatchNorm2d(2)
        self.stem = nn.Conv2d(2, 3, 3)
        self.stem_norm = nn.BatchNorm2d(3)
        self.body = nn.Conv2d(3, 3, 3)
        self.body_norm = nn.BatchNorm2d(3)
        self.alias = self.body_norm
        self.head = nn.Linear(3, 3)
        self.head_norm = nn.BatchNorm1d(3)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(self.first_norm(x))))
        x = torch.relu(self.body_norm(self.body(x)))
        return self.head_norm(self.head(x.mean((2, 3))))


def parts(pins=("stem",), weight=(8, 4, 2), act=None):
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_mean.normal_()
    description = describe(model, X)
    space = search_space(description.layers, weight, act, pins=dict.fromkeys(pins, Bits(8, 8)))
    return model, space, description


def joint_model(**choices):
    model, space, description = parts(**choices)
    joint = prepare_joint(model, space, description)
    calibrate(joint, [X])
    return joint


def followed(joint):
    return {name: module.follows for name, module in joint.named_modules() if isinstance(module, SwitchableBatchNorm)}


@pytest.mark.parametrize(
    ("weight", "act", "expected"),
    [
        ((6, 5, 4), (6, 5, 4), ["w6a6", "w5a5", "w4a4"]),
        ((2, 8, 4), (2, 4, 8), ["w8a8", "w4a4", "w2a2"]),
        ((8, 4, 2), (8, 3), ["w8a8", "w4a3", "w2a3"]),
        ((4,), (8, 6, 2), ["w4a8", "w4a6", "w4a2"]),
        ((4,), (8,), ["w4a8"]),
    ],
)
def test_uniform_passes(weight, act, expected):
    assert [str(bits) for bits in uniform_passes(Candidates(weight, act))] == expected


@given(widths, widths)
def test_every_candidate_has_a_uniform_pass_and_every_pass_its_own_branch(weight, act):
    passes = uniform_passes(Candidates(weight, act))
    assert {bits.weight for bits in passes} == set(weight)
    assert {bits.act for bits in passes} == set(act)
    assert list(passes) == sorted(passes, key=lambda bits: (-bits.weight, -bits.act))
    assert [branch_of(bits, passes) for bits in passes] == list(range(len(passes)))


@pytest.mark.parametrize(
    ("bits", "branch"),
    [
        ("w8a4", 1),  # as far from w8a8 as from w4a4: the one with fewer bits
        ("w4a8", 1),
        ("w4a2", 2),
        ("w8a2", 2),  # as far from all three
        ("w8a7", 0),
        ("w32a32", 0),
        ("w3a2", 2),
    ],
)
def test_nearest_branch(bits, branch):
    passes = tuple(Bits(width, width) for width in (8, 4, 2))
    assert branch_of(Bits.parse(bits), passes) == branch


def test_branches_are_copies_with_statistics_of_their_own():
    norm = nn.BatchNorm1d(3, momentum=1.0)
    nn.init.normal_(norm.weight)
    passes = (Bits(8, 8), Bits(2, 2))
    switchable = SwitchableBatchNorm(norm, "stem", passes)
    x = torch.randn(6, 3) + 5
    expected = copy.deepcopy(norm).train()(x)
    switchable.switch(Bits(2, 2))
    assert switchable.active == 1
    assert torch.equal(switchable(x), expected)
    torch.testing.assert_close(switchable.branches[1].running_mean, x.mean(0))
    assert switchable.branches[0].running_mean.tolist() == [0, 0, 0]
    assert norm.running_mean.tolist() == [0, 0, 0]
    switchable(x).square().sum().backward()
    assert switchable.branches[0].weight.grad is None
    assert norm.weight.grad is None


def test_batch_norms_follow_the_last_layer_with_a_choice():
    assert followed(joint_model()) == {"body_norm": "body", "head_norm": "head"}
    assert followed(joint_model(pins=("stem", "head"))) == {"body_norm": "body", "head_norm": "body"}
    assert followed(joint_model(pins=("body",))) == {"stem_norm": "stem", "body_norm": "stem", "head_norm": "head"}
    # With nothing to choose before it a batch norm sees the same statistics at every width.
    assert followed(joint_model(pins=("stem", "body"))) == {"head_norm": "head"}


def test_a_second_name_of_a_batch_norm_stays_a_second_name():
    joint = joint_model()
    assert joint.alias is joint.body_norm


def test_one_branch_a_uniform_pass():
    assert len(joint_model().body_norm.branches) == 3
    joint = joint_model(weight=(8, 2), act=(8, 6, 4, 3))
    assert joint.body_norm.passes == (Bits(8, 8), Bits(2, 6), Bits(2, 4), Bits(2, 3))


def test_layers_with_candidates_of_their_own():
    model, space, description = parts()
    own = {**space.candidates, "head": Candidates((4, 2), (6,))}
    joint = prepare_joint(model, SearchSpace(own), description)
    assert joint.head_norm.passes == (Bits(4, 6), Bits(2, 6))
    assert quantized_layers(joint)["head"].weight_quantizer.widths == (4, 2)
    assert quantized_layers(joint)["head"].input_quantizer.widths == (6,)


def test_the_float_model_stays_as_it_is_and_the_copy_starts_at_the_widest():
    model, space, description = parts()
    before = copy.deepcopy(model.state_dict())
    joint = prepare_joint(model, space, description)
    calibrate(joint, [X])
    joint.train()(X)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.body_norm) is nn.BatchNorm2d
    assert active_bits(joint) == {"stem": Bits(8, 8), "body": Bits(8, 8), "head": Bits(8, 8)}
    assert joint.body_norm.active == 0


def test_in_floating_point_the_copy_computes_what_the_model_does():
    model, _, _ = parts()
    joint = joint_model().eval()
    switch(joint, dict.fromkeys(("stem", "body", "head"), Bits(32, 32)))
    assert torch.equal(joint(X), model.eval()(X))


def test_only_the_statistics_of_the_active_branch_move():
    joint = joint_model().train()
    start = joint.body_norm.branches[0].running_mean.clone()
    switch(joint, {"stem": Bits(8, 8), "body": Bits(2, 2), "head": Bits(4, 4)})
    joint(X)
    moved = {name: [not torch.equal(b.running_mean, start) for b in joint.body_norm.branches] for name in ("body_norm",)}
    assert moved == {"body_norm": [False, False, True]}
    assert [int(branch.num_batches_tracked) for branch in joint.head_norm.branches] == [0, 1, 0]
    assert int(joint.stem_norm.num_batches_tracked) == 1  # shared by all widths


def test_the_state_dict_round_trip_keeps_every_branch():
    joint, other = joint_model(), joint_model()
    with torch.no_grad():
        for index, branch in enumerate(joint.body_norm.branches):
            branch.running_mean.fill_(index)
    other.load_state_dict(joint.state_dict())
    for bits in (Bits(8, 8), Bits(4, 4), Bits(2, 2)):
        for model in (joint.eval(), other.eval()):
            switch(model, dict.fromkeys(("body", "head"), bits))
        assert torch.equal(joint(X), other(X))


def test_a_space_of_another_model():
    model, space, description = parts()
    names = dict(space.candidates)
    with pytest.raises(PolicyError, match="no widths for the layers: head"):
        prepare_joint(model, SearchSpace({name: names[name] for name in ("stem", "body")}), description)
    with pytest.raises(PolicyError, match="quantizable layers named: tail"):
        prepare_joint(model, SearchSpace({**names, "tail": names["head"]}), description)


def test_a_layer_that_is_never_called_may_be_missing_in_the_space():
    model, _, _ = parts()
    model.spare = nn.Linear(2, 2)
    description = describe(model, X)
    joint = prepare_joint(model, search_space(description.layers, (8, 4)), description)
    assert type(joint.spare) is nn.Linear
