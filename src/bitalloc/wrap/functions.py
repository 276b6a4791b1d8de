"""Functions of one tensor that are written as several steps, such as a rotary position, ``x * sigmoid(x)`` or a norm by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bitalloc.wrap.graph import Node
from bitalloc.wrap.operations import ACTIVATIONS, ARITHMETIC, CONCATENATIONS, made_by, words
from bitalloc.wrap.unit import Unit

_PARTS = (
    ARITHMETIC
    | ACTIVATIONS
    | CONCATENATIONS
    | words("neg pow square abs sqrt rsqrt reciprocal exp log sin cos mean sum var maximum minimum linalg_vector_norm")
)


def join_functions(units: Sequence[Unit], outputs: set[int]) -> list[Unit]:
    """The units, with those joined that together compute one function of one tensor and that nothing else reads in between."""
    by_result = {unit.result: unit for unit in units}
    readers: dict[int, set[int]] = {}
    for unit in units:
        for base in unit.reads:
            readers.setdefault(base, set()).add(unit.result)
    parent: dict[int, int] = {}
    for unit in units:
        if len(unit.nodes) > 1 or unit.nodes[0].operation not in _PARTS:
            continue
        common = _common(unit.reads, parent)
        if common is None:
            continue
        parent[unit.result] = common
        between = {base for read in unit.reads for base in _until(read, common, parent)}
        private = all(readers[base] <= between | {unit.result} and base not in outputs for base in between)
        if between and private:
            inside = [by_result.pop(base) for base in between]
            nodes = tuple(sorted((node for part in (*inside, unit) for node in part.nodes), key=lambda node: node.results[0]))
            by_result[unit.result] = replace(unit, nodes=nodes, made_by=_name(nodes), reads=(common,))
            readers[common] = readers[common] - between | {unit.result}
    return [by_result[unit.result] for unit in units if unit.result in by_result]


def _common(bases: Sequence[int], parent: Mapping[int, int]) -> int | None:
    """The nearest tensor that all of ``bases`` are functions of."""
    if not bases:
        return None
    lines = [[base, *_until(parent[base], None, parent)] if base in parent else [base] for base in bases]
    return next((base for base in lines[0] if all(base in line for line in lines)), None)


def _until(base: int, end: int | None, parent: Mapping[int, int]) -> list[int]:
    line = []
    while base != end:
        line.append(base)
        if base not in parent:
            break
        base = parent[base]
    return line


def _name(nodes: Sequence[Node]) -> str:
    operations = {node.operation for node in nodes}
    if operations == {"sigmoid", "mul"}:
        return "silu"
    if operations >= {"neg", "cat", "mul", "add"}:
        return "rotary"
    return made_by(nodes[-1].operation)
