"""What an explanation says: prices, the candidates of layers, the next changes; as JSON and as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from bitalloc.policy import Bits
from bitalloc.search.units import amount

Direction = Literal["shrinks", "grows"]


@final
@dataclass(frozen=True, slots=True)
class Price:
    """What a budget is worth at the optimum.

    Attributes:
        budget: its name.
        unit: of limit and use.
        limit: the largest allowed sum.
        used: the sum at the chosen widths.
        price: how much one unit more of the limit lowers the score in the Lagrangian relaxation; 0 where the budget does not bind.
    """

    budget: str
    unit: str
    limit: float
    used: float
    price: float


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate of a layer.

    Attributes:
        bits: the widths.
        score: of the layer.
        costs: of the layer, by budget.
        reduced_cost: how much score + sum of price x cost is above that of the layer's best candidate. Layers that are tied to this one
            are counted, each at the best widths that the tie then allows it; infinity where it allows none.
    """

    bits: Bits
    score: float
    costs: Mapping[str, float]
    reduced_cost: float


@final
@dataclass(frozen=True, slots=True)
class LayerChoices:
    """The candidates of one layer.

    Attributes:
        layer: its name.
        bits: the chosen widths.
        tied: names of the layers that share a width with it.
        choices: one for every candidate, widest first.
    """

    layer: str
    bits: Bits
    tied: tuple[str, ...]
    choices: tuple[Choice, ...]

    def closest(self) -> Choice | None:
        """The candidate of least reduced cost beside the chosen one; ``None`` for a layer without a choice."""
        return min((choice for choice in self.choices if choice.bits != self.bits), key=lambda choice: choice.reduced_cost, default=None)


@final
@dataclass(frozen=True, slots=True)
class NextChange:
    """Where the best policy gives a layer other widths.

    Attributes:
        layer: its name.
        budget: the one that changes; the others stay as they are.
        direction: whether that budget ``shrinks`` or ``grows``.
        limit: of that budget. It ``shrinks``: the widths stay the best down to this limit and change below it. It ``grows``: they stay the
            best below this limit and change at it.
        old: widths now.
        new: widths then.
        objective: score of the best policy then.
    """

    layer: str
    budget: str
    direction: Direction
    limit: float
    old: Bits
    new: Bits
    objective: float


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """Why layers have their widths.

    Attributes:
        score: unit of the score.
        objective: the total score.
        prices: one for every budget.
        layers: the layers that were asked for.
        changes: of one layer its next changes; of all layers those that change with the next Pareto-optimal policy of each budget.
    """

    score: str
    objective: float
    prices: tuple[Price, ...]
    layers: tuple[LayerChoices, ...]
    changes: tuple[NextChange, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "score": self.score,
            "objective": self.objective,
            "prices": [asdict(price) for price in self.prices],
            "layers": [
                {
                    "layer": entry.layer,
                    "bits": str(entry.bits),
                    "tied": list(entry.tied),
                    "choices": [_choice_to_json(choice) for choice in entry.choices],
                }
                for entry in self.layers
            ],
            "changes": [{**asdict(change), "old": str(change.old), "new": str(change.new)} for change in self.changes],
        }

    def as_text(self) -> str:
        """Lines of text: of one layer every candidate, of several a table with a line for each."""
        lines = [*self._prices(), "", *(_detail(self.layers[0]) if len(self.layers) == 1 else _overview(self.layers))]
        return "\n".join([*lines, "", *map(self._change, self.changes)]).rstrip()

    def _prices(self) -> Iterator[str]:
        yield f"total {self.score} {self.objective:.6g}"
        for entry in self.prices:
            # A hundredth of the budget is a step that one can picture; one BitOp is none.
            step = entry.limit / 100
            use = f"{entry.budget}: {amount(entry.used, entry.unit)} of at most {amount(entry.limit, entry.unit)}"
            yield f"{use}; 1 % more would lower the score by about {entry.price * step:.3g} ({entry.price:.3g} a unit)"

    def _change(self, change: NextChange) -> str:
        unit = next(price.unit for price in self.prices if price.budget == change.budget)
        where = "below" if change.direction == "shrinks" else "from"
        what = f"{change.layer}: {change.new} instead of {change.old} when {change.budget} {change.direction}"
        return f"{what}, {where} {amount(change.limit, unit)}"


def _detail(entry: LayerChoices) -> list[str]:
    head = f"{entry.layer}: {entry.bits}" + (f", tied to {', '.join(entry.tied)}" if entry.tied else "")
    names = list(entry.choices[0].costs)
    rows = [["", "widths", "score", *names, "reduced cost"]]
    for choice in entry.choices:
        mark = "*" if choice.bits == entry.bits else ""
        rows.append([mark, str(choice.bits), f"{choice.score:.6g}", *_costs(choice, names), f"{choice.reduced_cost:.6g}"])
    return [head, *_aligned(rows)]


def _overview(layers: Sequence[LayerChoices]) -> list[str]:
    names = list(layers[0].choices[0].costs)
    rows = [["layer", "widths", "score", *names, "closest", "reduced cost"]]
    for entry in layers:
        chosen = next(choice for choice in entry.choices if choice.bits == entry.bits)
        other = entry.closest()
        last = ["-", "-"] if other is None else [str(other.bits), f"{other.reduced_cost:.6g}"]
        rows.append([entry.layer, str(entry.bits), f"{chosen.score:.6g}", *_costs(chosen, names), *last])
    return _aligned(rows)


def _costs(choice: Choice, names: Sequence[str]) -> list[str]:
    return [f"{choice.costs[name]:,.0f}" if abs(choice.costs[name]) >= 1000 else f"{choice.costs[name]:.6g}" for name in names]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    reachable = choice.reduced_cost < float("inf")
    return {**asdict(choice), "bits": str(choice.bits), "reduced_cost": choice.reduced_cost if reachable else None}
