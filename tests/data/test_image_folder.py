from pathlib import Path
from typing import Any

import pytest
import torch

from bitalloc.data import Splits, image_folder
from bitalloc.errors import ConfigError, FileError

Image = pytest.importorskip("PIL.Image")
CLASSES = ("ant", "bee", "cat")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One colour a class, another one an image; of several sizes and shapes."""
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (20 + 9 * number, 40), (label * 100, number * 40, 30))
                image.save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def load(root: Path | None, **changes: Any) -> Splits:
    return image_folder(**({"batch_size": 4, "seed": 0, "root": root, "image_size": 16, "num_workers": 0} | changes))


def epoch(batches: Any, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batches.set_epoch(number)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_every_image_comes_once_with_its_label(root: Path) -> None:
    splits = load(root)
    seen = {name: epoch(getattr(splits, name)) for name in ("train", "calibration", "valid", "test")}
    assert {name: len(labels) for name, (_, labels) in seen.items()} == {"train": 15, "calibration": 15, "valid": 3, "test": 6}
    for images, labels in seen.values():
        colours = (images * STD + MEAN)[:, :, 8, 8] * 255
        assert images.shape[1:] == (3, 16, 16)
        torch.testing.assert_close(colours[:, 0], labels * 100.0, atol=0.1, rtol=0)
    everything = torch.cat([seen["train"][0], seen["valid"][0]])[:, :, 8, 8]
    assert len({tuple(colour.tolist()) for colour in (everything * 100).round()}) == 18
    assert splits.num_classes == 3
    assert splits.example.shape == (1, 3, 16, 16)


def test_the_held_out_part_is_fixed_and_balanced(root: Path) -> None:
    one, other = load(root, seed=0, valid_fraction=0.34), load(root, seed=9, valid_fraction=0.34)
    assert one.valid.fingerprint() == other.valid.fingerprint()
    assert epoch(one.valid)[1].bincount().tolist() == [2, 2, 2]
    assert one.valid.fingerprint() != one.test.fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_history_or_global_random_state(root: Path, workers: int) -> None:
    reference = load(root).train
    reference.set_epoch(1)
    other = load(root, num_workers=workers).train
    torch.manual_seed(workers)
    state = torch.get_rng_state()
    images, labels = epoch(other, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images[4:8], reference.batch(1)[0])
    assert torch.equal(labels[4:8], reference.batch(1)[1])


def gradient(path: Path) -> None:
    """Red grows to the right, green grows downwards: a crop and its mirroring can be read off."""
    image = Image.new("RGB", (64, 48))
    image.putdata([(4 * x, 4 * y, 0) for y in range(48) for x in range(64)])
    image.save(path)


def test_the_centre_crop_is_in_the_centre(root: Path) -> None:
    for path in (root / "val" / "ant").iterdir():
        path.unlink()
    gradient(root / "val" / "ant" / "0.png")
    image = (load(root).test.batch(0)[0][0] * STD + MEAN) * 255
    red, green = image[0, 8], image[1, :, 8]
    side = 48 * 16 / 18  # the shorter side becomes round(16 * 256 / 224) = 18 pixels, of which 16 are kept
    torch.testing.assert_close(red.mean(), torch.tensor(4 * 31.5), atol=0.5, rtol=0)
    torch.testing.assert_close(green.mean(), torch.tensor(4 * 23.5), atol=0.5, rtol=0)
    torch.testing.assert_close(red[15] - red[0], torch.tensor(4 * side * 15 / 16), atol=2.0, rtol=0)


def test_training_crops_vary_in_place_area_and_mirroring(root: Path) -> None:
    for path in (root / "train" / "ant").iterdir():
        gradient(path)
    train = load(root).train
    crops = []
    for number in range(8):
        images, labels = epoch(train, number)
        crops += [(image * STD + MEAN) * 255 for image in images[labels == 0]]
    widths = torch.stack([crop[0, 8, 15] - crop[0, 8, 0] for crop in crops]) / 4
    heights = torch.stack([crop[1, 15, 8] - crop[1, 0, 8] for crop in crops]) / 4
    assert 0.25 < (widths < 0).float().mean() < 0.75
    assert (heights > 0).all()
    areas = widths.abs() * heights * (16 / 15) ** 2 / (64 * 48)
    assert areas.min() > 0.05
    assert areas.max() < 1.1
    assert areas.max() - areas.min() > 0.4
    ratios = widths.abs() / heights
    assert ratios.min() > 0.65
    assert ratios.max() < 1.5


def test_the_fingerprint_notices_another_file(root: Path) -> None:
    before = load(root).test.fingerprint()
    Image.new("RGB", (50, 50), (1, 2, 3)).save(root / "val" / "bee" / "0.png")
    assert load(root).test.fingerprint() != before


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_image_is_named_in_one_sentence(root: Path, workers: int, content: bytes | None) -> None:
    path = root / "val" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:70] if content is None else content)
    test = load(root, num_workers=workers).test
    with pytest.raises(FileError, match=r"^[^\n]*1\.png cannot be read as an image[^\n]*$"):
        list(test)


def test_an_image_too_large_to_be_decoded_safely_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(FileError, match="cannot be read as an image .*decompression bomb"):
        load(root).test.batch(0)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_missing_folders_and_images(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data root"):
        load(None)
    with pytest.raises(FileError, match=r"train does not exist"):
        load(tmp_path / "absent")
    (root / "val" / "dog").mkdir()
    with pytest.raises(FileError, match="class dog"):
        load(root)
    (root / "val" / "dog").rmdir()
    empty(root / "val" / "bee")
    with pytest.raises(FileError, match=r"bee holds no images"):
        load(root)
    (root / "val" / "bee").rmdir()
    with pytest.raises(FileError, match=r"bee does not exist"):
        load(root)


def test_a_class_with_one_image_cannot_be_split(root: Path) -> None:
    for number in range(1, 6):
        (root / "train" / "ant" / f"{number}.png").unlink()
    with pytest.raises(FileError, match=r"ant holds one image"):
        load(root)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"image_size": 0}, {"num_workers": -1}, {"valid_fraction": 0.0}, {"fraction": 0.0}, {"fraction": 1.1}],
)
def test_numbers_out_of_range(root: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=rf"{name} (is )?{changes[name]}.*expected"):
        load(root, **changes)


def test_a_fraction_is_balanced_and_drawn_by_the_seed(root: Path) -> None:
    half = load(root, fraction=0.4).train
    assert epoch(half)[1].bincount().tolist() == [2, 2, 2]
    assert half.fingerprint() == load(root, fraction=0.4).train.fingerprint()
    assert len({load(root, fraction=0.4, seed=seed).train.fingerprint() for seed in range(4)}) > 1
    assert load(root, fraction=0.4).valid.fingerprint() == load(root).valid.fingerprint()
    with pytest.raises(ConfigError, match=r"fraction = 0\.1 leaves 2 images and none of class"):
        load(root, fraction=0.1)


def test_a_file_that_vanished_is_named(root: Path) -> None:
    test = load(root).test
    (root / "val" / "bee" / "1.png").unlink()
    with pytest.raises(FileError, match=r"bee/1\.png cannot be read"):
        test.fingerprint()
    with pytest.raises(FileError, match=r"bee/1\.png cannot be read"):
        list(test)


def test_a_position_beyond_the_epoch(root: Path) -> None:
    with pytest.raises(IndexError, match="batch 2 of 2"):
        load(root).test.batch(2)
