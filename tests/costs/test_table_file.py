"""Measured costs from files: what is read, and what is refused with the place where it is wrong."""

from pathlib import Path

import pytest

from bitalloc.costs import load_table
from bitalloc.errors import FileError
from bitalloc.policy import Bits
from bitalloc.space import Table

GOOD = "layer,weight_bits,act_bits,ms\nconv,8,8,0.31\nconv,4,8,0.22\n\nfc,32,32,1e-2\n"
TABLE = Table({"conv": {Bits(8, 8): 0.31, Bits(4, 8): 0.22}, "fc": {Bits(32, 32): 0.01}}, "ms")


def written(folder: Path, text: str, name: str = "latency.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, GOOD.replace(",", " , "), GOOD.replace("fc", '"fc"')])
def test_a_csv_file(tmp_path: Path, text: str) -> None:
    assert load_table(written(tmp_path, text)) == TABLE


def test_a_json_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "latency.json")
    assert load_table(tmp_path / "latency.json") == TABLE


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("conv,4,8", "line 3: .* has not the four columns"),
        ("conv,4,8,1,2", "line 3: .* has not the four columns"),
        (",4,8,1", "line 3: .* has not the four columns"),
        ("conv.*,4,8,1", r"line 3: 'conv\.\*' is a pattern"),
        ("conv,four,8,1", "line 3: layer conv at 'four' and '8' bits"),
        ("conv,4,9,1", "line 3: layer conv at '4' and '9' bits"),
        ("conv,4,8,fast", "line 3: layer conv at w4a8 is 'fast', expected a finite number"),
        ("conv,4,8,nan", "line 3: layer conv at w4a8 is 'nan'"),
        ("conv,4,8,inf", "line 3: layer conv at w4a8 is 'inf'"),
        ("conv,8,8,0.3", "line 3: layer conv at w8a8 is there twice"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: str, complaint: str) -> None:
    path = written(tmp_path, f"layer,weight_bits,act_bits,ms\nconv,8,8,0.31\n{row}\n")
    with pytest.raises(FileError, match=complaint) as caught:
        load_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "header", ["", "layer,weight_bits,act_bits", "layer,bits,ms", "layer,act_bits,weight_bits,ms", "layer;weight_bits;act_bits;ms"]
)
def test_another_header(tmp_path: Path, header: str) -> None:
    with pytest.raises(FileError, match="expected layer,weight_bits,act_bits and the unit"):
        load_table(written(tmp_path, f"{header}\nconv,8,8,0.31\n"))


def test_no_file_no_values_another_kind(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing\.csv does not exist"):
        load_table(tmp_path / "missing.csv")
    with pytest.raises(FileError, match="has no values"):
        load_table(written(tmp_path, "layer,weight_bits,act_bits,ms\n"))
    with pytest.raises(FileError, match="starts with ''"):
        load_table(written(tmp_path, ""))
    with pytest.raises(FileError, match=r"expected a \.csv or a \.json file"):
        load_table(tmp_path / "latency.xlsx")
    (tmp_path / "latency.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="cannot be read as CSV"):
        load_table(tmp_path / "latency.csv")
