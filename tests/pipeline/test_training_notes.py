"""What did not go smoothly in a training is in its report and in the summary."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitalloc.training import Retry

FINDING = {
    "layer": "body.0",
    "side": "act",
    "width": 4,
    "problem": "unmoved",
    "start": 0.25,
    "end": 0.25,
    "clipped": 0.01,
    "advice": "train it",
}
RETRY = {"step": 8, "back_to": 6, "rate": 0.5, "reason": "the loss is nan at step 8."}


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_report_of_a_training_says_how_smoothly_it_went(finished: Path) -> None:
    """The network is tiny and trained for an epoch, so some step sizes at 2 bits may well saturate."""
    findings = 0
    for name in ("float.json", "measure.json", "mixed_finetune.json", "uniform_finetune.json", "second/uniform_finetune.json"):
        report = json.loads((finished / name).read_text())
        assert (report["retries"], report["parts"]) == ([], 1)
        assert {finding["problem"] for finding in report["step_size_findings"]} <= {"saturated"}
        findings += len(report["step_size_findings"])
    notes = json.loads((finished / "summary.json").read_text())["training_notes"]
    assert all("saturate" in note for note in notes)
    assert len(notes) >= (findings > 0)


def test_the_summary_names_training_layer_side_width_and_what_to_do(finished: Path, project: Any) -> None:
    saturated = FINDING | {"layer": "head", "side": "weight", "width": 2, "problem": "saturated", "clipped": 0.4, "advice": "more bits"}
    for path in finished.rglob("*_finetune.json"):
        _change(path, step_size_findings=[])
    _change(finished / "float.json", retries=[RETRY])
    _change(finished / "measure.json", parts=4, step_size_findings=[FINDING] * 5)
    _change(finished / "second" / "mixed_finetune.json", step_size_findings=[saturated])
    result = project.good("run", "recipe.toml", "--out", "out")
    one = "body.0 activations at 4 bits (0.25 to 0.25)"
    expected = [
        "float training: the loss is nan at step 8. It went back to step 6 and on at 0.5 of the learning rate.",
        "joint training: batches were split into 4 parts for lack of memory.",
        f"joint training: 5 step sizes never moved from their start: {one}; {one}; {one} and 2 more, in measure.json. "
        "What to do: train it.",
        "fine-tuning second mixed: 1 step size saturates: head weights at 2 bits (0.25 to 0.25, 40 % of the values beyond the grid). "
        "What to do: more bits.",
    ]
    assert json.loads((finished / "summary.json").read_text())["training_notes"] == expected
    words = " ".join(result.stdout.split())
    assert all(line in words for line in expected)


@pytest.mark.parametrize(
    ("changes", "again"),
    [({"retries": 3, "split_on_memory": True, "loss_limit": 0}, False), ({"accumulate": 2}, True), ({"retry_rate": 0.25}, True)],
)
def test_what_matters_only_when_a_training_fails_trains_nothing_again(finetuned: Path, project: Any, changes: Any, again: bool) -> None:
    """So that it can be allowed after a failure, and the run goes on at its last checkpoint."""
    result = project.good("measure", project.recipe(engine=changes), "--out", "out")
    assert ("float: started" in result.stderr) is again


def test_the_recipe_allows_retries(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is so high that the loss explodes; a ten thousandth of it is fine."""
    recipe = project.recipe(
        float={"learning_rate": 1e9, "epochs": 2}, engine={"retries": 1, "retry_rate": 1e-11}, finetune={"learning_rate": 1e-3}
    )
    project.good("measure", recipe, "--out", "out")
    report = json.loads(Path("out/float.json").read_text())
    (retry,) = [Retry(**retry) for retry in report["retries"]]
    assert (retry.back_to, retry.rate) == (0, 1e-11)
    assert retry.step >= 2


def test_without_retries_the_command_ends_with_the_step_and_the_layer(project: Any) -> None:
    message = project.error("measure", project.recipe(float={"learning_rate": 1e30, "epochs": 2}), "--out", "out")
    assert "at step 2 (" in message
    assert "layer" in message or "parameters not finite" in message
