"""What the stages of a run share: recipe, folder, data, float model. Loaded when first needed."""

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitalloc.choices import first_last_pins, search_space
from bitalloc.costs import Costs, load_table
from bitalloc.data import Splits, showing_progress
from bitalloc.errors import ConfigError
from bitalloc.files import read_json, write_json
from bitalloc.layers import Description
from bitalloc.models import load_weights
from bitalloc.pipeline.entry_points import call_entry_point
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.run_folder import RunFolder, damage
from bitalloc.placement import to_device
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace, Table
from bitalloc.training import Engine, Journal, NoJournal, Progress, device
from bitalloc.training.shares import generators_of
from bitalloc.wrap import QuantizerSettings

_log = logging.getLogger(__name__)

_PARTS = ("train", "calibration", "valid", "test")


@dataclass(eq=False)
class Workspace:
    """Recipe, folder and data root of one run, and what is built from them.

    Attributes:
        recipe: what to do.
        folder: where to do it.
        data_root: folder that relative data and weight paths start from.
        progress: where progress is shown.
        journal: what is told of the trainings and of finished tasks.
        target: where this is the source of a run: that run.
    """

    recipe: Recipe
    folder: RunFolder
    data_root: Path | None
    progress: Progress
    journal: Journal = field(default_factory=NoJournal)
    target: "Workspace | None" = None
    _beginning: list[tuple[torch.Generator, Tensor]] = field(default_factory=list, init=False)

    @cached_property
    def splits(self) -> Any:
        """The parts of the data.

        The random generators are seeded before, so that a data function that draws from them gives the same data again.

        Raises:
            ConfigError: the data function fails or returns something else.
        """
        recipe = self.recipe
        arguments = {"batch_size": recipe.batch_size, "seed": recipe.seed, "root": self.data_root, **recipe.data_options}
        seed_everything(recipe.seed)
        with showing_progress(self.progress):
            splits = call_entry_point(recipe.data, "data", arguments)
        missing = [part for part in (*_PARTS, "example") if not hasattr(splits, part)]
        if missing:
            kind = type(splits).__name__
            raise ConfigError(f"data = {recipe.data!r} returned a {kind} without {', '.join(missing)}: see bitalloc.data.Splits.")
        for part in _PARTS:
            loader = getattr(splits, part)
            if not hasattr(loader, "__iter__") or not _has_length(loader):
                kind = type(loader).__name__
                raise ConfigError(f"data = {recipe.data!r}: {part} is a {kind}, expected batches that have a length, like a DataLoader.")
        if isinstance(splits, Splits):
            splits = splits.to(device())  # where images are augmented
        self._beginning = [(generator, generator.get_state()) for generator in _generators(splits)]
        return splits

    def rewind(self) -> None:
        """Puts loaders and random generators to their beginning, as at the start of the process.

        So a stage gives the same whether the ones before it ran in this process or in one that was killed.
        """
        seed_everything(self.recipe.seed)
        for generator, state in self._beginning:
            generator.set_state(state)
        for part in _PARTS if "splits" in vars(self) else ():
            loader = getattr(self.splits, part)
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(0)

    @cached_property
    def data_fingerprint(self) -> str:
        """Identifies the data: the loaders' own fingerprints, else their lengths and first batches."""
        parts = [getattr(self.splits, part) for part in _PARTS]
        self.rewind()
        found = " ".join(part.fingerprint() if hasattr(part, "fingerprint") else _first_batch(part) for part in parts)
        self.rewind()
        self._compare(found)
        return found

    def _compare(self, fingerprint: str) -> None:
        """Says in the log if the run folder knows other data, and remembers these."""
        path = self.folder.path("data.json")
        with damage(path):
            known = read_json(path, schema="bitalloc.data", version=1).get("fingerprint") if path.exists() else fingerprint
        if known != fingerprint:
            _log.warning(
                "The data are not those of the last run in %s (files were added, removed or changed, or the recipe asks for others): what "
                "depends on them is done again. An unfinished training goes on if you stop now and bring the former data back.",
                self.folder.root,
            )
        if known != fingerprint or not path.exists():
            write_json(path, {"schema": "bitalloc.data", "version": 1, "fingerprint": fingerprint})

    @property
    def example(self) -> Tensor:
        """One input, shape (1, ...): zeros of the recipe's ``input_shape``, else from the data."""
        if self.recipe.input_shape is not None:
            return torch.zeros(1, *self.recipe.input_shape)
        example: Tensor = self.splits.example
        return example

    def calibration(self) -> list[Any]:
        """A few training batches without augmentation, on the training device."""
        return [to_device(batch, device()) for batch in islice(iter(self.splits.calibration), self.recipe.calibration_batches)]

    def new_model(self) -> nn.Module:
        """The network with its own initial weights, which depend on the seed."""
        seed_everything(self.recipe.seed)
        model = call_entry_point(self.recipe.model, "model", self.recipe.model_options)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model = {self.recipe.model!r} returned a {type(model).__name__}, expected a torch.nn.Module.")
        return model

    def weights_path(self) -> Path | None:
        """The given float weights, if the recipe names some."""
        given = self.recipe.float_.weights
        if not given:
            return None
        path = Path(given)
        path = path if path.is_absolute() or self.data_root is None else self.data_root / path
        if not path.is_file():
            hint = "" if self.data_root or path.is_absolute() else " It is searched in the current folder, as there is no --data-root."
            raise ConfigError(f"float.weights = {given!r}: {path} does not exist.{hint}")
        return path

    def float_model(self) -> nn.Module:
        """The float model of this run, on the training device."""
        model = self.new_model()
        with damage(self.folder.path("float.safetensors")):
            load_weights(model, self.folder.path("float.safetensors"))
        return model.to(device())

    def description(self) -> Description:
        """The model's layers, from ``layers.json``."""
        with damage(self.folder.path("layers.json")):
            return Description.load(self.folder.path("layers.json"))

    def space(self, description: Description) -> SearchSpace:
        """The search space that the recipe and the layers give."""
        section = self.recipe.space
        widths = section.first_last_candidates
        if not widths:
            return self.uniform_space(description)
        allowed = None if section.allowed_pairs is None else frozenset(Bits.parse(pair) for pair in section.allowed_pairs)
        ends = {name: Candidates(widths, widths, allowed) for name in (*description.last, *description.first)}
        if section.first_act is not None:
            ends |= dict.fromkeys(description.first, Candidates(widths, (section.first_act,)))
        # What the user pinned or excluded by a pattern stays so, at the ends of the network too.
        return self._space(description, section.pins, ends)

    def uniform_space(self, description: Description) -> SearchSpace:
        """The search space with the first and last layers pinned, which the uniform policy is from."""
        section = self.recipe.space
        pins: Mapping[str, Bits | str] = section.pins
        if section.first_last:
            pins = {**first_last_pins(description, Bits.parse(section.first_last), first_act=section.first_act), **pins}
        return self._space(description, pins, {})

    def _space(self, description: Description, pins: Mapping[str, Bits | str], overrides: Mapping[str, Candidates]) -> SearchSpace:
        section = self.recipe.space
        return search_space(
            description,
            section.weight,
            section.act,
            pins=pins,
            include=section.include,
            exclude=section.exclude,
            overrides=overrides,
            allowed=section.allowed_pairs,
            minimum=section.minimum,
            max_widths=section.max_widths,
            coupling=section.coupling,
            fused_qkv=section.fused_qkv,
            depthwise_pointwise=section.depthwise_pointwise,
        )

    def space_options(self) -> dict[str, Any]:
        """What the recipe says about ties and hardware, for the provenance of policies."""
        names = ("coupling", "fused_qkv", "depthwise_pointwise", "allowed_pairs", "minimum", "max_widths")
        return self.recipe.space.model_dump(mode="json", include=set(names))

    def tables(self) -> dict[str, Table]:
        """The costs that the recipe reads from files, by the name of their budget."""
        return {name: load_table(Path(file)) for name, file in self.recipe.tables.items()}

    def costs(self, description: Description, space: SearchSpace) -> Costs:
        """How the budgets of the recipe are counted over a space."""
        return Costs(description, space, self.tables(), per_channel=self.recipe.quantizers.per_channel)

    def quantizers(self) -> QuantizerSettings:
        """How layers are quantized."""
        return QuantizerSettings(**self.recipe.quantizers.model_dump())

    def engine(self) -> Engine:
        """How trainings compute."""
        return Engine(**self.recipe.engine.model_dump(exclude={"trackers"}))

    def steps(self, epochs: float, loader: Any = None) -> int:
        """Optimiser steps in so many epochs of ``loader``, by default of all training data; at least 1 if there is any epoch."""
        return max(1, round(epochs * len(self.splits.train if loader is None else loader))) if epochs > 0 else 0


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _first_batch(loader: Any) -> str:
    """A hash of a loader's length and first batch."""
    sha = hashlib.sha256(str(len(loader)).encode())
    for tensor in _tensors(next(iter(loader), ())):
        sha.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except TypeError:  # a DataLoader over an iterable data set has the method, but no length
        return False
    return True


def _generators(splits: Any) -> list[torch.Generator]:
    """The generators that the loaders own (a DataLoader's, its sampler's), each once."""
    return list(dict.fromkeys(generator for part in _PARTS for generator in generators_of(getattr(splits, part))))
