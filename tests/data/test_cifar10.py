import io
from pathlib import Path
from typing import Any

import pytest
import torch

from bitalloc.data import cifar10
from bitalloc.errors import ConfigError, FileError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


CLASSES = [number % 10 for number in range(20)]


def encoded(number: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """A PNG (no loss) of one colour that tells the number of the image."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, images: list[bytes], labels: list[Any], column: str = "img") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": ""} for image in images]
    parquet.write_table(pyarrow.table({column: rows, "label": labels}), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "cifar10" / "train.parquet", [encoded(n) for n in range(40)], [n % 10 for n in range(40)])
    write(tmp_path / "cifar10" / "test.parquet", [encoded(n) for n in range(100, 110)], list(range(10)))
    return tmp_path


def test_images_keep_their_labels_and_a_tenth_is_held_out(root: Path) -> None:
    splits = cifar10(batch_size=8, seed=0, root=root)
    train, valid, test = splits.calibration, splits.valid, splits.test
    assert (len(train.images), len(valid.images), len(test.images)) == (36, 4, 10)
    numbers = {name: part.images[:, 0, 0, 0].tolist() for name, part in (("train", train), ("valid", valid), ("test", test))}
    assert sorted(numbers["train"] + numbers["valid"]) == list(range(40))
    assert numbers["test"] == list(range(100, 110))
    for part in (train, valid):
        assert torch.equal(part.labels, part.images[:, 0, 0, 0].long() % 10)
        assert torch.equal(part.images[:, 1], 255 - part.images[:, 0])
    assert splits.num_classes == 10
    assert splits.example.shape == (1, 3, 32, 32)


def test_pixels_are_normalised_channel_by_channel(root: Path) -> None:
    image = cifar10(batch_size=10, seed=0, root=root).test.batch(0)[0][0, :, 5, 5]
    expected = [(100 / 255 - 0.485) / 0.229, (155 / 255 - 0.456) / 0.224, (7 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(image, torch.tensor(expected))


def test_the_split_does_not_depend_on_the_seed_and_the_folder_may_be_given_itself(root: Path) -> None:
    one, other = cifar10(batch_size=8, seed=0, root=root), cifar10(batch_size=8, seed=5, root=root / "cifar10")
    assert one.valid.fingerprint() == other.valid.fingerprint()
    assert one.train.fingerprint() == other.train.fingerprint()
    assert not torch.equal(one.train.batch(0)[1], other.train.batch(0)[1])


def test_no_root_and_a_wrong_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data root"):
        cifar10(batch_size=8, seed=0, root=None)
    with pytest.raises(FileError, match=r"no train\.parquet"):
        cifar10(batch_size=8, seed=0, root=tmp_path)


def test_a_missing_test_file(root: Path) -> None:
    (root / "cifar10" / "test.parquet").unlink()
    with pytest.raises(FileError, match=r"test\.parquet does not exist"):
        cifar10(batch_size=8, seed=0, root=root)


def test_a_truncated_file(root: Path) -> None:
    path = root / "cifar10" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileError, match=r"train\.parquet cannot be read as a parquet file"):
        cifar10(batch_size=8, seed=0, root=root)


@pytest.mark.parametrize(
    ("images", "labels", "column", "message"),
    [
        ([encoded(0)], [0], "image", r"no column img; it has image, label"),
        ([encoded(0), encoded(1)[:60]], CLASSES, "img", r"train\.parquet, row 1 cannot be read as an image"),
        ([encoded(0), b"text"], CLASSES, "img", r"train\.parquet, row 1 cannot be read as an image"),
        ([encoded(0), None], CLASSES, "img", r"train\.parquet, row 1: column img holds no encoded image"),
        ([encoded(0, (31, 32))], CLASSES, "img", r"train\.parquet, row 0: the image has 31 x 32 pixels, expected 32 x 32"),
        ([], [*CLASSES, 10], "img", r"train\.parquet, row 20: label 10, expected a whole number from 0 to 9"),
        ([], [*CLASSES, -1], "img", r"train\.parquet, row 20: label -1"),
        ([], [*CLASSES, None], "img", r"train\.parquet, row 20: label None"),
        ([], [label for label in CLASSES if label != 7], "img", r"train\.parquet has no image of class 7, expected .* 0 to 9"),
        ([], range(10), "img", r"valid_fraction = 0\.1 of 10 images leaves none of class \d to train"),
    ],
)
def test_bad_content_is_named(root: Path, images: list[Any], labels: list[Any], column: str, message: str) -> None:
    images = [*images, *(encoded(number) for number in range(len(images), len(labels)))]
    write(root / "cifar10" / "train.parquet", images, list(labels), column)
    with pytest.raises((FileError, ConfigError), match=message):
        cifar10(batch_size=8, seed=0, root=root)


def test_no_images(root: Path) -> None:
    schema = pyarrow.schema([("img", pyarrow.struct([("bytes", pyarrow.binary())])), ("label", pyarrow.int64())])
    parquet.write_table(schema.empty_table(), root / "cifar10" / "train.parquet")
    with pytest.raises(FileError, match="holds no images"):
        cifar10(batch_size=8, seed=0, root=root)


def test_a_column_of_another_type(root: Path) -> None:
    parquet.write_table(pyarrow.table({"img": ["text"] * 20, "label": CLASSES}), root / "cifar10" / "train.parquet")
    with pytest.raises(FileError, match="row 0: column img holds no encoded image"):
        cifar10(batch_size=8, seed=0, root=root)
