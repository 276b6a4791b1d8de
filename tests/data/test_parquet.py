import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.data import Splits, parquet_images, parquet_stream, showing_progress, tiny_imagenet
from bitalloc.data.parquet_images import ParquetImages
from bitalloc.data.parquet_schema import Columns
from bitalloc.errors import ConfigError, FileError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")
COLUMNS = Columns("image", "label")


def encoded(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG (no loss) of one colour that tells the number of the image."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, images: Sequence[Any], labels: Sequence[Any], group: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"image": [{"bytes": image, "path": ""} for image in images], "label": list(labels)})
    parquet.write_table(table, path, row_group_size=group)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """60 training images of 3 classes in two files with row groups of 5, and 9 for testing."""
    for number, start in enumerate((0, 40)):
        rows = range(start, 40 if start == 0 else 60)
        write(tmp_path / f"train-{number}.parquet", [encoded(n) for n in rows], [n % 3 for n in rows])
    write(tmp_path / "test.parquet", [encoded(100 + n) for n in range(9)], [n % 3 for n in range(9)])
    return tmp_path


def in_memory(root: Path | None, **changes: Any) -> Splits:
    return parquet_images(**({"batch_size": 8, "seed": 0, "root": root, "crop_padding": 0} | changes))


def streamed(root: Path | None, **changes: Any) -> Splits:
    options = {"batch_size": 8, "seed": 0, "root": root, "image_size": 4, "num_workers": 0, "test": "test.parquet", "valid_fraction": 0.1}
    return parquet_stream(**(options | changes))


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of images of one colour each."""
    red: list[int] = ((images[:, 0, 1, 1] * 0.229 + 0.485) * 255).round().int().tolist()
    return red


def epoch(batches: Any, number: int = 0) -> tuple[list[int], list[int]]:
    batches.set_epoch(number)
    images, labels = zip(*batches, strict=True)
    return numbers(torch.cat(images)), torch.cat(labels).tolist()


@pytest.mark.parametrize("load", [in_memory, streamed])
def test_every_row_of_all_files_comes_once_with_its_label(root: Path, load: Any) -> None:
    splits = load(root)
    seen = {name: epoch(getattr(splits, name)) for name in ("train", "calibration", "valid", "test")}
    assert sorted(seen["train"][0] + seen["valid"][0]) == list(range(60))
    assert sorted(seen["calibration"][0]) == sorted(seen["train"][0])
    assert sorted(seen["test"][0]) == list(range(100, 109))
    for name, (images, labels) in seen.items():
        assert labels == [(number - (100 if name == "test" else 0)) % 3 for number in images]
    assert seen["valid"][1].count(0) == seen["valid"][1].count(1) == 2
    assert splits.num_classes == 3
    assert splits.train.image_count == 54
    assert epoch(splits.train, 0) != epoch(splits.train, 1)


def test_both_ways_hold_out_the_same_rows_whatever_the_seed(root: Path) -> None:
    held_out = [sorted(epoch(load(root, seed=seed).valid)[0]) for load in (in_memory, streamed) for seed in (0, 1)]
    assert held_out.count(held_out[0]) == 4


@pytest.mark.parametrize("load", [in_memory, streamed])
def test_a_fraction_is_balanced_and_drawn_by_the_seed(root: Path, load: Any) -> None:
    subsets = [epoch(load(root, fraction=1 / 3, seed=seed).calibration) for seed in (0, 0, 1)]
    assert [[labels.count(label) for label in range(3)] for _, labels in subsets] == [[6, 6, 6]] * 3
    assert subsets[0] == subsets[1]
    assert sorted(subsets[0][0]) != sorted(subsets[2][0])
    assert set(subsets[2][0]) <= set(epoch(load(root).train)[0])


def test_images_are_resized_to_their_centred_square(root: Path) -> None:
    wide = Image.new("RGB", (32, 16), (200, 0, 0))
    wide.paste((10, 0, 0), (8, 0, 24, 16))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    write(root / "test.parquet", [stream.getvalue()], [0])
    image = in_memory(root, resize=4).test.images
    assert image.shape == (1, 3, 4, 4)
    assert (image[:, 0, :, 1:3] == 10).all()
    with pytest.raises(FileError, match=r"test\.parquet, row 0: the image has 32 x 16 pixels, expected 8 x 8"):
        in_memory(root)


def test_images_that_do_not_fit_the_memory_are_refused_before_they_are_decoded(root: Path) -> None:
    write(root / "test.parquet", [b"never decoded"], [0])
    with pytest.raises(ConfigError, match=r"61 images of 8 x 8 pixels take 1\.2e-05 GB .* memory_gb = 1e-05.*parquet_stream"):
        in_memory(root, memory_gb=1e-5)


def test_decoding_shows_its_progress(root: Path) -> None:
    calls: list[Any] = []

    class Recorder:
        @contextmanager
        def task(self, name: str, total: int | None) -> Iterator[None]:
            calls.append([name, total, 0])
            yield

        def advance(self, n: int = 1) -> None:
            calls[-1][2] += n

    with showing_progress(Recorder()):
        in_memory(root, fraction=0.5)
    in_memory(root)
    assert calls == [["decoding training images", 33, 33], ["decoding test images", 9, 9]]


def test_tiny_imagenet_is_read_by_its_names_and_may_be_given_itself(tmp_path: Path) -> None:
    folder = tmp_path / "tiny_imagenet_100"
    write(folder / "train.parquet", [encoded(n, (64, 64)) for n in range(200)], [n % 100 for n in range(200)], 200)
    write(folder / "val.parquet", [encoded(7, (64, 64))], [99])
    splits = tiny_imagenet(batch_size=16, seed=0, root=tmp_path)
    assert (splits.num_classes, splits.train.image_count, splits.valid.image_count) == (100, 180, 20)
    assert splits.example.shape == (1, 3, 64, 64)
    assert splits.train.crop_padding == 8
    small = tiny_imagenet(batch_size=16, seed=0, root=folder, resize=32)
    assert small.test.batch(0)[0].shape == (1, 3, 32, 32)
    assert small.train.crop_padding == 4
    with pytest.raises(FileError, match=r"no train\.parquet and no tiny_imagenet_100/train\.parquet"):
        tiny_imagenet(batch_size=16, seed=0, root=tmp_path / "absent")


def test_a_streamed_epoch_reads_every_row_group_once_and_holds_few(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = streamed(root, shuffle_rows=10)
    source, read, held = splits.train.source, [], []
    original = ParquetImages._rows

    def counted(self: ParquetImages, group: int) -> Any:
        if group not in self._read:
            read.append(group)
        rows = original(self, group)
        held.append(sum(map(len, self._read.values())))
        return rows

    monkeypatch.setattr(ParquetImages, "_rows", counted)
    source._read.clear()
    shown, _ = epoch(splits.calibration, 3)
    assert sorted(read) == list(range(12))
    assert max(held) <= 15
    assert shown != sorted(shown)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 99))
def test_a_streamed_order_is_a_permutation_in_windows(sizes: list[int], shuffle_rows: int, seed: int) -> None:
    source = ParquetImages.__new__(ParquetImages)
    source._groups = [(Path("x"), index) for index in range(len(sizes))]
    source._starts = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    source._shuffle_rows = shuffle_rows
    wanted = torch.arange(sum(sizes))[:: 2 if seed % 2 else 1]
    order = source.shuffled(wanted, torch.Generator().manual_seed(seed)).tolist()
    assert sorted(order) == wanted.tolist()
    open_rows, seen = 0, set()
    remaining = [sum(source._group(number) == group for number in order) for group in range(len(sizes))]
    for number in order:
        group = source._group(number)
        if group not in seen:
            seen.add(group)
            open_rows += sizes[group]
        assert open_rows <= shuffle_rows - 1 + max(sizes) + sum(sizes) * (len(sizes) == 1)
        remaining[group] -= 1
        if remaining[group] == 0:
            open_rows -= sizes[group]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same_rows_from_any_position(root: Path, workers: int) -> None:
    plain, read_ahead = streamed(root, shuffle_rows=10).train, streamed(root, shuffle_rows=10, num_workers=workers).train
    for batches in (plain, read_ahead):
        batches.set_epoch(2)
    expected = list(plain)
    for first in (0, 4):
        for (images, labels), (others, other_labels) in zip(expected[first:], read_ahead.batches_from(first), strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)
    copy = pickle.loads(pickle.dumps(plain))
    assert torch.equal(copy.batch(3)[0], expected[3][0])


def test_the_fingerprint_of_a_stream_notices_other_rows_files_and_labels(root: Path) -> None:
    fingerprints = {streamed(root).train.fingerprint(), streamed(root, fraction=0.5).train.fingerprint()}
    assert streamed(root, seed=5).valid.fingerprint() == streamed(root).valid.fingerprint()
    write(root / "train-0.parquet", [encoded(n) for n in range(40)], [(n + 1) % 3 for n in range(40)])
    fingerprints.add(streamed(root).train.fingerprint())
    write(root / "train-0.parquet", [encoded(n + 1) for n in range(40)], [n % 3 for n in range(40)])
    fingerprints.add(streamed(root).train.fingerprint())
    assert len(fingerprints) == 4


@pytest.mark.parametrize("load", [in_memory, streamed])
def test_a_corrupt_row_is_named_by_file_and_row(root: Path, load: Any) -> None:
    rows = [encoded(n) for n in range(40, 60)]
    rows[7] = rows[7][:50]
    write(root / "train-1.parquet", rows, [n % 3 for n in range(20)])

    def read() -> None:
        splits = load(root)
        for part in (splits.train, splits.valid):
            list(part)

    with pytest.raises(FileError, match=r"^[^\n]*train-1\.parquet, row 7 cannot be read as an image[^\n]*$"):
        read()


@pytest.mark.parametrize("load", [in_memory, streamed])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, "need a data root"),
        ({"train": "absent*.parquet"}, r"absent\*\.parquet does not exist"),
        ({"image_column": "img"}, r"train-0\.parquet has no column img; it has image, label"),
        ({"label_column": "fine"}, r"train-0\.parquet has no column fine"),
        ({"num_classes": 2}, r"train-0\.parquet, row 2: label 2, expected a whole number from 0 to 1"),
        ({"num_classes": 5}, r"train-0\.parquet has no image of class 3, expected images of all classes 0 to 4"),
        ({"valid_fraction": 0.001}, r"valid_fraction = 0\.001 of 60 images holds out none"),
        ({"valid_fraction": 1.0}, r"valid_fraction is 1\.0"),
        ({"fraction": 0.0}, r"fraction is 0\.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_bad_arguments_and_columns(root: Path, load: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, FileError), match=message):
        load(**({"root": root} | changes))


def test_a_test_label_beyond_the_training_classes(root: Path) -> None:
    write(root / "test.parquet", [encoded(0)], [3])
    with pytest.raises(FileError, match=r"test\.parquet, row 0: label 3, expected a whole number from 0 to 2"):
        in_memory(root)


def test_further_numbers_out_of_range(root: Path) -> None:
    with pytest.raises(ConfigError, match="shuffle_rows is 0"):
        streamed(root, shuffle_rows=0)
    with pytest.raises(ConfigError, match="resize is 0"):
        in_memory(root, resize=0)
