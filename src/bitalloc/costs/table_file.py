"""Costs that were measured on a device, from a file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bitalloc.errors import BitallocError, FileError
from bitalloc.files import AnyPath
from bitalloc.policy import Bits
from bitalloc.space import Table

_KEYS: Final = ["layer", "weight_bits", "act_bits"]


def load_table(path: AnyPath) -> Table:
    """Reads a table of latency, energy or anything else that adds up over the layers.

    A CSV file has the columns ``layer``, ``weight_bits``, ``act_bits`` and one with the values, whose name is their unit::

        layer,weight_bits,act_bits,ms
        conv1,8,8,0.31
        conv1,4,8,0.22

    A JSON file is what :meth:`Table.save` writes. Layers have their full names, without patterns, and there is one row for every pair of
    widths that a layer can have: 32 bits where it is left in floating point.

    Raises:
        FileError: the file is missing, of another kind, or a row is malformed or there twice; the message names file, line, layer and
            widths.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return Table.load(path)
    if path.suffix.lower() != ".csv":
        raise FileError(f"{path} is no table: expected a .csv or a .json file.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: expected a CSV file with the columns {', '.join(_KEYS)} and a unit.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path} cannot be read as CSV: {error}.") from error
    return _table(path, rows)


def _table(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Table:
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if header[:-1] != _KEYS or not header[-1] or header[-1] in _KEYS:
        raise FileError(f"{path} starts with {','.join(header)!r}, expected {','.join(_KEYS)} and the unit of the values, such as ms.")
    values: dict[str, dict[Bits, float]] = {}
    for line, row in rows[1:]:
        layer, bits, value = _entry(f"{path}, line {line}", [cell.strip() for cell in row])
        if bits in values.setdefault(layer, {}):
            raise FileError(f"{path}, line {line}: layer {layer} at {bits} is there twice. Remove one.")
        values[layer][bits] = value
    if not values:
        raise FileError(f"{path} has no values: expected one row for every layer and pair of widths.")
    return Table(values, header[-1])


def _entry(where: str, row: Sequence[str]) -> tuple[str, Bits, float]:
    if len(row) != len(_KEYS) + 1 or not row[0]:
        raise FileError(f"{where}: {','.join(row)!r} has not the four columns {', '.join(_KEYS)} and the value.")
    layer, weight, act, text = row
    if any(sign in layer for sign in "*?"):
        raise FileError(f"{where}: {layer!r} is a pattern, expected the full name of a layer. Write one row for each layer.")
    try:
        bits = Bits(int(weight), int(act))
    except (ValueError, BitallocError) as error:
        raise FileError(f"{where}: layer {layer} at {weight!r} and {act!r} bits: these are no widths ({error}).") from error
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FileError(f"{where}: layer {layer} at {bits} is {text!r}, expected a finite number.")
    return layer, bits, value
