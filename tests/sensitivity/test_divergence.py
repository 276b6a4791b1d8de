"""Output divergence: equals the divergence computed by hand, complete, deterministic, and leaves the model as it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitalloc import Bits, describe, first_last_pins, search_space
from bitalloc.errors import SpaceError, TrainingError
from bitalloc.sensitivity import output_divergence
from bitalloc.space import SearchSpace
from bitalloc.wrap import active_bits, calibrate, prepare_joint, switch

BATCHES = [(torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(i)), None) for i in range(2)]


def network(names: tuple[str, ...] = ("stem", "body", "head")) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(names[0], nn.Conv2d(3, 8, 3))
    model.add_module("norm", nn.BatchNorm2d(8))
    model.add_module("relu", nn.ReLU())
    model.add_module(names[1], nn.Conv2d(8, 8, 3))
    model.add_module("flat", nn.Flatten())
    model.add_module(names[2], nn.Linear(32, 5))
    return model.eval()


def joint_network(model: nn.Module, **pins: Bits) -> tuple[nn.Module, SearchSpace]:
    description = describe(model, BATCHES[0][0])
    space = search_space(description.layers, (8, 4, 2), (6, 3), pins=pins)
    joint = prepare_joint(model, space, description)
    calibrate(joint, BATCHES)
    return joint, space


def test_equals_the_divergence_computed_by_hand() -> None:
    joint, space = joint_network(network())
    found = output_divergence(joint, space, BATCHES)
    widest = {name: Bits(8, 6) for name in space.candidates}

    copy = deepcopy(joint).train()  # whose running statistics may change

    def probabilities(bits: dict[str, Bits]) -> torch.Tensor:
        switch(copy, bits, branches=widest)
        with torch.no_grad():
            return torch.cat([F.softmax(copy(batch[0]).double(), dim=1) for batch in BATCHES])

    reference = probabilities(widest)
    for name in space.candidates:
        for bits, value in ((Bits(4, 6), found.weight[name][4]), (Bits(2, 6), found.weight[name][2]), (Bits(8, 3), found.act[name][3])):
            other = probabilities({**widest, name: bits})
            by_hand = (reference * (reference / other).log()).sum(1).mean()
            assert value == pytest.approx(float(by_hand), rel=1e-9)


def test_is_complete_and_zero_at_the_widest() -> None:
    joint, space = joint_network(network())
    found = output_divergence(joint, space, BATCHES)
    assert {name: set(row) for name, row in found.weight.items()} == {name: {8, 4, 2} for name in space.candidates}
    assert {name: set(row) for name, row in found.act.items()} == {name: {6, 3} for name in space.candidates}
    assert all(row[8] == 0 for row in found.weight.values())
    assert all(row[6] == 0 for row in found.act.values())
    found.table(1.0, space).check(space)


def test_narrow_weights_do_more_damage() -> None:
    joint, space = joint_network(network())
    found = output_divergence(joint, space, BATCHES)
    assert all(row[2] > row[4] > 0 for row in found.weight.values())


def test_renaming_layers_changes_nothing() -> None:
    first = output_divergence(*joint_network(network()), BATCHES)
    second = output_divergence(*joint_network(network(("a", "b", "c"))), BATCHES)
    assert list(first.weight.values()) == list(second.weight.values())
    assert list(first.act.values()) == list(second.act.values())


def test_leaves_the_model_as_it_was() -> None:
    joint, space = joint_network(network())
    joint.train()
    switch(joint, {"body": Bits(2, 3)})
    bits, state = active_bits(joint), {key: value.clone() for key, value in joint.state_dict().items()}
    output_divergence(joint, space, BATCHES)
    assert active_bits(joint) == bits
    assert all(module.training for module in joint.modules())
    assert all(torch.equal(value, state[key]) for key, value in joint.state_dict().items())


def test_pinned_layers_are_not_probed() -> None:
    model = network()
    joint, space = joint_network(model, **first_last_pins(describe(model, BATCHES[0][0])))
    assert set(output_divergence(joint, space, BATCHES).weight) == {"body"}


def test_nothing_to_choose_is_an_error() -> None:
    joint, space = joint_network(network(), stem=Bits(8, 8), body=Bits(8, 8), head=Bits(8, 8))
    with pytest.raises(SpaceError, match="one candidate only"):
        output_divergence(joint, space, BATCHES)


def test_no_batch_is_an_error() -> None:
    joint, space = joint_network(network())
    with pytest.raises(TrainingError, match="no batch"):
        output_divergence(joint, space, [])


def test_an_output_that_is_not_finite_names_the_layer() -> None:
    joint, space = joint_network(network())
    with pytest.raises(TrainingError, match="layer stem"):
        output_divergence(joint, space, [(torch.full((2, 3, 6, 6), float("nan")), None)])


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head((self.one(x) * self.two(x)).mean((2, 3)))
        return out


def test_the_damage_of_a_shared_quantizer_counts_once() -> None:
    joint, space = joint_network(_TwoReaders().eval())
    assert space.shared_inputs == (("one", "two"),)
    found = output_divergence(joint, space, BATCHES)
    widest = {name: Bits(8, 6) for name in space.candidates}

    def probabilities(bits: dict[str, Bits]) -> torch.Tensor:
        switch(joint, bits)
        with torch.no_grad():
            return torch.cat([F.softmax(joint(batch[0]).double(), dim=1) for batch in BATCHES])

    reference = probabilities(widest)
    other = probabilities({**widest, "one": Bits(8, 3), "two": Bits(8, 3)})
    by_hand = float((reference * (reference / other).log()).sum(1).mean())
    assert found.act["one"][3] == found.act["two"][3] == pytest.approx(by_hand / 2, rel=1e-9)
