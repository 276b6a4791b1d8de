"""The package as a user installs it: the wheel, its metadata, its pins."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bitalloc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy, because setuptools leaves a build folder beside what it builds.
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(path.read_text(encoding="utf-8"))


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})


def test_the_wheel_holds_the_whole_source_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix in {".py", ".c"} or path.name == "py.typed"
    }
    assert "bitalloc/py.typed" in expected
    assert names == expected


def test_every_folder_of_the_source_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "src" / "bitalloc").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_holds_the_licence_text(unpacked: Path) -> None:
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    text = licence.read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_metadata_says_what_the_package_is(metadata: Message) -> None:
    assert metadata["Name"] == "bitalloc"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert str(metadata.get_payload()).strip(), "the README is not the long description"


def test_there_is_one_version(metadata: Message) -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert Version(bitalloc.__version__) == Version(metadata["Version"]) == Version(cited[1])


def test_the_unpacked_wheel_imports_without_torch(unpacked: Path) -> None:
    code = "import sys, bitalloc; print(bitalloc.__file__); sys.exit('torch was imported' if 'torch' in sys.modules else None)"
    done = _python(code, unpacked)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(unpacked)


def test_the_script_is_there_and_prints_its_help(unpacked: Path) -> None:
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "bitalloc = bitalloc.cli:main" in entry_points.read_text(encoding="utf-8")
    done = _python("import sys; sys.argv = ['bitalloc', '--help']; from bitalloc.cli import main; main()", unpacked)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_every_dependency_is_pinned_inside_its_range() -> None:
    """A fresh installation is the one that was tested: no version, direct or indirect, is left to the day of installation."""
    pins = dict(_pins())
    needed = _needed()
    # What only a GPU build of torch needs; torch's own metadata pins it exactly.
    missing = sorted(name for name in needed if name not in pins and not name.startswith(("nvidia-", "cuda-", "triton")))
    assert not missing, f"constraints.txt does not pin {', '.join(missing)}"
    outside = [str(requirement) for name in needed & pins.keys() for requirement in needed[name] if pins[name] not in requirement.specifier]
    assert not outside, f"the pins in constraints.txt are outside of {', '.join(outside)}"
    assert not pins.keys() - needed.keys(), "constraints.txt pins packages that nothing needs"


def _pins() -> Iterator[tuple[str, Version]]:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            yield canonicalize_name(name), Version(version)


def _needed() -> dict[str, list[Requirement]]:
    """Every package that the project needs with all its extras, directly or not, and who asks for which versions of it."""
    extras = PROJECT["optional-dependencies"]
    waiting = [Requirement(text) for text in (*PROJECT["dependencies"], *extras["onnx"], *extras["data"], *extras["bench"], *extras["dev"])]
    needed: dict[str, list[Requirement]] = {}
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        needed.setdefault(name, []).append(requirement)
        if (name, *sorted(requirement.extras)) not in seen:
            seen.add((name, *sorted(requirement.extras)))
            waiting.extend(_applicable(requirement))
    del needed["bitalloc"]  # an extra that takes in another
    return needed


def _applicable(requirement: Requirement) -> Iterator[Requirement]:
    try:
        texts = requires(requirement.name) or []
    except PackageNotFoundError:  # a CUDA library on a machine without; reported as missing where it is not one
        return
    for text in texts:
        inner = Requirement(text)
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            yield inner
