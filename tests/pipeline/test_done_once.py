"""What is done is not done again, unless its inputs changed; each stage alone does what is missing before it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bitalloc import Policy

LEVEL = {"name": "first", "budgets": {"bitops": "45.12k", "compression": 5}}
OTHER = {"name": "other", "budgets": {"weight_bytes": "70B"}}
BEFORE = ["describe", "float", "measure", "importance", "search/first", "finetune/first/mixed", "finetune/first/uniform"]


def _started(result: Any) -> list[str]:
    return [line.removesuffix(": started") for line in result.stderr.splitlines() if line.endswith(": started")]


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({}, []),
        ({"name": "another name"}, []),
        ({"finetune": {"epochs": 0.5}}, BEFORE[5:]),
        ({"measure": {"alpha": 2.5, "projection": "none"}}, BEFORE[4:5]),
        ({"measure": {"metric": "divergence"}}, BEFORE[3:5]),
        ({"measure": {"metric": "attribution"}}, BEFORE[3:5]),
        ({"measure": {"epochs": 0.5}}, BEFORE[2:5]),
        ({"space": {"weight": [5, 2]}}, BEFORE[2:5]),
        ({"levels": [{**LEVEL, "budgets": {"bitops": "42k"}}]}, BEFORE[4:5]),
        ({"data_options": {"images": 36}}, BEFORE[1:]),
        ({"seed": 1}, BEFORE),
        # The same model comes out, so the search has the same inputs.
        ({"model_options": {"width": 4}}, [*BEFORE[:4], *BEFORE[5:]]),
    ],
    ids=str,
)
def test_a_changed_recipe_redoes_just_what_depends_on_it(finetuned: Path, project: Any, changes: dict[str, Any], redone: list[str]) -> None:
    policies = {"finetune/first/mixed": finetuned / "policy.json", "finetune/first/uniform": finetuned / "uniform_policy.json"}
    before = {task: Policy.load(path).bits for task, path in policies.items()}
    started = _started(project.good("finetune", project.recipe(**changes), "--out", "out"))
    # A policy that came out with other widths is trained again, of course.
    changed = [task for task, path in policies.items() if Policy.load(path).bits != before[task]]
    assert started == [task for task in BEFORE if task in redone or task in changed]
    assert _started(project.good("finetune", "recipe.toml", "--out", "out")) == []


def test_a_seed_on_the_command_line_replaces_that_of_the_recipe(finetuned: Path, project: Any) -> None:
    first = load_file(finetuned / "float.safetensors")["head.weight"]
    project.good("measure", "recipe.toml", "--out", "out", "--seed", 3)
    other = load_file(finetuned / "float.safetensors")["head.weight"]
    assert not first.equal(other)
    project.good("measure", project.recipe(seed=3), "--out", "again")
    assert other.equal(load_file("again/float.safetensors")["head.weight"])


def test_an_edited_policy_is_kept_and_trained(finetuned: Path, project: Any) -> None:
    path = finetuned / "policy.json"
    policy = json.loads(path.read_text())
    policy["layers"]["body.3"] |= {"weight_bits": 7, "act_bits": 3}  # not even candidates
    path.write_text(json.dumps(policy))
    edited = path.read_bytes()
    assert _started(project.good("search", "recipe.toml", "--out", "out")) == []
    assert _started(project.good("finetune", "recipe.toml", "--out", "out")) == ["finetune/first/mixed"]
    assert path.read_bytes() == edited
    steps = load_file(finetuned / "mixed.safetensors")
    assert any(name.startswith("body.3.weight_quantizer") for name in steps)


def test_the_summary_counts_an_edited_policy_as_it_is(finished: Path, project: Any) -> None:
    path = finished / "policy.json"
    policy = json.loads(path.read_text())
    for name in ("body.0", "body.3"):
        policy["layers"][name] |= {"weight_bits": 8, "act_bits": 8}
    path.write_text(json.dumps(policy))
    result = project.good("run", "recipe.toml", "--out", "out", "--json")
    assert _started(result) == ["finetune/first/mixed", "evaluate", "export/first"]
    level, second = json.loads(result.stdout)["levels"]
    used = {budget["name"]: budget["used"] for budget in level["budgets"]}
    assert used == {"bitops": (576 + 576 + 256 + 12) * 64, "compression": 100}
    assert level["bitops"] == used["bitops"]
    assert (level["policy_edited"], second["policy_edited"]) == (True, False)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("layers.json", "describe"),
        ("float.safetensors", "float"),
        ("importance.json", "importance"),
        ("step_sizes.json", "measure"),
        ("search.json", "search/first"),
    ],
)
def test_a_deleted_output_is_made_again(
    finetuned: Path, project: Any, contents: Callable[[Path], dict[str, bytes]], name: str, task: str
) -> None:
    before = contents(finetuned)
    (finetuned / name).unlink()
    # The same content comes out, so nothing behind it is done again.
    assert _started(project.good("finetune", "recipe.toml", "--out", "out")) == [task]
    after = contents(finetuned)
    timed = {"search.json", "float.json", "measure.json", "metric.json", "training.jsonl"}
    assert {key: value for key, value in after.items() if key not in timed} == {key: v for key, v in before.items() if key not in timed}


def test_a_replaced_float_model_is_measured_anew(finetuned: Path, project: Any) -> None:
    project.good("measure", "recipe.toml", "--out", "other", "--seed", 5)
    (finetuned / "float.safetensors").write_bytes(Path("other/float.safetensors").read_bytes())
    done = _started(project.good("search", "recipe.toml", "--out", "out"))
    assert done == ["measure", "importance", "search/first"]


@pytest.mark.parametrize("levels", [[OTHER, LEVEL], [OTHER]], ids=["swapped", "first removed"])
def test_the_files_of_another_first_level_are_not_mistaken(project: Any, levels: list[dict[str, Any]]) -> None:
    project.good("search", project.recipe(levels=[LEVEL, OTHER]), "--out", "out")
    wanted = Policy.load(Path("out/other/policy.json"))
    done = _started(project.good("search", project.recipe(levels=levels), "--out", "out"))
    assert "search/other" in done
    assert Policy.load(Path("out/policy.json")) == wanted


def test_a_new_level_costs_no_measurement(finetuned: Path, project: Any) -> None:
    done = _started(project.good("finetune", project.recipe(levels=[LEVEL, OTHER]), "--out", "out"))
    assert done == ["search/other", "finetune/other/mixed", "finetune/other/uniform"]


@pytest.mark.parametrize(
    ("stage", "tasks"),
    [("describe", BEFORE[:1]), ("measure", BEFORE[:4]), ("search", BEFORE[:5]), ("finetune", BEFORE), ("evaluate", [*BEFORE, "evaluate"])],
)
def test_a_stage_does_those_before_it_and_none_behind(project: Any, stage: str, tasks: list[str]) -> None:
    assert _started(project.good(stage, project.recipe(), "--out", "out")) == tasks
    assert not Path("out/summary.json").exists()


@pytest.mark.parametrize(
    "changes",
    [{}, {"data": "tiny_module:loaders"}, {"data_options": {"shared": True}, "float": {"epochs": 1.5}}],
    ids=["plain", "loaders", "shared"],
)
def test_stage_by_stage_is_the_same_as_all_at_once(
    project: Any, contents: Callable[[Path], dict[str, bytes]], changes: dict[str, Any]
) -> None:
    recipe = project.recipe(**changes)
    project.good("finetune", recipe, "--out", "whole")
    for stage in ("describe", "measure", "search", "finetune"):
        project.good(stage, recipe, "--out", "out")
    weights = [name for name in contents(Path("whole")) if name.endswith((".safetensors", "policy.json", "importance.json"))]
    assert {name: contents(Path("out"))[name] for name in weights} == {name: contents(Path("whole"))[name] for name in weights}


def test_export_does_only_what_is_missing(finished: Path, project: Any) -> None:
    (finished / "second/model.onnx").unlink()
    record = json.loads((finished / "stages.json").read_text())
    others = (finished / "model.onnx").stat().st_mtime_ns
    result = project.good("export", "recipe.toml", "--out", "out", "--quiet", "--json")
    assert (json.loads(result.stdout)["second"]["images"], result.stderr) == (24, "")
    assert (finished / "second/model.onnx").stat().st_size > 1000
    assert (finished / "model.onnx").stat().st_mtime_ns == others
    assert json.loads((finished / "stages.json").read_text()) == record


def test_the_joint_weights_are_a_start_for_the_fine_tuning(finetuned: Path, project: Any) -> None:
    done = _started(project.good("finetune", project.recipe(finetune={"start": "joint", "epochs": 0}), "--out", "out"))
    assert done == ["finetune/first/mixed", "finetune/first/uniform"]
    joint, mixed = load_file(finetuned / "joint.safetensors"), load_file(finetuned / "mixed.safetensors")
    assert mixed["body.3.weight"].equal(joint["body.3.weight"])
    assert not mixed["body.3.weight"].equal(load_file(finetuned / "float.safetensors")["body.3.weight"])


def test_a_model_that_changed_since_is_noticed(finetuned: Path, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_module  # type: ignore[import-not-found]

    monkeypatch.setattr(tiny_module, "net", lambda: tiny_module.Net(5))
    message = project.error("finetune", "recipe.toml", "--out", "out")
    assert "layers.json describes another model" in message
    assert "stem.0, body.0, body.3, head" in message


def test_an_edited_source_file_of_the_model_is_noticed(finetuned: Path, project: Any) -> None:
    source = Path(str(sys.modules["tiny_module"].__file__))
    before = source.read_bytes()
    try:
        source.write_bytes(before + b"\n# edited\n")
        assert _started(project.good("finetune", project.recipe(), "--out", "out"))[:2] == ["describe", "float"]
    finally:
        source.write_bytes(before)


def test_the_policys_score_alone_trains_nothing_again(finetuned: Path, project: Any) -> None:
    """Another alpha that gives the same widths costs a search, not a fine-tuning."""
    policy = Path("out/policy.json")
    edited = json.loads(policy.read_text(encoding="utf-8"))
    edited["provenance"]["objective"] = 0.0
    policy.write_text(json.dumps(edited), encoding="utf-8")
    assert _started(project.good("finetune", project.recipe(), "--out", "out")) == []


def test_a_new_search_keeps_a_policy_that_was_edited_by_hand(finetuned: Path, project: Any) -> None:
    policy = Path("out/policy.json")
    edited = json.loads(policy.read_text(encoding="utf-8"))
    name = next(iter(edited["layers"]))
    edited["layers"][name]["weight_bits"] = 7
    policy.write_text(json.dumps(edited), encoding="utf-8")
    project.good("search", project.recipe(measure={"alpha": 3.5}), "--out", "out")
    assert Policy.load(Path("out/policy.edited.json")).bits[name].weight == 7
    assert Policy.load(policy).bits[name].weight != 7
