"""Costs: hand counts, published figures, additivity, monotony."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, Cost, WeightBytes
from bitalloc.errors import SpaceError
from bitalloc.layers import LayerInfo
from bitalloc.policy import WIDTHS, Bits
from bitalloc.space import Candidates, SearchSpace

COSTS = [BitOps(), WeightBytes()]
bits = st.builds(Bits, st.sampled_from(WIDTHS), st.sampled_from(WIDTHS))
layers = st.builds(
    LayerInfo,
    name=st.just("layer"),
    kind=st.just("linear"),
    weight_shape=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
    macs=st.integers(0, 10**9),
    input_numel=st.just(1),
    output_numel=st.just(1),
)


def conv(name: str, inputs: int, outputs: int, kernel: int, size: int) -> LayerInfo:
    weights = (outputs, inputs, kernel, kernel)
    return LayerInfo(name, "conv2d", weights, math.prod(weights) * size**2, 1, outputs * size**2)


def resnet18() -> list[LayerInfo]:
    """The convolutions and the linear layer of ResNet-18 at 224 x 224, counted by hand."""
    found = [conv("conv1", 3, 64, 7, 112)]
    inputs = 64
    for stage, (width, size) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7)), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            found += [conv(f"{name}.conv1", inputs, width, 3, size), conv(f"{name}.conv2", width, width, 3, size)]
            if inputs != width:
                found.append(conv(f"{name}.downsample.0", inputs, width, 1, size))
            inputs = width
    return [*found, LayerInfo("fc", "linear", (1000, 512), 512_000, 512, 1000, bias_numel=1000)]


def test_bitops_by_hand() -> None:
    # 3x3 convolution from 2 to 4 channels on 5 x 5: 4 * 2 * 9 * 25 = 1800 multiply-accumulates.
    assert BitOps().value(conv("a", 2, 4, 3, 5), Bits(4, 8)) == 1800 * 4 * 8
    assert BitOps().value(conv("a", 2, 4, 3, 5), Bits(32, 32)) == 1800 * 1024


@pytest.mark.parametrize(("weights", "width", "size"), [(8, 3, 3), (9, 3, 4), (1, 2, 1), (3, 8, 3), (5, 32, 20), (7, 4, 4)])
def test_weight_bytes_are_rounded_up_to_whole_bytes(weights: int, width: int, size: int) -> None:
    layer = LayerInfo("a", "linear", (weights,), macs=1, input_numel=1, output_numel=1, bias_numel=100)
    assert {WeightBytes().value(layer, Bits(width, act)) for act in WIDTHS} == {size}


@pytest.mark.parametrize(("pair", "giga"), [("w2a2", 14.368), ("w3a3", 22.846), ("w4a4", 34.714)])
def test_published_bitops_of_resnet18(pair: str, giga: float) -> None:
    model = resnet18()
    pins = {"conv1": Bits(8, 8), "fc": Bits(8, 8)}
    chosen = {layer.name: pins.get(layer.name, Bits.parse(pair)) for layer in model}
    assert round(BitOps().total(model, chosen) / 1e9, 3) == giga


def test_float_size_of_resnet18() -> None:
    model = resnet18()
    size = WeightBytes().total(model, {layer.name: Bits(32, 32) for layer in model})
    assert round(size / 2**20, 2) == 44.55


@pytest.mark.parametrize("cost", COSTS)
@settings(max_examples=40, deadline=None)
@given(layer=layers, narrow=bits, wide=bits)
def test_cost_is_finite_not_negative_and_monotone(cost: Cost, layer: LayerInfo, narrow: Bits, wide: Bits) -> None:
    low = Bits(min(narrow.weight, wide.weight), min(narrow.act, wide.act))
    high = Bits(max(narrow.weight, wide.weight), max(narrow.act, wide.act))
    assert 0 <= cost.value(layer, low) <= cost.value(layer, high) < math.inf


@pytest.mark.parametrize("cost", COSTS)
@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(bits, min_size=21, max_size=21))
def test_cost_is_additive(cost: Cost, pairs: list[Bits]) -> None:
    model = resnet18()
    chosen = {layer.name: pair for layer, pair in zip(model, pairs, strict=True)}
    half = len(model) // 2
    assert cost.total(model, chosen) == cost.total(model[:half], chosen) + cost.total(model[half:], chosen)
    assert cost.total(model, chosen) == sum(cost.value(layer, chosen[layer.name]) for layer in model)


@pytest.mark.parametrize("cost", COSTS)
def test_table_has_every_choice_and_the_pins(cost: Cost) -> None:
    model = resnet18()
    space = search_space(model, (8, 4), (6, 2), pins={"conv1": Bits(8, 8)}, exclude=["fc"])
    table = cost.table(model, space)
    table.check(space)
    assert table.unit == cost.unit
    assert table.values["conv1"] == {Bits(8, 8): cost.value(model[0], Bits(8, 8))}
    assert table.values["fc"] == {Bits(32, 32): cost.value(model[-1], Bits(32, 32))}
    assert table.values["layer1.0.conv1"][Bits(4, 6)] == cost.value(model[1], Bits(4, 6))


@pytest.mark.parametrize("cost", COSTS)
def test_layers_that_differ_are_named(cost: Cost) -> None:
    model = [conv("a", 1, 1, 1, 1), conv("b", 1, 1, 1, 1)]
    choices = Candidates((4,), (4,))
    with pytest.raises(SpaceError, match=r"lacks: c\."):
        cost.table(model, SearchSpace({"a": choices, "b": choices, "c": choices}))
    with pytest.raises(SpaceError, match=r"lacks layers of the model: b\."):
        cost.table(model, SearchSpace({"a": choices}))
    with pytest.raises(SpaceError, match="no bit-widths for b"):
        cost.total(model, {"a": Bits(4, 4)})


def test_the_convention_says_what_is_counted() -> None:
    model = [conv(name, 1, 1, 1, 1) for name in ("conv1", "middle", "linear")]
    pins = {"conv1": Bits(8, 32), "linear": Bits(8, 8)}
    assert BitOps.convention(search_space(model, (4, 2), pins=pins), model) == (
        "BitOps = sum over 3 layers of MACs x weight bits x activation bits; "
        "pinned: conv1 at w8a32, linear at w8a8; left in floating point: none"
    )
    assert BitOps.convention(search_space(model, (4, 2), exclude=["linear"]), model).endswith(
        "pinned: none; left in floating point: linear (counted at 32 x 32)"
    )
