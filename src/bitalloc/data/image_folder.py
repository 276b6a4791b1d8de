"""Images in one folder a class, as ImageNet is usually laid out; read from the disk batch by batch."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bitalloc.data import optional
from bitalloc.data.batches import check_batch_size
from bitalloc.data.folder_batches import FolderBatches, Sample
from bitalloc.data.splits import Splits
from bitalloc.errors import ConfigError, FileError

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp"})


def image_folder(
    *, batch_size: int, seed: int, root: Path | None, image_size: int = 224, num_workers: int = 4, valid_fraction: float = 0.01
) -> Splits:
    """Images under ``root/train/<class>/`` and ``root/val/<class>/`` (the latter are the test split).

    Training images: a crop of 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3, resized to ``image_size``, mirrored at random.
    Others: the centre after the shorter side is resized to ``image_size * 256 / 224``. Normalised with ImageNet's mean and
    standard deviation. Labels number the class folders of ``train`` in alphabetical order.

    Args:
        batch_size: images of a batch.
        seed: of order and augmentation; the split does not depend on it.
        root: the folder that holds ``train`` and ``val``.
        image_size: pixels of a side of the square images that the model gets.
        num_workers: processes that decode images; 0 decodes in this process.
        valid_fraction: share of every class of ``train`` that is held out, at least one image; chosen by a hash of the path.

    Raises:
        FileError: a folder is missing or empty, or (while reading batches) an image is corrupt.
        MissingDependencyError: pillow is not installed.
        ConfigError: ``root`` is None or a number is out of range.
    """
    check_batch_size(batch_size)
    optional.load("PIL.Image", "pillow", "reading an image folder")
    if root is None:
        raise ConfigError("an image folder needs a data root: the folder that holds train/<class>/ and val/<class>/.")
    if image_size < 1 or num_workers < 0 or not 0 < valid_fraction < 1:
        raise ConfigError(
            f"image_size is {image_size}, num_workers {num_workers}, valid_fraction {valid_fraction}; "
            "expected at least 1, at least 0, and between 0 and 1."
        )
    root = Path(root)
    classes = _classes(root / "train")
    train, valid = _hold_out(_samples(root / "train", classes), root, valid_fraction)
    test = _samples(root / "val", classes)
    make = partial(FolderBatches, root=root, batch_size=batch_size, image_size=image_size, num_workers=num_workers, seed=seed)
    calibration = make(train, shuffle=True)
    return Splits(
        train=make(train, shuffle=True, augment=True),
        calibration=calibration,
        valid=make(valid),
        test=make(test),
        example=calibration.load(0)[None],
        num_classes=len(classes),
    )


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileError(f"{folder} does not exist: expected a folder with one folder of images for each class.")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise FileError(f"{folder} has no folders: expected one folder of images for each class.")
    return classes


def _samples(folder: Path, classes: Sequence[str]) -> list[Sample]:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise FileError(f"{folder} has the class {unknown[0]}, which the training folder does not have.")
    samples = []
    for label, name in enumerate(classes):
        directory = folder / name
        if not directory.is_dir():
            raise FileError(f"{directory} does not exist: expected the images of class {name}, as the training folder has it.")
        paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise FileError(f"{directory} holds no images: expected files ending in {', '.join(sorted(_SUFFIXES))}.")
        samples += [Sample(path, label) for path in paths]
    return samples


def _hold_out(samples: Sequence[Sample], root: Path, fraction: float) -> tuple[list[Sample], list[Sample]]:
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    held_out: set[Sample] = set()
    for members in by_class.values():
        if len(members) < 2:
            raise FileError(f"{members[0].path.parent} holds one image, expected at least two: one to train and one to hold out.")
        members.sort(key=lambda sample: hashlib.sha256(sample.path.relative_to(root).as_posix().encode()).digest())
        held_out.update(members[: max(1, round(fraction * len(members)))])
    return [s for s in samples if s not in held_out], [s for s in samples if s in held_out]
