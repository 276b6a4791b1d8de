"""A run that searches by a supernet in the place of the joint training."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitalloc import Policy
from bitalloc.errors import TrainingError
from bitalloc.pipeline import supernet_tasks
from bitalloc.pipeline.recipe_sections import SupernetSection
from bitalloc.supernet import LogProbabilities, Trace
from bitalloc.supernet.step import SearchStep
from bitalloc.training import CheckpointConfig

SUPERNET = {"epochs": 2, "learning_rate": 0.01, "logit_rate": 0.1, "range_start": "auto"}
# The ends are pinned at w8a8, so the three layers of the body share about a quarter of the BitOps.
LEVELS = [
    {"name": "first", "budgets": {"bitops": "45.12k"}, "reversed": True},
    {"name": "second", "budgets": {"weight_bytes": "70B"}},
]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def recipe(project: Any) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path: Path = project.recipe("measure", **{"levels": LEVELS, "supernet": SUPERNET, **changes})
        return path

    return write


def test_it_searches_every_level_and_ends_inside_its_budgets(project: Any, recipe: Any) -> None:
    path = recipe(evaluate={"attribution_images": 12, "attribution_pictures": 2})
    result = project.good("run", path, "--out", "out")
    started = [line.removesuffix(": started") for line in result.stderr.splitlines() if line.endswith(": started")]
    assert started[:6] == ["describe", "float", "supernet/first", "supernet/second", "search/first", "search/second"]
    summary = _read(Path("out/summary.json"))
    for level, folder, unit in zip(summary["levels"], ("out", "out/second"), ("bitops", "weight_bytes"), strict=True):
        (budget,) = level["budgets"]
        assert budget["used"] <= budget["limit"]
        assert level["supernet"]["images"] == 2 * 48
        (end,) = level["supernet"]["budgets"]
        assert (end["limit"], end["unit"]) == (budget["limit"], unit)
        trace = Trace.load(Path(folder, "search_trace.json"))
        assert (len(trace.costs), trace.limits) == (8, (budget["limit"],))
        assert 0 < level["supernet"]["entropy"] < 1
        found = LogProbabilities.load(Path(folder, "log_probabilities.json"))
        assert set(found.weight) == {"body.0", "body.3"}
        policy = Policy.load(Path(folder, "policy.json"))
        assert policy.provenance["method"] == "gmpq"
        assert level["alpha"] is None
        assert level["log_probability"] == pytest.approx(
            sum(found.weight[name][policy.bits[name].weight] + found.act[name][policy.bits[name].act] for name in found.weight)
        )
    assert summary["scoring"]["images"] == 4 * 48
    assert "gmpq took" in result.stdout
    assert Policy.load(Path("out/reversed_policy.json")).provenance["method"] == "reversed"
    distances = _read(Path("out/attribution.json"))["networks"]
    assert set(distances) == {"first mixed", "first uniform", "first reversed", "second mixed", "second uniform"}
    assert [len(entry["spearman"]["per_image"]) for entry in distances.values()] == [12] * 5
    assert summary["levels"][0]["attribution_distance"]["mixed"] == distances["first mixed"]["distance"]
    assert "mixed, ARD" in result.stdout
    assert Path("out/attribution.png").read_bytes().startswith(b"\x89PNG")
    again = project.good("run", path, "--out", "out")
    assert {line.split(": ")[1] for line in again.stderr.splitlines()} == {"done before"}


@pytest.mark.parametrize("method", ["gmpq", "edmips"])
def test_a_label_that_is_no_class_of_the_model_is_an_error_that_says_so(method: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    loss = supernet_tasks._objective(SupernetSection(method=method, power=3), model)
    with pytest.raises(TrainingError, match="as many classes as the data has"):
        loss(model, (torch.rand(2, 1, 6, 6), torch.tensor([0, 3])))


def test_the_attribution_term_is_in_the_loss_of_gmpq_only(project: Any, recipe: Any) -> None:
    one = LEVELS[:1]
    losses = {}
    for method, eta in (("gmpq", 40), ("gmpq", 0), ("edmips", 40)):
        out = f"{method}{eta}"
        project.good("measure", recipe(levels=one, supernet={**SUPERNET, "method": method, "eta": eta}), "--out", out)
        report = _read(Path(out, "supernet.json"))
        assert report["method"] == method
        losses[out] = report["losses"]
    assert losses["gmpq40"] != losses["gmpq0"]
    assert losses["gmpq0"] == pytest.approx(losses["edmips40"])


def test_step_sizes_that_a_search_leaves_at_their_start_are_reported(project: Any, recipe: Any) -> None:
    stuck = {**SUPERNET, "epochs": 0.25, "pair": "lsq", "step_size_rate": 0, "learning_rate": 1e-9}
    project.good("measure", recipe(levels=LEVELS[:1], supernet=stuck), "--out", "out")
    found = _read(Path("out/supernet.json"))["step_size_findings"]
    unmoved = {(one["layer"], one["side"], one["width"]) for one in found if one["problem"] == "unmoved"}
    searched = LogProbabilities.load(Path("out/log_probabilities.json")).weight
    assert unmoved >= {(name, "weight", width) for name, row in searched.items() for width in row}
    assert {layer for layer, _, _ in unmoved} == set(searched)


def test_every_option_of_the_search_runs(project: Any, recipe: Any) -> None:
    short = {**SUPERNET, "epochs": 0.25}
    for number, options in enumerate(
        (
            {"pair": "lsq", "relaxation": "gumbel", "ranking": "spearman"},
            {"relaxation": "single-path", "power": 3, "layers": ["body"]},
            {"attribution": "input-gradient", "price": 0.01, "range_start": 6},
            {"attribution": "gradient-times-input", "least_use": 0, "pinned_in_float": False},
        )
    ):
        project.good("search", recipe(levels=LEVELS[:1], supernet={**short, **options}), "--out", f"out{number}")


def test_killed_in_a_search_it_ends_in_the_same_numbers(project: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(levels=LEVELS[:1], supernet={**SUPERNET, "relaxation": "gumbel"})
    project.good("search", path, "--out", "whole")
    step, calls = SearchStep.__call__, []

    def dying(self: SearchStep, model: Any, batch: Any) -> float:
        calls.append(0)
        if len(calls) > 5:
            raise MemoryError("killed")
        return step(self, model, batch)

    monkeypatch.setattr(supernet_tasks, "CheckpointConfig", partial(CheckpointConfig, steps=1))
    with monkeypatch.context() as patch:
        patch.setattr(SearchStep, "__call__", dying)
        project.run("search", path, "--out", "out")
    assert len(calls) == 6
    assert not Path("out/supernet.json").exists()
    resumed = project.good("search", path, "--out", "out")
    assert "supernet search: resumed, 5 of 8 done before" in resumed.stderr
    for name in ("search_trace.json",):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    whole, found = (LogProbabilities.load(Path(folder, "log_probabilities.json")) for folder in ("whole", "out"))
    assert (found.weight, found.act) == (whole.weight, whole.act)
    assert Path("out/policy.json").read_bytes() == Path("whole/policy.json").read_bytes()


def test_only_the_solve_depends_on_how_full_a_budget_is_to_be(project: Any, recipe: Any) -> None:
    project.good("search", recipe(levels=LEVELS[:1]), "--out", "out")
    again = project.good("search", recipe(levels=LEVELS[:1], supernet={**SUPERNET, "least_use": 0}), "--out", "out")
    assert "supernet/first: done before" in again.stderr
    assert "search/first: started" in again.stderr


def test_frontier_explain_and_measure_work_on_a_search(project: Any, recipe: Any) -> None:
    path = recipe(levels=LEVELS[:1])
    assert "entropy of the choices" in project.good("measure", path, "--out", "out").stdout
    project.good("frontier", path, "--out", "out")
    assert _read(Path("out/frontier.json"))["points"]
    assert "body.0" in project.good("explain", path, "--layer", "body.0", "--out", "out").stdout
    assert "log-probability" in project.good("search", path, "--out", "out").stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": {"epochs": 1}}, "[measure] and [supernet] are two ways"),
        ({"finetune": {"start": "joint"}}, "finetune.start = 'joint' needs the joint training"),
        ({"supernet": {"layers": ["nothing"]}}, "no module with a feature map matches 'nothing'"),
        ({"supernet": {"layers": ["body"], "attribution": "input-gradient"}}, "leave them out"),
        ({"supernet": {"price": 0.1}}, "give every level the budget bitops alone"),
        ({"levels": [{"name": "low", "budgets": {"bitops": 100}}]}, "level low: "),
    ],
)
def test_what_is_wrong_is_told_before_any_training(project: Any, recipe: Any, changes: dict[str, Any], message: str) -> None:
    assert message in project.error("run", recipe(**changes), "--out", "out")
    assert not Path("out/float.json").exists()
