"""Every training of a run folder is written down in ``training.jsonl``."""

import json
from pathlib import Path
from typing import Any

from bitalloc.pipeline.run_journal import flat
from bitalloc.training import read_journal


def entries(out: Path, event: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for entry in read_journal(out / "training.jsonl"):
        if entry.event == event:
            found.setdefault(entry.task, []).append(entry)
    return found


TRAININGS = ["float", "measure", "finetune/first/mixed", "finetune/first/uniform"]


def test_every_training_has_its_steps_its_result_and_its_end(finetuned: Path) -> None:
    # 48 images in batches of 12; 1, 0.75 and 1 epochs.
    steps = entries(finetuned, "step")
    assert {task: [entry.step for entry in lines] for task, lines in steps.items()} == {
        task: [1, 2, 3] if task == "measure" else [1, 2, 3, 4] for task in TRAININGS
    }
    report = json.loads((finetuned / "mixed_finetune.json").read_text())
    assert [entry.values["loss"] for entry in steps["finetune/first/mixed"]] == [float(f"{loss:.6g}") for loss in report["losses"]]
    results = {task: lines[0].values["valid_top1"] for task, lines in entries(finetuned, "result").items()}
    reports = {"float": "float.json", "finetune/first/mixed": "mixed_finetune.json", "finetune/first/uniform": "uniform_finetune.json"}
    assert results == {task: json.loads((finetuned / name).read_text())["valid_top1"] for task, name in reports.items()}
    assert list(entries(finetuned, "finished")) == ["describe", "float", "measure", "importance", "search/first", *TRAININGS[2:]]


def test_a_run_with_nothing_to_do_writes_nothing(finetuned: Path, project: Any) -> None:
    before = (finetuned / "training.jsonl").read_bytes()
    project.good("finetune", "recipe.toml", "--out", "out")
    assert (finetuned / "training.jsonl").read_bytes() == before


def test_a_task_that_is_done_again_is_read_once(finetuned: Path, project: Any) -> None:
    before = {task: len(lines) for task, lines in entries(finetuned, "step").items()}
    project.good("finetune", project.recipe(finetune={"epochs": 0.5}), "--out", "out")
    after = {task: len(lines) for task, lines in entries(finetuned, "step").items()}
    assert after == {**before, "finetune/first/mixed": 2, "finetune/first/uniform": 2}


def test_the_test_results_are_in_it(finished: Path) -> None:
    (found,) = entries(finished, "result")["evaluate"]
    summary = json.loads((finished / "summary.json").read_text())
    assert found.values["float_top1"] == summary["float_top1"]
    assert found.values["first/reversed_top1"] == summary["levels"][0]["reversed_top1"]
    assert found.values["second/mixed_top1"] == summary["levels"][1]["mixed_top1"]
    assert "second/reversed_top1" not in found.values


def test_a_tracker_that_is_not_there_is_said_before_anything_is_done(project: Any, monkeypatch: Any) -> None:
    from bitalloc.training import trackers

    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    error = project.error("run", project.recipe(engine={"trackers": ["wandb"]}), "--out", "out")
    assert error == "the tracker wandb is not installed: pip install 'bitalloc[track]', or leave it out."
    assert not Path("out").exists()
    error = project.error("run", project.recipe(engine={"trackers": ["mlflow"]}), "--out", "out")
    assert "key 'engine.trackers.0': input should be 'tensorboard' or 'wandb', but it is 'mlflow'" in error


def test_trackers_are_no_reason_to_train_again(finetuned: Path, project: Any, monkeypatch: Any) -> None:
    from bitalloc.training import trackers

    monkeypatch.setattr(trackers, "require_trackers", lambda names: None)
    recipe = project.recipe(engine={"trackers": ["tensorboard"]})
    done = project.good("finetune", recipe, "--out", "out").stderr.splitlines()
    assert all(line.endswith("done before") for line in done)
    assert not (finetuned / "tracking").exists()


def test_nested_values_are_flattened_for_trackers() -> None:
    values = {"a": {"b": {"c": 1}, "d": [1, 2], "e": None, "f": True}, "g": "text", "h": 0.5}
    assert flat(values) == {"a.b.c": 1, "a.d": "[1, 2]", "a.e": "None", "a.f": True, "g": "text", "h": 0.5}
