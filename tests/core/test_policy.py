"""Widths and policies: validation, JSON round trip, refusing another model."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.errors import FileError, PolicyError
from bitalloc.layers import Description, LayerInfo, NotCounted
from bitalloc.policy import WIDTHS, Bits, Policy

widths = st.sampled_from(WIDTHS)
bits = st.builds(Bits, widths, widths)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
shapes = st.lists(st.integers(1, 64), min_size=1, max_size=4).map(tuple)
policies = st.builds(
    lambda rows, provenance: Policy({n: b for n, (b, _) in rows.items()}, {n: s for n, (_, s) in rows.items()}, provenance),
    st.dictionaries(st.text(max_size=8), st.tuples(bits, shapes), min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=8), json_values, max_size=3),
)


def layer(name: str, *shape: int) -> LayerInfo:
    return LayerInfo(name, "linear", shape, macs=1, input_numel=1, output_numel=1)


def a_policy() -> Policy:
    return Policy({"a": Bits(4, 8), "b": Bits(2, 3)}, {"a": (10,), "b": (5, 6)}, {"method": "test"})


@settings(max_examples=40, deadline=None)
@given(bits)
def test_bits_text_round_trip(pair: Bits) -> None:
    assert Bits.parse(str(pair)) == Bits.parse(f" {str(pair).upper()} ") == pair


@pytest.mark.parametrize("wrong", [1, 0, -4, 9, 16, 33, True, "4", 4.0, None, [4]])
def test_an_unsupported_width_names_the_side(wrong: int) -> None:
    with pytest.raises(PolicyError, match="weight width"):
        Bits(wrong, 8)
    with pytest.raises(PolicyError, match="activation width"):
        Bits(8, wrong)


@pytest.mark.parametrize("text", ["", "w4", "a8", "a4w8", "4/8", "w4a", "w4a8b", "w-4a8", "w4.0a8"])
def test_text_that_is_no_pair(text: str) -> None:
    with pytest.raises(PolicyError, match="w4a8"):
        Bits.parse(text)


@settings(max_examples=40, deadline=None)
@given(policies)
def test_json_round_trip(policy: Policy) -> None:
    again = Policy.loads(json.dumps(policy.to_json()))
    assert again == policy
    assert list(again.bits) == list(policy.bits)


def test_saved_and_loaded(tmp_path: Path) -> None:
    a_policy().save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == a_policy()


def test_uniform_keeps_the_pins() -> None:
    policy = Policy.uniform([layer("first", 3), layer("middle", 4)], Bits(2, 4), {"first": Bits(8, 8)})
    assert policy.bits == {"first": Bits(8, 8), "middle": Bits(2, 4)}
    assert policy.weight_shapes == {"first": (3,), "middle": (4,)}


def test_mean_weight_bits_is_weighted_by_size() -> None:
    assert a_policy().mean_weight_bits() == pytest.approx((10 * 4 + 30 * 2) / 40)


def test_check_accepts_its_own_model_in_any_order() -> None:
    a_policy().check([layer("b", 5, 6), layer("a", 10)])


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([layer("a", 10), layer("b", 5, 6), layer("c", 1)], "without widths: c"),
        ([layer("a", 10)], "does not have: b"),
        ([layer("a", 10), layer("b", 6, 5)], r"another weight shape: b \(policy \(5, 6\), model \(6, 5\)\)"),
    ],
)
def test_check_names_what_does_not_fit(layers: list[LayerInfo], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        a_policy().check(layers)


SOURCE = Policy(
    {"stem": Bits(8, 8), "q": Bits(4, 3), "k": Bits(2, 3), "head": Bits(8, 4)},
    {"stem": (4, 3), "q": (4, 4), "k": (4, 4), "head": (3, 4)},
    {"method": "gmpq", "not_counted": ["old"], "budgets": [{"name": "bitops", "used": 5}]},
    (("q", "k"),),
)


def network(head: tuple[int, ...] = (5, 8), **changed: tuple[int, ...]) -> Description:
    """The layers of SOURCE under their names, or others, with another head."""
    inner = {"stem": (4, 3), "q": (4, 4), "k": (4, 4), **changed}
    layers = tuple(layer(name, *shape) for name, shape in {**inner, "head": head}.items())
    return Description(layers, (NotCounted("pool", "Pool", "has no weight"),), {}, ("stem",), ("head",))


def test_a_policy_moves_to_the_same_network_with_another_head() -> None:
    moved = SOURCE.transferred(network())
    moved.check(network().layers)
    assert moved.bits == SOURCE.bits
    assert moved.weight_shapes["head"] == (5, 8)
    assert moved.shared_inputs == SOURCE.shared_inputs
    assert moved.provenance == {"method": "gmpq", "not_counted": ["pool"], "transferred_from": dict(SOURCE.provenance)}
    assert Policy.loads(json.dumps(moved.to_json())) == moved


def test_a_policy_moves_by_a_name_map() -> None:
    shapes = {"0": (4, 3), "1.q": (4, 4), "1.k": (4, 4), "2": (9, 4)}
    other = Description(tuple(layer(name, *shape) for name, shape in shapes.items()), (), {}, ("0",), ("2",))
    names = {"0": "stem", "1.q": "q", "1.k": "k", "2": "head"}
    moved = SOURCE.transferred(other, names)
    assert moved.bits == {name: SOURCE.bits[source] for name, source in names.items()}
    assert list(moved.bits) == list(names)
    assert moved.shared_inputs == (("1.q", "1.k"),)
    with pytest.raises(PolicyError, match="no widths for 1.k: map"):
        SOURCE.transferred(other, {name: source for name, source in names.items() if name != "1.k"})


def test_a_layer_that_shared_its_quantizer_with_one_that_is_gone_has_its_own() -> None:
    without = network()
    without = Description(tuple(each for each in without.layers if each.name != "k"), (), {}, ("stem",), ("head",))
    assert SOURCE.transferred(without, {}).shared_inputs == ()


@pytest.mark.parametrize(
    ("target", "names", "message"),
    [
        (network(q=(4, 5)), None, r"other weight shapes: q \(source \(4, 4\), here \(4, 5\)\)"),
        (network(v=(4, 4)), None, "only there none; only here v"),
        (network(), {"q": "k"}, "sends two layers to one: q and k -> k"),
        (network(), {"q": "v"}, "q -> v"),
    ],
)
def test_a_policy_does_not_move_to_another_network(target: Description, names: dict[str, str] | None, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SOURCE.transferred(target, names)


def test_no_layer_or_different_layers_are_refused() -> None:
    with pytest.raises(PolicyError, match="at least one layer"):
        Policy({}, {})
    with pytest.raises(PolicyError, match="different layers: b"):
        Policy({"a": Bits(4, 4)}, {"a": (1,), "b": (1,)})


@pytest.mark.parametrize("layers", [None, {}, [], "a", 3])
def test_a_policy_file_without_layers(layers: object) -> None:
    with pytest.raises(PolicyError, match="policy.json: key 'layers'"):
        Policy.from_json({"layers": layers}, "policy.json")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        [],
        {},
        {"weight_bits": 4, "act_bits": 4},
        {"weight_bits": 1, "act_bits": 4, "weight_shape": [3]},
        {"weight_bits": "4", "act_bits": 4, "weight_shape": [3]},
        {"weight_bits": 4.0, "act_bits": 4, "weight_shape": [3]},
        {"weight_bits": 4, "act_bits": 4, "weight_shape": 3},
        {"weight_bits": 4, "act_bits": 4, "weight_shape": ["x"]},
    ],
)
def test_a_malformed_layer_is_named(entry: object) -> None:
    good = a_policy().to_json()
    with pytest.raises(PolicyError, match="layer 'b' is malformed"):
        Policy.from_json({**good, "layers": {**good["layers"], "b": entry}})


@pytest.mark.parametrize("provenance", [None, 3, [1], "by hand"])
def test_a_malformed_provenance_is_named(provenance: object) -> None:
    with pytest.raises(PolicyError, match="provenance"):
        Policy.from_json({**a_policy().to_json(), "provenance": provenance})


def test_a_policy_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**a_policy().to_json(), "version": 99}))
    with pytest.raises(FileError, match="99"):
        Policy.load(path)
