"""Columns of parquet files with images, and the checks of what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitalloc.data import optional
from bitalloc.errors import FileError


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns.

    Attributes:
        image: encoded images (JPEG, PNG and others that Pillow reads): bytes, or a struct with them in the field ``bytes``.
        label: whole numbers from 0.
    """

    image: str
    label: str

    def content(self, value: Any, origin: str) -> bytes:
        """The encoded image in a value of the image column (an Arrow scalar). Raises FileError if there is none."""
        found = value.as_py()
        data = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(data, bytes):
            raise FileError(f"{origin}: column {self.image} holds no encoded image, expected bytes or a struct with the field bytes.")
        return data


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of pyarrow and of the file system as a FileError that names ``path``."""
    pyarrow = optional.load("pyarrow", "pyarrow", "reading parquet files")
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise FileError(f"{path} cannot be read as a parquet file ({error}): it is missing, truncated or of another format.") from error


def read_labels(path: Path, columns: Columns, num_classes: int | None) -> list[int]:
    """The labels of a file.

    Raises:
        FileError: the file or a column is missing, there is no row, or a label is no whole number from 0 to below ``num_classes``.
    """
    parquet = optional.load("pyarrow.parquet", "pyarrow", "reading parquet files")
    with reading(path):
        names = parquet.read_schema(path).names
        missing = [name for name in (columns.image, columns.label) if name not in names]
        if missing:
            raise FileError(f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(names)}.")
        values: list[Any] = parquet.read_table(path, columns=[columns.label]).column(0).to_pylist()
    if not values:
        raise FileError(f"{path} holds no images.")
    for row, label in enumerate(values):
        if not isinstance(label, int) or label < 0 or (num_classes is not None and label >= num_classes):
            limit = "0 on" if num_classes is None else f"0 to {num_classes - 1}"
            raise FileError(f"{path}, row {row}: label {label!r}, expected a whole number from {limit}.")
    return values
