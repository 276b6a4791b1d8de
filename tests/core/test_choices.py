"""From what is asked for to a space: hardware pairs, least widths, ties and pins that meet, contradictions."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.choices import first_last_pins, search_space
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace

CHIP = ("w4a4", "w4a8", "w8a8")


def layer(name: str, site: str, **more: Any) -> LayerInfo:
    return LayerInfo(name, more.pop("kind", "linear"), (4, 4), 16, 4, 4, site=site, **more)


# q and k read one tensor, embed and head hold one weight.
EMBED = layer("embed", "", kind="embedding")
LAYERS = (EMBED, layer("q", "e"), layer("k", "e"), layer("mlp", "attended"), layer("head", "m", same_weight_as="embed"))


def pairs(space: SearchSpace, name: str) -> list[str]:
    return [str(bits) for bits in space.candidates[name].pairs]


def test_only_the_pairs_that_the_hardware_has() -> None:
    space = search_space(LAYERS, (8, 4, 2), (8, 4), allowed=CHIP)
    assert pairs(space, "mlp") == ["w8a8", "w4a8", "w4a4"]
    # An embedding reads no activation: the widths that its weights have in some pair.
    assert pairs(space, "embed") == ["w8a32", "w4a32"]
    assert SearchSpace.from_json(space.to_json()) == space


@given(st.sets(st.sampled_from([Bits(w, a) for w, a in product((8, 6, 4, 2), repeat=2)]), min_size=1))
def test_allowed_pairs_are_just_those(allowed: set[Bits]) -> None:
    layers = [layer("a", "x"), layer("b", "y")]
    space = search_space(layers, (8, 6, 4, 2), allowed=allowed)
    assert set(space.candidates["a"].pairs) == allowed
    assert set(space.candidates["a"].weight) == {bits.weight for bits in allowed}
    assert set(space.candidates["a"].act) == {bits.act for bits in allowed}


def test_pins_and_overrides_are_not_restricted_to_the_hardware() -> None:
    space = search_space(LAYERS, (8, 4), allowed=CHIP, pins={"mlp": "w8a4"}, overrides={"q": Candidates((6,), (8, 4))})
    assert pairs(space, "mlp") == ["w8a4"]
    assert pairs(space, "q") == ["w6a8", "w6a4"]


def test_no_candidate_is_a_pair_of_the_hardware() -> None:
    with pytest.raises(SpaceError, match=r"none of the allowed pairs w8a8, w4a8, w4a4 is among the candidates: weights \(6, 2\)"):
        search_space(LAYERS, (6, 2), allowed=CHIP)


def test_least_widths() -> None:
    space = search_space(LAYERS, (8, 4, 2), minimum={"*": "w4a4", "mlp": "w8a4"})
    assert pairs(space, "mlp") == ["w8a8", "w8a4"]
    assert pairs(space, "q") == ["w8a8", "w8a4", "w4a8", "w4a4"]
    assert pairs(space, "head") == pairs(space, "q")
    assert pairs(space, "embed") == ["w8a32", "w4a32"]


def test_least_widths_and_hardware_together() -> None:
    space = search_space(LAYERS, (8, 4, 2), allowed=(*CHIP, "w2a8"), minimum={"*": "w2a8"}, pins={"mlp": "w2a2"})
    assert pairs(space, "q") == ["w8a8", "w4a8", "w2a8"]
    assert pairs(space, "mlp") == ["w2a2"]
    # The activation width asked for does not narrow the weights of a layer without one.
    assert pairs(search_space([EMBED], (8, 4), (8, 4), allowed=("w8a8", "w4a4"), minimum={"*": "w4a8"}), "embed") == ["w8a32", "w4a32"]


def test_a_least_width_that_no_candidate_has() -> None:
    with pytest.raises(SpaceError, match="layer mlp must have at least w6a6 and has only the candidates w4a4, w4a2, w2a4, w2a2"):
        search_space(LAYERS, (4, 2), minimum={"mlp": "w6a6"})
    with pytest.raises(SpaceError, match=r"'mlp\.\*' matches no layer"):
        search_space(LAYERS, (4, 2), minimum={"mlp.*": "w4a4"})


def test_ties_of_the_space() -> None:
    space = search_space(LAYERS, (8, 4))
    assert (space.weight_ties, space.act_ties, space.shared_inputs) == ((("embed", "head"),), (("q", "k"),), (("q", "k"),))
    assert search_space(LAYERS, (8, 4), coupling="free").shared_inputs == ()


def test_a_pin_reaches_the_tied_side_of_the_other_layer() -> None:
    space = search_space(LAYERS, (8, 4, 2), pins={"q": "w2a8", "embed": "w4a4"})
    assert space.candidates["k"] == Candidates((8, 4, 2), (8,))
    assert space.candidates["head"] == Candidates((4,), (8, 4, 2))
    assert space.pinned == {"q": Bits(2, 8), "embed": Bits(4, 32)}
    # And so does what the hardware lets stand of it: only one weight width goes with 8 bits.
    chip = search_space(LAYERS, (8, 4, 2), pins={"q": "w2a8"}, allowed=("w8a8", "w4a4", "w2a4"))
    assert pairs(chip, "k") == ["w8a8"]


def test_candidates_that_a_tie_rules_out_are_taken_away_until_nothing_changes() -> None:
    # a pins the tensor that a and b read; b's only pair with it pins the weight that b and c hold.
    layers = (layer("a", "x"), layer("b", "x"), layer("c", "y", same_weight_as="b"), layer("d", "y"))
    space = search_space(layers, (8, 4), allowed=("w4a4", "w8a8"), pins={"a": "w8a4"})
    assert [pairs(space, name) for name in "abcd"] == [["w8a4"], ["w4a4"], ["w4a4"], ["w4a4"]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pins": {"q": "w4a8", "k": "w4a4"}}, "the layers q, k are tied but have no act width in common: q 8; k 4"),
        (
            {"pins": {"embed": "w4a4", "head": "w8a4"}},
            "the layers embed, head are tied but have no weight width in common: embed 4; head 8",
        ),
        ({"pins": {"q": "w4a6"}}, "the layers q, k are tied but have no act width in common: q 6; k 8, 4"),
        ({"exclude": ["embed"]}, "embed and head hold the same weight tensor, but only embed is left in floating point: exclude both"),
        ({"exclude": ["head"]}, "but only head is left in floating point"),
    ],
)
def test_contradictions_name_layers_and_widths(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint):
        search_space(LAYERS, (8, 4), **options)


def test_layers_in_floating_point_leave_their_ties() -> None:
    space = search_space(LAYERS, (8, 4), exclude=["q", "embed", "head"])
    assert (space.weight_ties, space.act_ties, space.shared_inputs) == ((), (), ())
    assert space.candidates["k"].act == (8, 4)


@pytest.mark.parametrize("most", [0, -1])
def test_at_most_so_many_widths(most: int) -> None:
    assert search_space(LAYERS, (8, 4, 2), max_widths=2).max_widths == 2
    with pytest.raises(SpaceError, match=f"max_widths is {most}, expected at least one"):
        search_space(LAYERS, (8, 4, 2), max_widths=most)


def test_a_uniform_policy_keeps_what_has_no_choice() -> None:
    space = search_space(LAYERS, (8, 4, 2), pins={"q": "w2a8"}, exclude=["mlp"])
    assert space.uniform(Bits(3, 6)) == {
        "embed": Bits(3, 32),
        "q": Bits(2, 8),
        "k": Bits(3, 8),
        "mlp": Bits(32, 32),
        "head": Bits(3, 6),
    }


def test_first_and_last_layers() -> None:
    model = Description(LAYERS, (), {}, ("q", "k"), ("head",))
    assert first_last_pins(model) == dict.fromkeys(("q", "k", "head"), Bits(8, 8))
    assert first_last_pins(model, Bits(8, 4), first_act=32) == {"head": Bits(8, 4), "q": Bits(8, 32), "k": Bits(8, 32)}
    both_ends = Description(LAYERS[3:4], (), {}, ("mlp",), ("mlp",))
    assert first_last_pins(both_ends, first_act=32) == {"mlp": Bits(8, 32)}
