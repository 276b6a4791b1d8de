import builtins
import sys
from typing import Any

import pytest
import torch

from bitalloc.data import ImageBatches, digits
from bitalloc.errors import MissingDependencyError

pytest.importorskip("sklearn")


def parts(splits: Any) -> dict[str, ImageBatches]:
    return {name: getattr(splits, name) for name in ("train", "calibration", "valid", "test")}


def test_the_split_is_fixed_stratified_and_without_overlap() -> None:
    one, other = parts(digits(batch_size=64, seed=0)), parts(digits(batch_size=32, seed=1))
    assert {name: len(part.images) for name, part in one.items()} == {"train": 1200, "calibration": 1200, "valid": 240, "test": 357}
    assert {name: part.fingerprint() for name, part in one.items()} == {name: part.fingerprint() for name, part in other.items()}
    for name, share in (("train", 120), ("valid", 24), ("test", 35.7)):
        counts = one[name].labels.bincount(minlength=10)
        assert (counts - share).abs().max() <= 0.06 * share + 1
    contents = {name: {bytes(image.numpy()) for image in one[name].images} for name in ("train", "valid", "test")}
    assert not contents["train"] & contents["valid"]
    assert not contents["test"] & (contents["train"] | contents["valid"])


def test_images_are_normalised_and_only_training_ones_are_shifted() -> None:
    splits = digits(batch_size=1200, seed=0)
    images, labels = splits.calibration.batch(0)
    assert abs(images.mean().item()) < 0.01
    assert abs(images.std().item() - 1) < 0.01
    assert splits.example.shape == (1, 1, 8, 8)
    assert torch.equal(splits.example, images[:1])
    shifted, same_labels = splits.train.batch(0)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(shifted, images)
    assert splits.num_classes == labels.unique().numel() == 10


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn.*pip install 'bitalloc\[data\]'"):
        digits(batch_size=8, seed=0)
