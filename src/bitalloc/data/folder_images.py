"""Image files in one folder a class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from bitalloc.data.source import ImageSource
from bitalloc.errors import FileError

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp"})


@final
class FolderImages(ImageSource):
    """The images under ``folder/<class>/``, in the order of classes and file names.

    Attributes:
        paths: the files.

    Args:
        folder: holds one folder for each class.
        classes: names of the folders; their positions are the labels.

    Raises:
        FileError: a folder is missing or holds no image, or ``folder`` has one more.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        unknown = sorted(set(class_names(folder)) - set(classes))
        if unknown:
            raise FileError(f"{folder} has the class {unknown[0]}, which the training folder does not have.")
        files = [_files(folder / name) for name in classes]
        self.paths = [path for members in files for path in members]
        self.labels = torch.repeat_interleave(torch.tensor([len(members) for members in files]))
        self.num_classes = len(classes)
        self._folder = folder

    def encoded(self, number: int) -> Path:
        """The path: decoding reads the file."""
        return self.paths[number]

    def origin(self, number: int) -> str:
        """The path."""
        return str(self.paths[number])

    def name(self, number: int) -> str:
        """The path below the folder; the same on every machine."""
        return self.paths[number].relative_to(self._folder).as_posix()

    def fingerprint(self, numbers: Tensor) -> str:
        """SHA-256 of the paths below the folder, the sizes and the labels; the images are not read, which would take hours.

        Times of change are left out: a copy of the same files is the same data.
        """
        digest = hashlib.sha256(self._folder.name.encode())
        for number in numbers.tolist():
            try:
                size = self.paths[number].stat().st_size
            except OSError as error:
                raise FileError(
                    f"{self.origin(number)} cannot be read: {error.strerror or error}. It was there when it was listed."
                ) from error
            digest.update(f"{self.name(number)}\0{size}\0{int(self.labels[number])}\n".encode())
        return digest.hexdigest()


def class_names(folder: Path) -> list[str]:
    """The folders in ``folder``, sorted. Raises FileError if there is none."""
    if not folder.is_dir():
        raise FileError(f"{folder} does not exist: expected a folder with one folder of images for each class.")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise FileError(f"{folder} has no folders: expected one folder of images for each class.")
    return classes


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileError(f"{folder} does not exist: expected the images of class {folder.name}, as the training folder has it.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileError(f"{folder} holds no images: expected files ending in {', '.join(sorted(_SUFFIXES))}.")
    return paths
