"""From what a person writes (``"1.2MB"``, ``12.2``, ``"w3a4"``, ``"0.25x float"``) to budgets."""

from collections.abc import Mapping, Sequence

from bitalloc.budget import Budget
from bitalloc.costs.amounts import COMPRESSION, NOTATIONS, Notation, of_table
from bitalloc.costs.measures import Measure, Measured, measure_of
from bitalloc.errors import BudgetError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace, Table

BudgetSpec = Mapping[str, str | float]


def resolve_budgets(
    spec: BudgetSpec,
    model: Description | Sequence[LayerInfo],
    space: SearchSpace,
    uniform_space: SearchSpace | None = None,
    *,
    tables: Mapping[str, Table] | None = None,
    per_channel: bool = False,
) -> tuple[Budget, ...]:
    """The budgets that ``spec`` writes down, in its order.

    Keys:

    - ``bitops``: MACs x weight bits x activation bits, see :class:`BitOps`.
    - ``weight_bytes``: the packed weights, see :class:`WeightBytes`; ``model_bytes``: with step sizes and biases, see
      :class:`ModelBytes`.
    - ``compression``: how many times smaller than in floating point the weights are (``12.2`` or ``"12.2x"``): a limit of
      4 bytes x all weights / 12.2 on ``weight_bytes``.
    - ``activation_bytes``: all activations, see :func:`activation_bytes`; ``peak_activation_bytes``: those alive at the same time,
      see :func:`peak_activation_bytes`. The peak becomes one budget for every moment that can exceed the limit, all of one name.
    - ``mean_bits``, ``mean_act_bits``: mean width of the weights and of the activations, see :class:`MeanBits`.
    - the names in ``tables``.

    Values of all but ``compression``:

    - absolute: a number in the key's unit, or with a unit (``"23.07G"``, ``"55.3GBitOps"``, ``"1.2MB"`` = 1 200 000, ``"1.1MiB"`` =
      1.1 x 2^20); a table knows the unit that it was written with, and no other;
    - ``"w3a4"``, like a uniform policy, or a multiple of it, ``"0.9x w3a4"``;
    - ``"0.25x float"``, a share of the network in floating point, every layer at 32 bits.

    Like a uniform policy means that every layer is counted at that pair, be it a candidate or not, and the pinned ones at their pins:
    those of ``uniform_space`` where it is given, so that a search may lower layers that the uniform policy keeps at 8 bits. All
    described layers are counted on both sides of every budget.

    Args:
        spec: key to value.
        model: the description of the model. Its layers alone serve every key but ``model_bytes``, ``activation_bytes`` and
            ``peak_activation_bytes``.
        space: the candidates of every layer.
        uniform_space: the space that uniform policies are from; default ``space``.
        tables: costs that were measured, by the name that ``spec`` calls them: ``{"latency": load_table(path)}``.
        per_channel: whether weights have one step size an output channel, for ``model_bytes``.

    Raises:
        BudgetError: a key is unknown, a value cannot be understood, or a table lacks a value or has a negative one; the message names
            the key and the value, or the layer.
        SpaceError: ``model`` and ``space`` are not about the same layers.
    """
    return Costs(model, space, tables, per_channel=per_channel).budgets(spec, uniform_space)


def uniform_bits_of(spec: BudgetSpec) -> Bits | None:
    """The pair of the first value that is written just like a uniform policy (``"w3a4"``), ``None`` if there is none.

    Raises:
        BudgetError: the pair has a width that is not supported.
    """
    relations = ((NOTATIONS.get(key) or of_table(key, "")).relation(value) for key, value in spec.items())
    return next((found.bits for found in relations if found is not None and found.factor == 1 and found.bits is not None), None)


