import json
import math
from dataclasses import replace
from itertools import product

import pytest

from bitalloc.budget import Budget
from bitalloc.errors import FileError, PolicyError, SpaceError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits
from bitalloc.search import Problem, solve
from bitalloc.space import Candidates, SearchSpace, Table
from bitalloc.supernet import LogProbabilities, Trace, fillings

SHAPES = {"a": (4, 3, 3, 3), "b": (4, 4, 3, 3), "head": (10, 4)}


def logs(*probabilities):
    return {width: math.log(p) for width, p in zip((4, 3, 2), probabilities, strict=True)}


FOUND = LogProbabilities(
    weight={"a": logs(0.5, 0.3, 0.2), "b": logs(0.1, 0.2, 0.7)},
    act={"a": logs(0.6, 0.3, 0.1), "b": logs(0.6, 0.3, 0.1)},
    weight_shapes=SHAPES,
    heads=("head",),
    provenance={"method": "gmpq"},
)
FREE = Candidates((4, 3, 2), (4, 3, 2))
SPACE = SearchSpace({"a": FREE, "b": FREE, "head": Candidates.pinned(Bits(8, 8))})


def layers(**shapes):
    return [LayerInfo(name, "conv2d", shape, 100, 10, 10) for name, shape in shapes.items()]


def test_the_score_of_a_policy_is_minus_the_logarithm_of_its_probability():
    table = FOUND.scores(SPACE)
    bits = {"a": Bits(3, 4), "b": Bits(2, 2), "head": Bits(8, 8)}
    assert table.total(bits) == pytest.approx(-math.log(0.3 * 0.6 * 0.7 * 0.1))
    assert table.unit == "negative_log_probability"


def test_tied_layers_count_once():
    tied = SearchSpace(SPACE.candidates, act_ties=(("a", "b"),))
    bits = {"a": Bits(3, 4), "b": Bits(2, 4), "head": Bits(8, 8)}
    assert FOUND.scores(tied).total(bits) == pytest.approx(-math.log(0.3 * 0.7 * 0.6))


def test_without_a_binding_budget_the_solve_gives_the_argmax():
    found = solve(Problem(SPACE, FOUND.scores(SPACE), ())).bits
    assert found == {"a": Bits(4, 4), "b": Bits(2, 4), "head": Bits(8, 8)}


def costs(limit):
    rows = {
        name: {bits: {"a": 3.0, "b": 5.0, "head": 1.0}[name] * bits.weight * bits.act for bits in c.pairs}
        for name, c in SPACE.candidates.items()
    }
    return Budget("bitops", limit, Table(rows, "bitops"))


@pytest.mark.parametrize("limit", [100.0, 107.0, 120.0, 125.0, 150.0, 180.0])
def test_fillings_use_the_budget_and_keep_the_order_within_one_cost(limit):
    budget = costs(limit)
    first, *others = fillings(FOUND.scores(SPACE), SPACE, [budget])
    assert first.values == FOUND.scores(SPACE).values
    assert first.unit == "negative_log_probability"
    assert {table.unit for table in others} == {"tilted_negative_log_probability"}
    used = []
    for table in (first, *others):
        solution = solve(Problem(SPACE, table, (budget,)))
        used.append(budget.table.total(solution.bits))
        assert used[-1] <= limit
        same = [p for p in policies() if budget.table.total(p) == used[-1]]
        assert first.total(solution.bits) == pytest.approx(min(map(first.total, same)))
    assert used == sorted(used)
    # Also where the most probable policy, of 152, exceeds the limit, and the most probable one inside it leaves a part unused.
    assert used[-1] == max(total for total in map(budget.table.total, policies()) if total <= limit)


def policies():
    return [{"a": one, "b": two, "head": Bits(8, 8)} for one, two in product(FREE.pairs, FREE.pairs)]


def test_a_loose_budget_has_nothing_to_fill():
    assert len(list(fillings(FOUND.scores(SPACE), SPACE, [costs(1000.0)]))) == 1


def test_saved_and_loaded(tmp_path):
    FOUND.save(tmp_path / "log.json")
    assert LogProbabilities.load(tmp_path / "log.json") == FOUND
    trace = Trace(("bitops",), ("bitops",), (5.0,), ((6.0,), (5.0,)), ((0.1,), (0.2,)), (1.0, 0.9))
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: value["weight"]["a"].update({"4": -5.0}), "weight of layer a: the probabilities do not add up to 1"),
        (lambda value: value["weight"]["a"].update({"4": "much"}), "layer a at 4 bits"),
        (lambda value: value.pop("act"), "act"),
        (lambda value: value.update(version=9), "version 9"),
        (lambda value: value.update(schema="bitalloc.policy"), "another kind"),
    ],
)
def test_a_file_that_was_edited(tmp_path, edit, message):
    value = FOUND.to_json()
    edit(value)
    (tmp_path / "log.json").write_text(json.dumps(value))
    with pytest.raises(FileError, match=message):
        LogProbabilities.load(tmp_path / "log.json")


def test_transferred_to_another_head_and_input_size():
    target = layers(**{**SHAPES, "head": (100, 16)})
    moved = FOUND.transferred(target)
    assert moved.scores(SPACE).values == FOUND.scores(SPACE).values
    assert moved.weight_shapes["head"] == (100, 16)
    wider = [replace(layer, macs=4 * layer.macs) for layer in target]
    assert FOUND.transferred(wider).weight == FOUND.weight


def test_transferred_by_a_name_map():
    names = {"stem": "a", "body": "b"}
    moved = FOUND.transferred(layers(stem=SHAPES["a"], body=SHAPES["b"], head=(5, 4), extra=(2, 2)), names)
    assert moved.weight["stem"] == FOUND.weight["a"]
    assert moved.heads == ("head",)
    space = SearchSpace({"stem": FREE, "body": FREE, "head": Candidates.pinned(Bits(8, 8)), "extra": FREE})
    with pytest.raises(SpaceError, match="no probability for extra"):
        moved.scores(space)


def test_layers_may_change_places():
    square = {"a": (4, 4), "b": (4, 4)}
    moved = replace(FOUND, weight_shapes=square, heads=()).transferred(layers(**square), {"a": "b", "b": "a"})
    assert (moved.weight["a"], moved.weight["b"]) == (FOUND.weight["b"], FOUND.weight["a"])


@pytest.mark.parametrize(
    ("target", "names", "message"),
    [
        ({"a": SHAPES["a"], "c": SHAPES["b"], "head": (10, 4)}, None, "only there b; only here c"),
        ({"a": SHAPES["a"], "head": (10, 4)}, None, "only there b; only here none"),
        ({"a": (4, 1, 3, 3), "b": SHAPES["b"], "head": (10, 4)}, None, r"a \(source \(4, 3, 3, 3\), here \(4, 1, 3, 3\)\)"),
        (SHAPES, {"a": "z"}, "a -> z"),
        (SHAPES, {"q": "a"}, "q -> a"),
        ({"a": SHAPES["b"], "b": SHAPES["b"], "head": (10, 4)}, {"a": "b"}, "sends two layers to one: a and b -> b"),
    ],
)
def test_another_network_is_an_error_that_names_the_layers(target, names, message):
    with pytest.raises(PolicyError, match=message):
        FOUND.transferred(layers(**target), names)


def test_a_width_that_was_not_searched():
    wider = SearchSpace({**SPACE.candidates, "a": Candidates((8, 4), (4, 3))})
    with pytest.raises(SpaceError, match=r"a \(weight at 8 bits\)"):
        FOUND.scores(wider)
