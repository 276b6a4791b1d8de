"""How alike the policies of run folders are, level by level: of all widths the share that is equal, mean distance, and rank correlation.

    python benchmarks/policies.py runs/gmpq runs/attribution [runs/more ...] [--json FILE]

Every folder is compared with the first. It needs the ``policy.json`` of the levels, so ``bitalloc search`` is enough. The widths of
weights and of activations are compared apart. No correlation is given where all widths of one side are equal.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitalloc.attribution.distance import spearman
from bitalloc.files import write_json
from bitalloc.policy import Policy


def policies(folder: Path) -> dict[str, Policy]:
    """The policies of a run by level; that of the first level lies in the folder itself."""
    found = {path.parent.name: Policy.load(path) for path in folder.glob("*/policy.json") if path.parent.name != "source"}
    first = Policy.load(folder / "policy.json")
    return {str(first.provenance["level"]): first, **found}


def likeness(left: Policy, right: Policy) -> dict[str, dict[str, float | None]]:
    """Of the widths of both sides."""
    report = {}
    for side in ("weight", "act"):
        a, b = (torch.tensor([[getattr(bits, side) for bits in policy.bits.values()]], dtype=torch.float64) for policy in (left, right))
        varies = a.unique().numel() > 1 and b.unique().numel() > 1
        report[side] = {
            "equal": float((a == b).double().mean()),
            "distance": float((a - b).abs().mean()),
            "spearman": float(spearman(a, b)) if varies else None,
        }
    return report


def described(one: Mapping[str, Any]) -> str:
    """A line's half."""
    correlation = "" if one["spearman"] is None else f", rho {one['spearman']:.2f}"
    return f"{one['equal']:.0%} equal, {one['distance']:.2f} bits apart{correlation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("reference", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reference, rows = policies(arguments.reference), []
    for folder in arguments.others:
        for level, policy in policies(folder).items():
            found = likeness(reference[level], policy)
            rows.append({"folder": str(folder), "level": level, **found})
            told = ", ".join(f"{side} {described(one)}" for side, one in found.items())
            print(f"{folder.name} {level}: {told}")
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
