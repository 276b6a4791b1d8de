"""Ties that follow from the graph, and what an integer runtime has to requantize: small graphs, by hand."""

from dataclasses import replace
from typing import Any

import pytest

from bitalloc.choices import search_space
from bitalloc.coupling import Requantizations, Ties, couple, requantizations
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, Group, LayerInfo, Meeting, Site
from bitalloc.policy import Bits


def layer(name: str, site: str, **more: Any) -> LayerInfo:
    return LayerInfo(name, more.pop("kind", "linear"), (4, 4), 16, 4, 4, site=site, **more)


def site(name: str, *readers: str) -> Site:
    return Site(name, "op", 10 * len(name), readers, 0, 9)


# y = stem(x); q, k, v read y; z = y + out(v); w = z + skip(y); only the head reads w.
LAYERS = (
    layer("stem", "x"),
    layer("q", "y"),
    layer("k", "y"),
    layer("v", "y"),
    layer("out", "attended"),
    layer("skip", "y"),
    layer("head", "w"),
)
SITES = (
    site("x", "stem"),
    site("y", "q", "k", "v", "skip"),
    site("attended", "out"),
    site("out"),
    site("z"),
    site("skip"),
    site("w", "head"),
)
MEETINGS = (Meeting("z", "add", ("y", "out"), "z"), Meeting("w", "add", ("z", "skip"), "w"))
GROUPS = (Group("qkv", ("q", "k", "v")), Group("depthwise-pointwise", ("stem", "out")))
MODEL = Description(LAYERS, (), {}, ("stem",), ("head",), SITES, MEETINGS, GROUPS)
READ_Y = ("q", "k", "v", "skip")
QKV = ("q", "k", "v")


def at(**act: int) -> dict[str, Bits]:
    return {layer.name: Bits(4, act.get(layer.name, 4)) for layer in LAYERS}


def test_layers_that_read_one_tensor_share_its_quantizer() -> None:
    assert couple(MODEL) == Ties(act=(READ_Y,), shared_inputs=(READ_Y,)) == couple(LAYERS)


def test_free_ties_nothing() -> None:
    assert couple(MODEL, "free") == Ties()


def test_strict_ties_all_that_meet_however_far_apart() -> None:
    # y meets z, which meets w: the head is tied to what reads y, through a sum that no layer reads.
    assert couple(MODEL, "strict") == Ties(weight=(QKV,), act=(READ_Y, (*READ_Y, "head")), shared_inputs=(READ_Y,))


def test_sums_of_their_own_stay_apart() -> None:
    apart = replace(MODEL, meetings=(Meeting("z", "add", ("x", "attended"), "z"), Meeting("w", "concat", ("y", "skip"), "w")))
    assert couple(apart, "strict").act == (READ_Y, ("stem", "out"), (*READ_Y, "head"))


@pytest.mark.parametrize(
    ("coupling", "asked", "tied"), [("strict", None, True), ("strict", False, False), ("free", True, True), ("free", None, False)]
)
def test_fused_qkv(coupling: Any, asked: bool | None, tied: bool) -> None:
    assert (QKV in couple(MODEL, coupling, fused_qkv=asked).weight) == tied


def test_depthwise_and_pointwise_share_both_widths() -> None:
    ties = couple(MODEL, "free", depthwise_pointwise=True)
    assert ties == Ties(weight=(("stem", "out"),), act=(("stem", "out"),))


@pytest.mark.parametrize("coupling", ["strict", "shared-input", "free"])
def test_one_weight_tensor_has_one_width(coupling: Any) -> None:
    layers = (
        layer("embed", "", kind="embedding"),
        layer("mlp", "e"),
        layer("head", "m", same_weight_as="embed"),
        layer("aux", "m", same_weight_as="embed"),
    )
    model = Description(layers, (), {}, ("embed",), ("head",), (site("e", "mlp"), site("m", "head", "aux")))
    assert couple(model, coupling).weight == (("embed", "head", "aux"),)


def test_an_unknown_coupling_and_ties_without_a_graph() -> None:
    with pytest.raises(SpaceError, match="'loose' is unknown: expected one of strict, shared-input, free"):
        couple(MODEL, "loose")  # type: ignore[arg-type]
    for more in ({"coupling": "strict"}, {"fused_qkv": True}, {"depthwise_pointwise": True}):
        with pytest.raises(SpaceError, match="need the graph of the model"):
            couple(LAYERS, **more)  # type: ignore[arg-type]


def test_operands_that_no_layer_reads_cost_nothing() -> None:
    # Only y is read at a scale of its own; z is summed at the scale of w.
    assert requantizations(MODEL, at()) == Requantizations(operands=1, width_changes=0, numel=10)
    assert requantizations(MODEL, at(head=8)) == Requantizations(operands=1, width_changes=1, numel=10)
    assert requantizations(MODEL, at(stem=8, out=2)) == Requantizations(operands=1, width_changes=0, numel=10)


def test_what_is_in_floating_point_is_not_requantized() -> None:
    nothing = Requantizations(0, 0, 0)
    assert requantizations(MODEL, at(head=32)) == nothing
    assert requantizations(MODEL, at(q=32, k=32, v=32, skip=32)) == nothing


def test_a_result_that_no_layer_reads_has_the_scale_of_its_widest_operand() -> None:
    model = replace(MODEL, meetings=(Meeting("z", "concat", ("x", "attended", "y"), "z"),))
    assert requantizations(model, at()) == Requantizations(2, 0, 80 + 10)
    assert requantizations(model, at(out=8)) == Requantizations(2, 2, 10 + 10)
    assert requantizations(replace(model, meetings=(Meeting("z", "add", ("y", "out"), "z"),)), at()) == Requantizations(0, 0, 0)


def test_a_sum_with_itself_is_one_operand() -> None:
    model = replace(MODEL, meetings=(Meeting("w", "add", ("y", "y"), "w"),))
    assert requantizations(model, at(head=2)) == Requantizations(1, 1, 10)


def test_under_strict_coupling_no_width_changes() -> None:
    space = search_space(MODEL, (8, 4), coupling="strict")
    for width in (8, 4):
        bits = {name: Bits(4, width if name in (*READ_Y, "head") else 12 - width) for name in space.candidates}
        assert requantizations(MODEL, bits).width_changes == 0


def test_a_layer_without_widths_is_named() -> None:
    with pytest.raises(SpaceError, match="no bit-widths for layer head"):
        requantizations(MODEL, {name: bits for name, bits in at().items() if name != "head"})
