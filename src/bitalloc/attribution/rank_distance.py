"""ARD, the average attribution rank distance between networks over a set of images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.attribution.base import Attribution, about
from bitalloc.attribution.distance import kendall, spearman, top_overlap
from bitalloc.attribution.gradcam import GradCAM
from bitalloc.errors import TrainingError
from bitalloc.placement import module_device, to_device
from bitalloc.training import Progress, Silent
from bitalloc.training.batches import inputs_of, non_empty

SCHEMA = "bitalloc.attribution_rank_distance"
VERSION = 1


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """How much one network looks where the reference looks, image by image; several layers are averaged.

    Attributes:
        spearman: Spearman's rank correlation, from -1 to 1; 1 is the same order.
        kendall: Kendall's tau-b, from -1 to 1.
        top_overlap: shared part of the positions with the largest values, from 0 to 1.
    """

    spearman: tuple[float, ...]
    kendall: tuple[float, ...]
    top_overlap: tuple[float, ...]

    @property
    def distance(self) -> float:
        """ARD: the mean over images of ``1 - spearman``, from 0 to 2, lower is better."""
        return 1 - fmean(self.spearman)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: ARD, and of each figure the mean, the standard deviation over images and the images' values."""
        figures = {"spearman": self.spearman, "kendall": self.kendall, "top_overlap": self.top_overlap}
        return {"distance": self.distance} | {name: _summary(values) for name, values in figures.items()}


@dataclass(frozen=True, slots=True)
class RankDistanceReport:
    """Every network against the reference, on the same images.

    Attributes:
        networks: by the name that was given.
        images: how many.
        top_share: the share of positions that ``top_overlap`` looks at.
        attribution: what was compared.
    """

    networks: Mapping[str, RankAgreement]
    images: int
    top_share: float
    attribution: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version, see :meth:`RankAgreement.to_json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "attribution": self.attribution,
            "images": self.images,
            "top_share": self.top_share,
            "networks": {name: agreement.to_json() for name, agreement in self.networks.items()},
        }


def attribution_rank_distance(
    reference: nn.Module,
    networks: Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    attribution: Attribution | None = None,
    top_share: float = 0.25,
    images: int = 512,
    progress: Progress | None = None,
) -> RankDistanceReport:
    """Compares the attributions of networks with a reference's, in evaluation mode; no network is changed.

    Each network's map is that of the class that it predicts itself, as in GMPQ: a changed prediction counts as well.

    Args:
        reference: the float network.
        networks: for example one a policy, by name; of the reference's architecture, on its device.
        loader: images, or tuples that begin with them.
        attribution: default :class:`~bitalloc.attribution.GradCAM` at the last feature map of ``reference``.
        top_share: see :func:`~bitalloc.attribution.top_overlap`.
        images: stop after the batch that reaches so many. Default 512: the mean's standard error is then below 5 % of the spread.
        progress: advances by images; nowhere by default.

    Raises:
        TrainingError: there is no network or no image, or the attribution fails, see :meth:`~bitalloc.attribution.Attribution.explain`.
    """
    if not networks:
        raise TrainingError("there is no network to compare with the reference: pass at least one.")
    if images < 1:
        raise TrainingError(f"images is {images}, expected a positive number of images to compare attributions on.")
    attribution, progress = attribution or GradCAM(), progress or Silent()
    figures: dict[str, list[Tensor]] = {name: [] for name in networks}
    seen = 0
    with progress.task("attribution rank distance", images):
        for batch in non_empty(loader, "compare attributions on"):
            inputs = to_device(inputs_of(batch), module_device(reference))
            with about("the reference network"):
                attribution = attribution.resolved(reference, inputs)
                wanted = attribution.explain(reference, inputs).maps
            for name, network in networks.items():
                with about(f"network {name}"):
                    found = attribution.explain(network, inputs).maps
                    figures[name].append(_agreement(wanted, found, top_share))
            seen += len(inputs)
            progress.advance(len(inputs))
            if seen >= images:
                break
    agreements = {name: RankAgreement(*(tuple(row) for row in torch.cat(each, 1).tolist())) for name, each in figures.items()}
    return RankDistanceReport(agreements, seen, top_share, type(attribution).__name__)


def _agreement(wanted: tuple[Tensor, ...], found: tuple[Tensor, ...], top_share: float) -> Tensor:
    """The three figures of every image, (3, N)."""
    pairs = list(zip(wanted, found, strict=True))
    layers = [torch.stack((spearman(a, b), kendall(a, b), top_overlap(a, b, top_share))) for a, b in pairs]
    return torch.stack(layers).mean(0).cpu()


def _summary(values: tuple[float, ...]) -> dict[str, Any]:
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else 0.0, "per_image": list(values)}
