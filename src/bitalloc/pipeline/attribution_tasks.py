"""Where the fine-tuned networks look, against the float model: numbers for the summary, and a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitalloc.attribution import GradCAM, attribution_rank_distance
from bitalloc.data import optional
from bitalloc.files import write_json
from bitalloc.pipeline.attribution_picture import attribution_picture
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.result_tasks import finetuned, kinds
from bitalloc.pipeline.run_folder import read_report
from bitalloc.pipeline.training_tasks import starting_model
from bitalloc.pipeline.workspace import Workspace
from bitalloc.placement import to_device
from bitalloc.training import device

REPORT, PICTURE = "attribution.json", "attribution.png"


def wanted_files(work: Workspace) -> tuple[Path, ...]:
    """What the recipe asks for; nothing by default."""
    section = work.recipe.evaluate
    asked = ((REPORT, section.attribution_images), (PICTURE, section.attribution_pictures))
    return tuple(work.folder.path(name) for name, count in asked if count)


def compare_attributions(work: Workspace) -> None:
    """Writes ``attribution.json`` and ``attribution.png``, as far as the recipe asks for them, on the first test images."""
    section, reference = work.recipe.evaluate, starting_model(work)
    networks = {f"{level.name} {kind}": finetuned(work, level, kind).to(device()) for level in work.recipe.levels for kind in kinds(level)}
    if section.attribution_images:
        found = attribution_rank_distance(reference, networks, work.splits.test, images=section.attribution_images, progress=work.progress)
        write_json(work.folder.path(REPORT), found.to_json())
    if section.attribution_pictures:
        images, labels = _first(work.splits.test, section.attribution_pictures)
        titles = [f"label {label}" for label in labels.tolist()]
        attribution_picture(reference, networks, to_device(images, device()), work.folder.path(PICTURE), titles=titles)


def check_attribution(work: Workspace) -> None:
    """Raises TrainingError if the model has no feature map, MissingDependencyError if nothing can draw; before any training."""
    if wanted_files(work):
        GradCAM().resolved(work.new_model(), work.example)
    if work.recipe.evaluate.attribution_pictures:
        optional.load("PIL.Image", "pillow", "the picture of attributions")


def rank_distances(work: Workspace, level: LevelSection) -> dict[str, float] | None:
    """ARD of every policy of a level; None where the recipe does not ask for it."""
    if not work.recipe.evaluate.attribution_images:
        return None
    networks = read_report(work.folder.path(REPORT), "networks")["networks"]
    return {kind: networks[f"{level.name} {kind}"]["distance"] for kind in kinds(level)}


def _first(loader: Iterable[Any], count: int) -> tuple[Tensor, Tensor]:
    """So many images and their labels, or as many as there are."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        images.append(batch[0])
        labels.append(batch[1])
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]
