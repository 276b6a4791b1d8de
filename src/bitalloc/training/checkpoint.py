"""A training run on disk: one safetensors file, written atomically, the last two kept, nothing unpickled."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bitalloc.errors import FileError
from bitalloc.files import parse_json, replacing
from bitalloc.training.nested import pack, tensor_bytes, unpack
from bitalloc.training.random_state import RandomState

SCHEMA: Final = "bitalloc.checkpoint"
VERSION: Final = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retry:
    """One time that a run went back because it diverged.

    Attributes:
        step: the step that failed, counted from 1.
        back_to: steps done in the state that the run went back to; 0 for the start.
        rate: what all learning rates of the schedule are multiplied by since.
        reason: what was wrong.
    """

    step: int
    back_to: int
    rate: float
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to go on bit for bit.

    The rates of a schedule are a pure function of ``step``, so its position is ``step``.
    """

    step: int  # steps done
    epoch: int  # the epoch that the next batch belongs to, from 0
    batch: int  # batches already taken from that epoch
    images: int  # images seen
    seconds: float  # wall-clock time spent in training, over all sittings
    losses: Tensor  # float64, shape (step,)
    model: Mapping[str, Any]  # model.state_dict()
    optimizer: Mapping[str, Any]  # optimizer.state_dict()
    train_step: Mapping[str, Any]  # state_dict() of the training step, empty if it has none
    random: Sequence[RandomState]  # of every rank, after the last step
    epoch_random: Sequence[RandomState]  # of every rank, when the epoch began: replays the order of a shuffling loader
    retries: Sequence[Mapping[str, Any]] = ()  # the fields of every Retry
    parts: int = 1  # that a batch is split into
    data: str | None = None  # identifies the data, None where nothing does


@dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to save.

    Args:
        path: the file. The one before it is kept beside it as ``<name>.previous``.
        fingerprint: any text that identifies the run (recipe, data, seed); a checkpoint with another one is refused.
        seconds: save when so much time has passed since the last save. Default 60: a kill costs a minute at most.
        steps: save after every so many steps too; None (default) looks at the clock alone.
    """

    path: Path
    fingerprint: str
    seconds: float = 60.0
    steps: int | None = None


class CheckpointStore:
    """Saves and loads the checkpoints of one run."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path: Final = path
        self.previous: Final = path.with_name(path.name + ".previous")
        self.fingerprint: Final = fingerprint
        self._last_is_good = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes ``checkpoint``; the last one becomes the previous one, unless it was found damaged.

        Raises:
            FileError: the file cannot be written (what was there stays), or the state holds something that is not plain data.
        """
        content = _encode(checkpoint, self.fingerprint)
        with replacing(self.path) as temporary:
            temporary.write_bytes(content)
            if self._last_is_good:
                # A kill between this rename and the next leaves only the previous file: load() finds it.
                os.replace(self.path, self.previous)
                self._last_is_good = False
        self._last_is_good = True

    def load(self) -> Checkpoint | None:
        """The last checkpoint that is whole, or None if there is no file at all.

        A damaged last file is passed over with a warning in the log.

        Raises:
            FileError: the files are damaged, or belong to another run.
        """
        problems: list[str] = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                found, checkpoint = _decode(path)
            except FileError as error:
                problems.append(str(error))
                continue
            if found != self.fingerprint:
                raise FileError(
                    f"{path} belongs to another run (its fingerprint is {found!r}, expected {self.fingerprint!r}): the recipe, "
                    "the data or the seed has changed. Delete it or choose another folder."
                )
            if problems:
                _log.warning("%s Going on from %s, step %d.", problems[0], path, checkpoint.step)
            self._last_is_good = path == self.path
            return checkpoint
        if problems:
            raise FileError(f"no checkpoint is whole: {' '.join(problems)} Delete {self.path} to start again.")
        return None

    def delete(self) -> None:
        """Removes both files, where they are there."""
        self.path.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)
        self._last_is_good = False


def _encode(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    tensors: dict[str, Tensor] = {}
    state = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    header = {"schema": SCHEMA, "version": VERSION, "fingerprint": fingerprint, "state": pack(state, tensors, origin="checkpoint")}
    text = json.dumps(header, allow_nan=False)
    return save(tensors, {"header": text, "sha256": _digest(text, tensors)})


def _decode(path: Path) -> tuple[str, Checkpoint]:
    damaged = f"{path} is damaged: it was truncated or edited"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the tensors must outlive the mapped file, which the next save replaces.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{damaged} ({error}).") from error
    text = metadata.get("header", "")
    if not text or metadata.get("sha256") != _digest(text, tensors):
        raise FileError(f"{damaged} (its checksum does not fit its content).")
    header = parse_json(text, origin=str(path), schema=SCHEMA, version=VERSION)
    try:
        return str(header["fingerprint"]), Checkpoint(**unpack(header["state"], tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{damaged} ({error}).") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