class Costs:
    """Everything that can be counted of one model: what budgets limit, and what a policy uses of it."""

    def __init__(
        self,
        model: Description | Sequence[LayerInfo],
        space: SearchSpace,
        tables: Mapping[str, Table] | None = None,
        *,
        per_channel: bool = False,
    ) -> None:
        """Takes what :func:`resolve_budgets` takes.

        Args:
            model: see :func:`resolve_budgets`.
            space: see :func:`resolve_budgets`.
            tables: see :func:`resolve_budgets`.
            per_channel: see :func:`resolve_budgets`.

        Raises:
            BudgetError: a table has the name of a cost that is known without it.
        """
        self._model = model
        self._layers = model.layers if isinstance(model, Description) else tuple(model)
        self._space = space
        self._tables = dict(tables or {})
        self._per_channel = per_channel
        taken = [name for name in self._tables if name in NOTATIONS]
        if taken:
            raise BudgetError(f"a table is called {', '.join(taken)}, which is counted without one: give the table another name.")

    def budgets(self, spec: BudgetSpec, uniform_space: SearchSpace | None = None) -> tuple[Budget, ...]:
        """See :func:`resolve_budgets`."""
        known = (*NOTATIONS, *self._tables)
        if not spec:
            raise BudgetError(f"no budget is given: set at least one of {', '.join(known)}, for example bitops = 'w4a4'.")
        unknown = [key for key in spec if key not in known]
        if unknown:
            raise BudgetError(f"{', '.join(map(repr, unknown))} is no budget: expected one of {', '.join(known)}.")
        return self._at({key: self._limit(key, value, uniform_space or self._space) for key, value in spec.items()})

    def recounted(self, budgets: Sequence[Budget]) -> tuple[Budget, ...]:
        """The same limits over this space, where ``budgets`` are over another space of the same model."""
        return self._at({budget.name: budget.limit for budget in budgets})

    def used(self, name: str, bits: Mapping[str, Bits]) -> float:
        """What a policy uses of the budget ``name``, in its unit; the widths need not be candidates.

        Raises:
            BudgetError: the budget's table has no value for a layer at its widths.
        """
        return self._measure(name).total(bits)

    def _at(self, limits: Mapping[str, float]) -> tuple[Budget, ...]:
        return tuple(
            Budget(name, limit, table) for name, limit in limits.items() for table in self._measure(name).tables(self._space, limit)
        )

    def _measure(self, name: str) -> Measure:
        if name in self._tables:
            return Measured(name, self._tables[name], self._layers)
        return measure_of(name, self._model, self._space, self._per_channel)

    def _limit(self, key: str, value: str | float, uniform_space: SearchSpace) -> float:
        notation = NOTATIONS[key] if key in NOTATIONS else of_table(key, self._tables[key].unit)
        relation = notation.relation(value)
        if relation is None:
            number = notation.number(value)
            if key != COMPRESSION:
                return number
            if number < 1:
                raise notation.error(value, "is below 1, so the weights would grow")
            return self._measure(key).floating(self._layers) / number
        measure = self._measure(key)
        if relation.bits is not None:
            _check_choice(notation, value, relation.bits, uniform_space)
        bits = None if relation.bits is None else uniform_space.uniform(relation.bits)
        reference = measure.floating(self._layers) if bits is None else measure.total(bits)
        return notation.positive(value, relation.factor * reference)


def _check_choice(notation: Notation, value: object, bits: Bits, space: SearchSpace) -> None:
    """Refuses widths like ``w4a6`` where every layer's activations are fixed at 8: the limit would be that of other widths."""
    names = space.free or tuple(space.candidates)
    for side, width, what in (("weight", bits.weight, "weights"), ("act", bits.act, "activations")):
        rows = {getattr(space.candidates[name], side) for name in names} - {(FLOAT,)}
        if rows and all(len(row) == 1 and row != (width,) for row in rows):
            fixed = ", ".join(str(row[0]) for row in sorted(rows))
            raise notation.error(value, f"asks for {what} at {width} bits, but those of all layers are fixed at {fixed}")
