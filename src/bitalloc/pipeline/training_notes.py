"""What did not go smoothly in the trainings of a run: retries, batches split for lack of memory, step sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitalloc.pipeline.run_folder import read_report
from bitalloc.training import Retry
from bitalloc.wrap import StepSizeFinding

_SHOWN = 3
_SIDES = {"weight": "weights", "act": "activations"}
_PROBLEMS = {
    "collapsed": ("collapsed", "collapsed"),
    "one level": ("leaves one level only", "leave one level only"),
    "saturated": ("saturates", "saturate"),
    "unmoved": ("never moved from its start", "never moved from their start"),
}
"""What is said of one step size, and of several."""


def training_notes(retries: Sequence[Retry], parts: int, findings: Sequence[StepSizeFinding] = ()) -> dict[str, Any]:
    """The part of a training's report that :func:`notes` reads again."""
    return {
        "retries": [asdict(retry) for retry in retries],
        "parts": parts,
        "step_size_findings": [asdict(finding) for finding in findings],
    }


def notes(name: str, path: Path, accumulate: int) -> list[str]:
    """Sentences about one training, for the summary; none where it went smoothly.

    Args:
        name: of the training.
        path: its report.
        accumulate: parts of a batch that the recipe asks for.
    """
    return [f"{name}: {line}" for line in _lines(read_report(path), path, accumulate)]


def _lines(report: dict[str, Any], path: Path, accumulate: int) -> Iterator[str]:
    for retry in report.get("retries", ()):
        yield f"{retry['reason']} It went back to step {retry['back_to']} and on at {retry['rate']:.4g} of the learning rate."
    parts = report.get("parts", 1)
    if parts > accumulate:
        yield f"batches were split into {parts} parts for lack of memory."
    findings = report.get("step_size_findings", ())
    for problem, (of_one, of_several) in _PROBLEMS.items():
        found = [finding for finding in findings if finding["problem"] == problem]
        if found:
            rest = f" and {len(found) - _SHOWN} more, in {path.name}" if len(found) > _SHOWN else ""
            listed = "; ".join(map(_where, found[:_SHOWN]))
            words = f"1 step size {of_one}" if len(found) == 1 else f"{len(found)} step sizes {of_several}"
            yield f"{words}: {listed}{rest}. What to do: {found[0]['advice']}."


def _where(finding: dict[str, Any]) -> str:
    clipped = "" if finding["problem"] != "saturated" else f", {100 * finding['clipped']:.0f} % of the values beyond the grid"
    change = f"{finding['start']:.3g} to {finding['end']:.3g}"
    return f"{finding['layer']} {_SIDES[finding['side']]} at {finding['width']} bits ({change}{clipped})"
