"""Who may import whom: the architecture's table, held against the imports in the source (nested and lazy ones included)."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "bitalloc"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
ROOT = "__init__"

CORE = {"errors", "files", "layers", "transfer", "policy", "coupling", "space", "choices", "budget"}
# Knows tensors, so it is for the parts that do.
PLACEMENT = {"placement"}
EVERYBODY = {"errors", "files"}
ANY = {"*"}

# A part is a file or a folder directly in the package. It may import itself and what stands here.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "placement": set(),
    "layers": EVERYBODY,
    "transfer": EVERYBODY | {"layers"},
    "policy": EVERYBODY | {"layers", "transfer"},
    "coupling": EVERYBODY | {"layers", "policy"},
    "space": EVERYBODY | {"layers", "policy", "coupling"},
    "choices": EVERYBODY | {"layers", "policy", "coupling", "space"},
    "budget": EVERYBODY | {"layers", "policy", "coupling", "space"},
    "costs": CORE,
    "search": CORE,
    "report": CORE | {"search"},
    "quantizers": CORE,
    "training": EVERYBODY | PLACEMENT,
    "data": EVERYBODY,
    "models": EVERYBODY,
    "wrap": CORE | {"quantizers"} | PLACEMENT,
    "export": CORE | {"quantizers", "wrap"} | PLACEMENT,
    "attribution": EVERYBODY | PLACEMENT | {"training"},
    "sensitivity": CORE | {"quantizers", "wrap", "training", "attribution"},
    "supernet": CORE | {"quantizers", "wrap", "training", "attribution"},
    "pipeline": {ROOT, *CORE, *PLACEMENT, "costs", "search", "report", "quantizers", "training", "data", "models", "wrap", "export"}
    | {"sensitivity", "supernet", "attribution"},
    "cli": ANY,
    "__main__": ANY,
    ROOT: ANY,
}

# Sources that must not name torch, nor a package that is torch in other clothes. A part, or a file in one.
WITHOUT_TORCH = {*CORE, "costs", "search", "report", "sensitivity/indicators.py"}
TORCH = ("torch", "torchvision", "accelerate", "safetensors.torch")


@dataclass(frozen=True)
class Import:
    """One imported module, as an absolute dotted name, and the line on which it stands."""

    module: str
    line: int


def imports_of(path: Path, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import in the file, at any depth; ``package`` is the dotted package that relative imports start from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package[: len(package) - level + 1] if level else ()
                base = ".".join((*start, *([module] if module else [])))
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if _called(node) in {"import_module", "__import__"}:
                yield Import(name, node.lineno)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def part_of(module: str, source: Path) -> str | None:
    """The part that a dotted name belongs to: the package's own ``__init__`` for a name that is no part, None for another package."""
    root, *rest = module.split(".")
    if root != PACKAGE:
        return None
    if rest and ((source / rest[0]).is_dir() or (source / f"{rest[0]}.py").is_file()):
        return rest[0]
    return ROOT


def violations(source: Path) -> list[str]:
    """One sentence for every import that the tables above do not allow."""
    found = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        part = relative.parts[0].removesuffix(".py")
        if part not in MAY_IMPORT:
            found.append(f"{relative}: the part {part!r} is not in the table; decide what it may import and add it")
            continue
        without_torch = part in WITHOUT_TORCH or relative.as_posix() in WITHOUT_TORCH
        for imported in imports_of(path, (PACKAGE, *relative.parent.parts)):
            where = f"{relative}:{imported.line}"
            target = part_of(imported.module, source)
            if target is not None and target != part and not MAY_IMPORT[part] & {target, *ANY}:
                allowed = ", ".join(sorted(MAY_IMPORT[part])) or "nothing"
                found.append(f"{where}: {part} imports {imported.module}; of bitalloc it may import {allowed}")
            if without_torch and any(f"{imported.module}.".startswith(f"{name}.") for name in TORCH):
                found.append(f"{where}: imports {imported.module}, but this source must do without torch")
    return found


def test_the_package_holds_the_table() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > len(CORE), "the source was not found"
    found = violations(SOURCE)
    assert not found, "imports that the architecture does not allow:\n  " + "\n  ".join(found)


def test_every_part_without_torch_is_in_the_table() -> None:
    assert {name.split("/")[0] for name in WITHOUT_TORCH} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("costs/a.py", "from bitalloc.search import solve", "costs imports bitalloc.search.solve"),
        ("costs/a.py", "import bitalloc.search.highs", "costs imports bitalloc.search.highs"),
        ("search/a.py", "def f():\n    from bitalloc.wrap import quantize", "a.py:2: search imports bitalloc.wrap.quantize"),
        ("search/a.py", "from ..wrap import quantize", "search imports bitalloc.wrap.quantize"),
        ("search/a.py", "from .. import wrap", "search imports bitalloc.wrap"),
        ("search/a.py", "from bitalloc import Policy", "search imports bitalloc.Policy"),
        ("search/a.py", "importlib.import_module('bitalloc.wrap')", "search imports bitalloc.wrap"),
        ("layers.py", "from bitalloc.policy import Bits", "layers imports bitalloc.policy.Bits"),
        ("errors.py", "import bitalloc.files", "may import nothing"),
        ("training/a.py", "from bitalloc.layers import LayerInfo", "may import errors, files"),
        ("pipeline/a.py", "from bitalloc.cli import app", "pipeline imports bitalloc.cli.app"),
        ("costs/a.py", "import torch", "without torch"),
        ("costs/a.py", "from torch.nn import functional", "without torch"),
        ("files.py", "from safetensors.torch import load_file", "without torch"),
        ("search/a.py", "if TYPE_CHECKING:\n    from torch import Tensor", "a.py:2: imports torch.Tensor"),
        ("sensitivity/indicators.py", "import torch", "without torch"),
        ("helpers.py", "", "'helpers' is not in the table"),
    ],
)
def test_the_checker_finds_a_forbidden_import(tmp_path: Path, file: str, code: str, message: str) -> None:
    _write_tree(tmp_path, file, code)
    (found,) = violations(tmp_path)
    assert message in found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (
            "costs/a.py",
            "import math, numpy\nfrom bitalloc.layers import LayerInfo\nfrom bitalloc.costs.base import Cost\nfrom .base import Cost",
        ),
        ("costs/a.py", "from .base import Cost\nfrom ..space import Table"),
        ("search/a.py", "from bitalloc.errors import BitallocError\nfrom safetensors import safe_open\nimport torchlike"),
        ("sensitivity/limpq.py", "import torch\nfrom bitalloc.training import fit"),
        ("pipeline/a.py", "from bitalloc import __version__\nfrom bitalloc.search import solve"),
        ("cli/a.py", "from bitalloc.pipeline import run\nimport torch"),
    ],
)
def test_the_checker_allows_what_the_table_allows(tmp_path: Path, file: str, code: str) -> None:
    _write_tree(tmp_path, file, code)
    assert violations(tmp_path) == []


def _write_tree(root: Path, file: str, code: str) -> None:
    for part in MAY_IMPORT:
        folder = part in {"costs", "search", "report", "quantizers", "training", "pipeline", "cli", "sensitivity", "wrap"}
        path = root / part / "__init__.py" if folder else root / f"{part}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (root / file).write_text(code, encoding="utf-8")
