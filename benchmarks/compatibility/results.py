"""What the sweep found, as JSON and as a table."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

COLUMNS = ("wraps", "MACs", "equal at 32 bits", "trains at W4A4", "policy solves", "state dict")
BEGIN, END = "<!-- sweep: begin -->", "<!-- sweep: end -->"
_LIBRARIES = ("torch", "torchvision", "timm", "transformers")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: whether it held, why not, and its seconds."""

    passed: bool
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """One model.

    Attributes:
        name: ``library/model``.
        outcomes: check to outcome; empty if the model could not even be built or did not end.
        facts: numbers and lists that the checks noted.
        seconds: of the whole model.
    """

    name: str
    outcomes: Mapping[str, Outcome]
    facts: Mapping[str, Any]
    seconds: float

    @property
    def green(self) -> bool:
        """Whether every check held."""
        return len(self.outcomes) == len(COLUMNS) and all(outcome.passed for outcome in self.outcomes.values())

    def passed(self, column: str) -> bool:
        """Whether one check held."""
        return column in self.outcomes and self.outcomes[column].passed

    def reasons(self) -> str:
        """Why checks failed and what is special, in one line."""
        if "error" in self.facts:
            return str(self.facts["error"])
        notes = [str(self.facts["note"])] if "note" in self.facts else []
        return "; ".join([*notes, *(f"{name}: {outcome.reason}" for name, outcome in self.outcomes.items() if not outcome.passed)])

    def share(self) -> str:
        """Which share of the multiply-accumulates is in quantized layers."""
        return f"{self.facts['macs_in_layers'] / self.facts['macs']:.1%}" if self.facts.get("macs") else ""

    def line(self) -> str:
        """For the terminal."""
        marks = "".join("." if self.passed(column) else "F" for column in COLUMNS)
        return f"{marks} {self.seconds:6.1f} s  {self.name}  {self.reasons()[:200]}"


def summary(results: Sequence[Result]) -> str:
    """How many models pass each check, and all of them."""
    counts = [f"{column} {sum(result.passed(column) for result in results)}" for column in COLUMNS]
    return f"{sum(result.green for result in results)} of {len(results)} models pass every check; {', '.join(counts)}."


def versions() -> dict[str, str]:
    """What it ran with."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def as_json(results: Sequence[Result]) -> str:
    """Everything."""
    return json.dumps({"versions": versions(), "models": [asdict(result) for result in results]}, indent=1) + "\n"


def as_markdown(results: Sequence[Result], page: Path) -> None:
    """Writes the table between the markers of ``page``, or a page of its own if there is none."""
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}")


def table(results: Sequence[Result]) -> str:
    """One row a model, the totals and the versions above."""
    rows = [
        f"| {result.name} | "
        + " | ".join("yes" if result.passed(column) else "**no**" for column in COLUMNS)
        + f" | {result.facts.get('layers', '')} | {result.share()} | {_cell(result.reasons())} |"
        for result in results
    ]
    titles = ("model", *COLUMNS, "layers", "MACs in them", "reason or note")
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    return "\n".join((summary(results), "", f"Run with {used}.", "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *rows))


def _cell(text: str, most: int = 300) -> str:
    shown = " ".join(text.split()).replace("|", "\\|")
    return shown if len(shown) <= most else shown[: most - 3] + "..."
