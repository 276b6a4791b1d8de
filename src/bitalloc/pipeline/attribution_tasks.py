"""Where the fine-tuned networks look, against the float model: numbers for the summary, and a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitalloc.attribution import Attribution, GradCAM, GradientTimesInput, InputGradient, attribution_rank_distance
from bitalloc.attribution.base import about
from bitalloc.data import optional
from bitalloc.files import write_json
from bitalloc.pipeline.attribution_picture import attribution_picture, check_drawable
from bitalloc.pipeline.recipe_sections import LevelSection, SupernetSection
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
    section, reference, attribution = work.recipe.evaluate, starting_model(work), _compared(work)
    networks = {f"{level.name} {kind}": finetuned(work, level, kind).to(device()) for level in work.recipe.levels for kind in kinds(level)}
    if section.attribution_images:
        found = attribution_rank_distance(
            reference,
            networks,
            work.splits.test,
            attribution=attribution,
            images=section.attribution_images,
            progress=work.progress,
        )
        write_json(work.folder.path(REPORT), found.to_json())
    if section.attribution_pictures:
        images, labels = _first(work.splits.test, section.attribution_pictures)
        titles = [f"label {label}" for label in labels.tolist()]
        attribution_picture(
            reference, networks, to_device(images, device()), work.folder.path(PICTURE), attribution=attribution, titles=titles
        )


def attribution_of(section: SupernetSection) -> Attribution:
    """What a search keeps in order."""
    if section.attribution == "gradcam":
        return GradCAM(section.layers)
    return InputGradient() if section.attribution == "input-gradient" else GradientTimesInput()


def attribution_values(work: Workspace) -> dict[str, Any]:
    """What decides which maps of the fine-tuned networks are compared."""
    section = work.recipe.supernet
    return {} if section is None else {"attribution": section.attribution, "layers": list(_layers(work, section))}


def check_attribution(work: Workspace) -> None:
    """Tries on the untrained model what is looked at after the fine-tuning.

    Raises:
        TrainingError: the model has no logits or no feature map, or its images cannot be drawn.
        MissingDependencyError: nothing can draw.
    """
    if wanted_files(work):
        _try(work, _compared(work), "[evaluate] attribution_images and attribution_pictures")
    if work.recipe.evaluate.attribution_pictures:
        optional.load("PIL.Image", "pillow", "the picture of attributions")
        with about("evaluate.attribution_pictures"):
            check_drawable(two_samples(work))


def check_metric(work: Workspace) -> None:
    """Raises TrainingError if the widths are to be scored by attribution and the model has no logits or no feature map."""
    if work.recipe.supernet is None and work.recipe.measure.metric == "attribution":
        _try(work, GradCAM(), 'measure.metric = "attribution"')


def two_samples(work: Workspace) -> Tensor:
    """The example twice, with random numbers in the place of zeros: a gradient of nothing is nothing."""
    example = work.example
    if example.is_floating_point() and not bool(example.any()):
        example = torch.rand(example.shape, generator=torch.Generator().manual_seed(work.recipe.seed)).to(example)
    return example.repeat(2, *[1] * (example.dim() - 1))


def rank_distances(work: Workspace, level: LevelSection) -> dict[str, float] | None:
    """ARD of every policy of a level; None where the recipe does not ask for it."""
    if not work.recipe.evaluate.attribution_images:
        return None
    networks = read_report(work.folder.path(REPORT), "networks")["networks"]
    return {kind: networks[f"{level.name} {kind}"]["distance"] for kind in kinds(level)}


def _compared(work: Workspace) -> Attribution:
    section = work.recipe.supernet
    return GradCAM() if section is None else attribution_of(section.model_copy(update={"layers": _layers(work, section)}))


def _layers(work: Workspace, section: SupernetSection) -> tuple[str, ...]:
    # The patterns are of the network that is searched, whose layers may have other names.
    renamed = work.recipe.source is not None and work.recipe.source.names
    return () if renamed else section.layers


def _try(work: Workspace, attribution: Attribution, key: str) -> None:
    with about(key):
        attribution.explain(work.new_model(), two_samples(work))


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
