"""Bytes of a model file, and mean widths: counts by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.choices import search_space
from bitalloc.costs import MeanActBits, MeanBits, ModelBytes, WeightBytes
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import Bits, Policy

WEIGHTS = 4 * 27 + 8 * 36 + 8 * 72 + 8 * 4 + 8 * 72 + 80
CHANNELS = 4 + 8 + 8 + 8 + 8 + 10


def uniform(model: Description, bits: Bits) -> dict[str, Bits]:
    return {layer.name: bits for layer in model.layers}


def tied() -> Description:
    """An embedding whose weight the output layer holds too."""
    layers = (
        LayerInfo("embed", "embedding", (100, 8), 0, 6, 48),
        LayerInfo("mlp", "matmul", (8, 12), 576, 48, 72, site="embed"),
        LayerInfo("head", "linear", (100, 8), 4800, 48, 600, site="mlp", same_weight_as="embed"),
    )
    return Description(layers, (), {}, ("embed",), ("head",))


def test_weights_step_sizes_and_biases(residual: Description) -> None:
    space = search_space(residual, (8, 4, 2))
    # One step a weight tensor; five inputs, as a.conv1 and a.down share theirs; a bias for every folded batch norm.
    assert ModelBytes(residual, space).total(residual.layers, uniform(residual, Bits(4, 8))) == WEIGHTS / 2 + 4 * (6 + 5 + CHANNELS)
    free = search_space(residual, (8, 4, 2), coupling="free")
    assert ModelBytes(residual, free).total(residual.layers, uniform(residual, Bits(4, 8))) == WEIGHTS / 2 + 4 * (6 + 6 + CHANNELS)


def test_one_step_a_channel(residual: Description) -> None:
    cost = ModelBytes(residual, search_space(residual, (8, 4, 2)), per_channel=True)
    assert cost.total(residual.layers, uniform(residual, Bits(8, 8))) == WEIGHTS + 4 * (CHANNELS + 5 + CHANNELS)


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "steps", "biases"),
    [
        ("conv_transpose2d", (6, 4, 3, 3), 2, 4, 8),
        ("matmul", (5, 7), 1, 7, 7),
        ("conv1d", (5, 7, 3), 1, 5, 5),
    ],
)
def test_output_channels_of_every_kind(kind: str, shape: tuple[int, ...], groups: int, steps: int, biases: int) -> None:
    layer = LayerInfo("layer", kind, shape, 1, 1, 1, groups)
    model = Description((layer,), (), {"bn": "layer"}, ("layer",), ("layer",))
    cost = ModelBytes(model, search_space(model, (8, 4)), per_channel=True)
    assert cost.value(layer, Bits(8, 32)) == layer.weight_numel + 4 * (steps + biases)


def test_floating_point_has_no_step_size(residual: Description) -> None:
    cost = ModelBytes(residual, search_space(residual, (8, 4)))
    assert cost.total(residual.layers, uniform(residual, Bits(32, 32))) == 4 * (WEIGHTS + CHANNELS)


def test_a_weight_that_two_layers_hold_counts_once() -> None:
    model = tied()
    bits = {"embed": Bits(4, 32), "mlp": Bits(8, 8), "head": Bits(4, 8)}
    assert WeightBytes().total(model.layers, bits) == 400 + 96
    assert ModelBytes(model, search_space(model, (8, 4))).total(model.layers, bits) == 400 + 96 + 4 * (2 + 2)
    assert MeanBits(model.layers).total(model.layers, bits) == pytest.approx((800 * 4 + 96 * 8) / 896)


def test_mean_activation_bits_leave_out_what_reads_none() -> None:
    model = tied()
    assert MeanActBits(model.layers).total(model.layers, {"embed": Bits(4, 32), "mlp": Bits(8, 8), "head": Bits(4, 4)}) == 6


@given(st.data())
def test_mean_bits_are_those_of_the_policy(residual: Description, data: st.DataObject) -> None:
    bits = {layer.name: data.draw(st.builds(Bits, st.sampled_from((8, 4, 2, 32)), st.sampled_from((8, 4)))) for layer in residual.layers}
    mean = Policy(bits, {layer.name: layer.weight_shape for layer in residual.layers}).mean_weight_bits()
    assert MeanBits(residual.layers).total(residual.layers, bits) == pytest.approx(mean, rel=1e-14)


@given(st.data())
def test_no_cost_falls_with_the_width(residual: Description, data: st.DataObject) -> None:
    space = search_space(residual, (8, 6, 4, 2))
    costs = (ModelBytes(residual, space), MeanBits(residual.layers), MeanActBits(residual.layers))
    layer = data.draw(st.sampled_from(residual.layers))
    (low, high), (left, right) = (sorted(data.draw(st.tuples(*[st.sampled_from((8, 6, 4, 2))] * 2))) for _ in range(2))
    assert all(cost.value(layer, Bits(low, left)) <= cost.value(layer, Bits(high, right)) for cost in costs)


def test_no_weights_and_no_activations_have_no_mean() -> None:
    with pytest.raises(SpaceError, match="no weights"):
        MeanBits([])
    with pytest.raises(SpaceError, match="no activations"):
        MeanActBits([replace(tied().layers[0])])
