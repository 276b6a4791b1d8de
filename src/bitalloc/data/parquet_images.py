"""Encoded images in parquet files, read one row group at a time."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from bitalloc.data import optional
from bitalloc.data.parquet_schema import Columns, read_labels, reading
from bitalloc.data.source import ImageSource


@final
class ParquetImages(ImageSource):
    """Images and labels in the rows of one or more parquet files.

    Labels are read at once, encoded images when they are needed: the row groups that were read last stay in memory, as many as hold
    ``shuffle_rows`` rows and one group more. A shuffled order takes the row groups at random and mixes the rows of as many groups as
    hold ``shuffle_rows`` rows, so that every group is read about once an epoch (by each worker).

    Args:
        paths: the files, one after the other.
        columns: names of the columns.
        num_classes: labels are 0 to one less; None counts the classes, up to the largest label.
        shuffle_rows: images that are mixed with each other, at least; fewer than a row group has mean one row group.

    Raises:
        FileError: a file or column is missing, a file holds no images, a label is out of range.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path], columns: Columns, num_classes: int | None = None, shuffle_rows: int = 2048) -> None:
        self._paths, self._columns, self._shuffle_rows = list(paths), columns, shuffle_rows
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for path in paths:
            with reading(path):
                metadata = _parquet().read_metadata(path)
            self._groups += [(path, group) for group in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        labels = [label for path in paths for label in read_labels(path, columns, num_classes)]
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.num_classes = max(labels) + 1 if num_classes is None else num_classes
        self._starts = [0, *accumulate(sizes)]
        self._largest = max(sizes)
        self._first: dict[Path, int] = {}  # number of a file's row 0
        for (path, _), start in zip(self._groups, self._starts, strict=False):
            self._first.setdefault(path, start)
        self._read: OrderedDict[int, Any] = OrderedDict()
        self._process = os.getpid()

    def encoded(self, number: int) -> bytes:
        """The content of an image file. Raises FileError if the row holds none."""
        group = self._group(number)
        row = self._rows(group)[number - self._starts[group]]
        return self._columns.content(row, self.origin(number))

    def origin(self, number: int) -> str:
        """The file, and the row counted from 0."""
        group = self._group(number)
        path = self._groups[group][0]
        return f"{path}, row {number - self._first[path]}"

    def shuffled(self, numbers: Tensor, random: torch.Generator) -> Tensor:
        """``numbers`` in a random order that reads few row groups at a time."""
        count = len(self._groups)
        order = torch.randperm(count, generator=random)
        starts = torch.tensor(self._starts)
        sizes = starts.diff()[order]
        # Groups are filled into windows in their random order; a window is full when it has the rows to mix.
        window = torch.empty(count, dtype=torch.int64)
        window[order] = (sizes.cumsum(0) - sizes) // self._shuffle_rows
        mixed = numbers[torch.randperm(len(numbers), generator=random)]
        group = torch.searchsorted(starts, mixed, right=True) - 1
        return mixed[window[group].argsort(stable=True)]

    def fingerprint(self, numbers: Tensor) -> str:
        """SHA-256 of the files' names, sizes and footers (which hold the sizes and statistics of every row group), and of the rows."""
        digest = hashlib.sha256(numbers.numpy().data)
        for path in self._paths:
            with reading(path), path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(size - 8)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(size - 8 - footer)
                digest.update(f"{path.name}\0{size}\0".encode() + file.read(footer))
        digest.update(self.labels[numbers].numpy().data)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_read": OrderedDict()}  # a worker reads what it needs

    def _group(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def _rows(self, group: int) -> Any:
        """The images of a row group, as an Arrow column."""
        if self._process != os.getpid():  # a forked worker starts with nothing in memory
            self._read, self._process = OrderedDict(), os.getpid()
        if group not in self._read:
            self._make_room(self._starts[group + 1] - self._starts[group])
            path, index = self._groups[group]
            with reading(path), _parquet().ParquetFile(path) as file:
                # One thread: those of the parent do not survive a fork.
                column = file.read_row_group(index, columns=[self._columns.image], use_threads=False).column(0)
            self._read[group] = column
        self._read.move_to_end(group)
        return self._read[group]

    def _make_room(self, rows: int) -> None:
        while self._read and sum(map(len, self._read.values())) + rows > self._shuffle_rows + self._largest:
            self._read.popitem(last=False)


def _parquet() -> Any:
    return optional.load("pyarrow.parquet", "pyarrow", "reading parquet files")
