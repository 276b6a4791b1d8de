"""From a solution to a policy that says where it comes from."""

import json

import pytest

from bitalloc.budget import Budget
from bitalloc.errors import PolicyError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits, Policy
from bitalloc.search import Frontier, Problem, frontier, solve
from bitalloc.search.solution import judged
from bitalloc.space import Candidates, SearchSpace, Table

LAYERS = [LayerInfo("a", "linear", (3, 4), 12, 4, 3), LayerInfo("b", "linear", (2, 3), 6, 3, 2)]
SPACE = SearchSpace(dict.fromkeys("ab", Candidates((8, 4), (8,))))
COST = Table({"a": {Bits(8, 8): 8.0, Bits(4, 8): 4.0}, "b": {Bits(8, 8): 4.0, Bits(4, 8): 2.0}}, "weight_bytes")
SCORE = Table({"a": {Bits(8, 8): 1.0, Bits(4, 8): 2.0}, "b": {Bits(8, 8): 0.5, Bits(4, 8): 5.0}}, "importance")
SOLUTION = solve(Problem(SPACE, SCORE, (Budget("size", 9.0, COST),)))


def test_the_policy_carries_its_proof() -> None:
    # The price is 0: layer a at 8 bits is too large beside the smallest b, so a little more budget would buy nothing.
    policy = SOLUTION.policy(LAYERS, {"method": "limpq", "seed": 3})
    assert policy.bits == {"a": Bits(4, 8), "b": Bits(8, 8)}
    assert policy.provenance == {
        "method": "limpq",
        "seed": 3,
        "status": "optimal",
        "objective": 2.5,
        "bound": 2.5,
        "gap": 0.0,
        "budgets": [{"name": "size", "limit": 9.0, "unit": "weight_bytes", "used": 8.0, "slack": 1.0, "price": 0.0}],
    }
    assert Policy.loads(json.dumps(policy.to_json())) == policy


def test_scores_that_cancel_do_not_make_the_gap_endless() -> None:
    # 1 - 1 = 0: the gap is measured by 1e-4 of the sizes 1, 1 and of the bound 2.
    score = Table({"a": {Bits(8, 8): 1.0, Bits(4, 8): 2.0}, "b": {Bits(8, 8): -1.0, Bits(4, 8): 5.0}}, "importance")
    problem = Problem(SPACE, score, ())
    bits = dict.fromkeys("ab", Bits(8, 8))
    assert judged(problem, bits, -2.0, 0.0).gap == pytest.approx(2.0 / 4e-4)
    assert (judged(problem, bits, -1e-15, 0.0).gap, judged(problem, bits, -1e-15, 0.0).status) == (0.0, "optimal")
    assert judged(Problem(SPACE, SCORE, ()), bits, 1.2, 0.0).gap == pytest.approx(0.3 / 1.5)
    assert solve(problem, gap=1e-3).status == "optimal"


@pytest.mark.parametrize(("layers", "named"), [(LAYERS[:1], "b"), ([*LAYERS, LayerInfo("c", "linear", (1,), 1, 1, 1)], "c")])
def test_another_models_layers_are_refused(layers: list[LayerInfo], named: str) -> None:
    with pytest.raises(PolicyError, match=f": {named}"):
        SOLUTION.policy(layers, {})


def test_layers_that_read_one_tensor_share_its_quantizer_in_the_policy_too() -> None:
    space = SearchSpace(dict.fromkeys("ab", Candidates((8, 4), (8,))), shared_inputs=(("a", "b"),))
    problem = Problem(space, SCORE, (Budget("size", 9.0, COST),))
    assert solve(problem).policy(LAYERS, {}).shared_inputs == (("a", "b"),)
    found = frontier(problem, "size")
    again = Frontier.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert again.points[0].policy(LAYERS, {}).shared_inputs == (("a", "b"),)
