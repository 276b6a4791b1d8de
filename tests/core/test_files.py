"""Files are replaced whole or not at all, and whatever else is on disk is refused by name."""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.errors import FileError
from bitalloc.files import dropping_writes, finite, parse_json, read_json, replacing, write_json, write_text


def full_disk(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def untouched(path: Path) -> bool:
    """The old content is there, and nothing was left beside it."""
    return path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.json"
    path.write_text("old")
    return path


def test_text_is_written_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_is_replaced(old: Path) -> None:
    write_text(old, "new")
    assert old.read_text() == "new"


def test_a_file_gets_the_usual_permissions(old: Path) -> None:
    write_text(old.with_name("new"), "")
    plain = old.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(old.with_name("new").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("step", ["tempfile.mkstemp", "pathlib.Path.write_text", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(step, full_disk)
        with pytest.raises(FileError, match=r"cannot write .*file\.json: No space left on device"):
            write_text(old, "new")
    assert untouched(old)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file_and_its_error_comes_through(old: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), replacing(old) as temporary:  # noqa: PT012 - the write has to happen before the failure
        temporary.write_text("half")
        raise error
    assert untouched(old)


def test_the_temporary_file_lies_beside_the_file(old: Path) -> None:
    with replacing(old) as temporary:
        assert temporary.parent == old.parent
        temporary.write_text("new")
    assert old.read_text() == "new"


def test_a_folder_that_cannot_be_made(old: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        write_text(old / "below" / "a.json", "x")
    assert untouched(old)


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file.json").mkdir()
    with pytest.raises(FileError, match=r"file\.json"):
        write_text(tmp_path / "file.json", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(old: Path, value: object) -> None:
    with pytest.raises(FileError, match="not JSON"):
        write_json(old, {"schema": "s", "version": 1, "x": value})
    assert untouched(old)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans() | st.none()))
def test_json_round_trip(value: dict[str, object]) -> None:
    value = {**value, "schema": "s", "version": 1}
    assert parse_json(json.dumps(value), origin="text", schema="s", version=1) == value


def test_written_json_is_read_back(tmp_path: Path) -> None:
    value = {"schema": "s", "version": 3, "x": 0.1}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", schema="s", version=3) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ('{"schema": "s", "ver', "truncated or edited"),
        ('{"schema": "s", "version": 1, "x": NaN}', "NaN is not allowed"),
        ('{"schema": "s", "version": 1, "x": -Infinity}', "-Infinity is not allowed"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "holds a list"),
        ("{}", "schema None"),
        ('{"schema": "other", "version": 1}', "'other'"),
        ('{"schema": "s"}', "version None"),
        ('{"schema": "s", "version": 2}', "version 2"),
    ],
)
def test_malformed_json_names_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(FileError, match=complaint) as caught:
        read_json(path, schema="s", version=1)
    assert str(path) in str(caught.value)


def test_missing_binary_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        read_json(tmp_path / "none.json", schema="s", version=1)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="cannot be read"):
        read_json(tmp_path / "binary.json", schema="s", version=1)
    with pytest.raises(FileError, match="cannot be read"):
        read_json(tmp_path, schema="s", version=1)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200))
def test_any_cut_or_noise_is_a_file_error_or_the_value(noise: str) -> None:
    whole = json.dumps({"schema": "s", "version": 1, "noise": noise})
    for end in range(len(whole)):
        with pytest.raises(FileError):
            parse_json(whole[:end], origin="cut", schema="s", version=1)


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, [1]])
def test_finite_names_the_origin(value: object) -> None:
    with pytest.raises(FileError, match="the score of a"):
        finite(value, origin="the score of a")


def test_finite_gives_a_float() -> None:
    assert isinstance(finite(3, origin="x"), float)


def test_paths_may_be_text(tmp_path: Path) -> None:
    write_json(f"{tmp_path}/deep/value.json", {"schema": "x", "version": 1, "here": 2})
    assert read_json(f"{tmp_path}/deep/value.json", schema="x", version=1)["here"] == 2


def test_dropped_writes_leave_everything_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with dropping_writes():
        write_text(path, "new")
        write_json(tmp_path / "folder" / "other", {"a": 1})
    assert untouched(path)
    write_text(path, "new")
    assert path.read_text() == "new"
