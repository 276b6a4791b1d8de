"""Attribution rank as a metric: equals the distance computed by hand, complete, deterministic, and leaves the model as it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from bitalloc import Bits, describe, first_last_pins, search_space
from bitalloc.attribution import FixedPower, GradCAM, InputGradient, PowerRanking, spearman_distance
from bitalloc.errors import SpaceError, TrainingError
from bitalloc.sensitivity import Indicators, attribution_rank_damage
from bitalloc.space import SearchSpace
from bitalloc.wrap import active_bits, calibrate, prepare_joint, switch

BATCHES = [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)), None) for i in range(2)]


def network(names: tuple[str, ...] = ("stem", "body", "head")) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(names[0], nn.Conv2d(3, 8, 3))
    model.add_module("norm", nn.BatchNorm2d(8))
    model.add_module("relu", nn.ReLU())
    model.add_module(names[1], nn.Conv2d(8, 8, 3))
    model.add_module("relu2", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module(names[2], nn.Linear(128, 5))
    return model.eval()


def joint_network(model: nn.Module, **pins: Bits) -> tuple[nn.Module, SearchSpace]:
    description = describe(model, BATCHES[0][0])
    space = search_space(description.layers, (8, 4, 2), (6, 3), pins=pins)
    joint = prepare_joint(model, space, description)
    calibrate(joint, BATCHES)
    return joint, space


@pytest.mark.parametrize("distance", [spearman_distance, PowerRanking(FixedPower(1.0)).distance])
def test_equals_the_distance_computed_by_hand(distance) -> None:  # type: ignore[no-untyped-def]
    joint, space = joint_network(network())
    found = attribution_rank_damage(joint, space, BATCHES, distance=distance)
    widest = {name: Bits(8, 6) for name in space.candidates}
    copy = deepcopy(joint).train()  # whose running statistics may change

    def maps(bits: dict[str, Bits]) -> torch.Tensor:
        switch(copy, bits, branches=widest)
        return torch.cat([GradCAM(("relu2",)).attribute(copy, batch[0]).maps[0].detach() for batch in BATCHES])

    reference = maps(widest)
    for name in space.candidates:
        for bits, value in ((Bits(4, 6), found.weight[name][4]), (Bits(2, 6), found.weight[name][2]), (Bits(8, 3), found.act[name][3])):
            by_hand = float(distance(reference, maps({**widest, name: bits})).mean())
            assert value == pytest.approx(by_hand, rel=1e-6, abs=1e-9)


def test_is_complete_and_zero_at_the_widest() -> None:
    joint, space = joint_network(network())
    found = attribution_rank_damage(joint, space, BATCHES)
    assert {name: set(row) for name, row in found.weight.items()} == {name: {8, 4, 2} for name in space.candidates}
    assert {name: set(row) for name, row in found.act.items()} == {name: {6, 3} for name in space.candidates}
    assert all(row[8] == 0 for row in found.weight.values())
    assert all(row[6] == 0 for row in found.act.values())
    found.table(1.0, space).check(space)
    assert Indicators.from_json(found.to_json()) == found


def test_narrow_weights_do_more_damage() -> None:
    found = attribution_rank_damage(*joint_network(network()), BATCHES)
    assert all(2 >= row[2] > row[4] > 0 for row in found.weight.values())


def test_the_same_twice_and_with_other_names() -> None:
    first = attribution_rank_damage(*joint_network(network()), BATCHES)
    assert attribution_rank_damage(*joint_network(network()), BATCHES) == first
    second = attribution_rank_damage(*joint_network(network(("a", "b", "c"))), BATCHES)
    assert list(first.weight.values()) == list(second.weight.values())
    assert list(first.act.values()) == list(second.act.values())


def test_leaves_the_model_as_it_was() -> None:
    joint, space = joint_network(network())
    joint.train()
    switch(joint, {"body": Bits(2, 3)})
    bits, state = active_bits(joint), {key: value.clone() for key, value in joint.state_dict().items()}
    attribution_rank_damage(joint, space, BATCHES)
    assert active_bits(joint) == bits
    assert all(module.training for module in joint.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in joint.parameters())
    assert all(torch.equal(value, state[key]) for key, value in joint.state_dict().items())


def test_other_attributions_may_be_measured() -> None:
    found = attribution_rank_damage(*joint_network(network()), BATCHES, attribution=InputGradient())
    assert found.provenance["attribution"] == "InputGradient"
    assert all(row[2] > 0 for row in found.weight.values())


def test_pinned_layers_are_not_probed() -> None:
    model = network()
    joint, space = joint_network(model, **first_last_pins(describe(model, BATCHES[0][0])))
    assert set(attribution_rank_damage(joint, space, BATCHES).weight) == {"body"}


def test_bad_input_is_an_error() -> None:
    joint, space = joint_network(network())
    with pytest.raises(TrainingError, match="no batch"):
        attribution_rank_damage(joint, space, [])
    with pytest.raises(TrainingError, match="layer stem"):
        attribution_rank_damage(joint, space, [(torch.full((2, 3, 8, 8), float("nan")), None)])
    joint, space = joint_network(network(), stem=Bits(8, 8), body=Bits(8, 8), head=Bits(8, 8))
    with pytest.raises(SpaceError, match="one candidate only"):
        attribution_rank_damage(joint, space, BATCHES)
