"""From a float model to a supernet: every searched quantizer becomes a mixture over its candidate widths."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from bitalloc.errors import SpaceError
from bitalloc.layers import Description
from bitalloc.policy import FLOAT
from bitalloc.quantizers import InputLSQ, InputPACT, Quantizer, WeightLSQ, WeightPACT
from bitalloc.quantizers.pact import START as RANGE_START
from bitalloc.space import SearchSpace
from bitalloc.supernet.choice import WidthChoice
from bitalloc.supernet.groups import SIDES, Side, candidates_of, check_space, tie_groups
from bitalloc.supernet.mixture import InputMixture, Mixture, WeightMixture
from bitalloc.supernet.relaxation import Relaxation, Softmax
from bitalloc.wrap import QuantizedLayer, QuantizerSettings, quantized_layers
from bitalloc.wrap.convert import attach, converted
from bitalloc.wrap.dynamic import change_class
from bitalloc.wrap.quantize import check_layers

QuantizerPair = Literal["pact", "lsq"]
_ATTRIBUTES: dict[Side, str] = {"weight": "weight_quantizer", "act": "input_quantizer"}


@dataclass(frozen=True, slots=True)
class SupernetSettings:
    """How a supernet is made; the defaults are the published ones.

    Attributes:
        pair: ``pact``: activations clipped to a learned range, symmetric weights by their largest magnitude
            (:class:`~bitalloc.quantizers.InputPACT`, :class:`~bitalloc.quantizers.WeightPACT`). ``lsq``: one learned step size for
            every candidate of weights and activations, as the fine-tuning uses them.
        relaxation: from logits to mixtures, see :mod:`~bitalloc.supernet.relaxation`.
        pinned_in_float: layers without a choice run in floating point meanwhile, else at their pinned widths. Costs count the pins anyway.
        range_start: of the clipping ranges of ``pact``; None takes each from the calibration data.
        quantizers: see :class:`~bitalloc.wrap.QuantizerSettings`.
    """

    pair: QuantizerPair = "pact"
    relaxation: Relaxation = field(default_factory=Softmax)
    pinned_in_float: bool = True
    range_start: float | None = RANGE_START
    quantizers: QuantizerSettings = field(default_factory=QuantizerSettings)

    def __post_init__(self) -> None:
        if self.pair not in get_args(QuantizerPair):
            raise SpaceError(f"there is no quantizer pair {self.pair!r}, expected one of {', '.join(get_args(QuantizerPair))}.")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "relaxation": {"name": type(self.relaxation).__name__, **asdict(self.relaxation)}}


class Supernet(nn.Module):
    """Put in front of the class of a model that became a supernet; tells what its quantizers were made for."""

    search_space: SearchSpace


def prepare_supernet(model: nn.Module, space: SearchSpace, description: Description, settings: SupernetSettings | None = None) -> nn.Module:
    """A copy of ``model`` in which every weight and activation that has a choice is a mixture over its candidates.

        A~ = sum_i softmax(alpha_a)_i * Q_i(x)        W~ = sum_j softmax(alpha_w)_j * Q_j(W)        y = layer(A~, W~)

    (GMPQ, equations 2 and 3, arXiv 2108.02720.) The float weight exists once, batch norms stay as they are. Tied layers share one logit
    vector, layers that read one tensor one mixture. Every mixture is computed in the memory of one tensor, see
    :mod:`~bitalloc.supernet.blend`. Calibrate the copy before use.

    Args:
        model: the float model; it stays as it is.
        space: the candidates of every layer. Tied layers must have the same ones, as :func:`~bitalloc.choices.search_space` makes them.
            ``max_widths`` is left to the solver.
        description: of ``model``, see :func:`~bitalloc.wrap.describe`.
        settings: see :class:`SupernetSettings`.

    Returns:
        The supernet, with ``model``'s device, mode and state dict keys; quantizers add theirs.

    Raises:
        SpaceError: no layer has a choice, or tied layers have different candidates.
        PolicyError: the space belongs to another model; it names the layers.
    """
    settings = settings or SupernetSettings()
    check_space(space)
    check_layers(model, space.candidates, left_out=[entry.name for entry in description.not_counted])
    supernet = converted(model, space.candidates, space.shared_inputs, settings.quantizers)
    layers = quantized_layers(supernet)
    for side in SIDES:
        vectors: dict[str, WidthChoice] = {}
        groups = tie_groups(space, side)
        for names in _sharing(layers, side):
            _check_tied(names, groups, side)
            widths = candidates_of(space, side, names[0])
            if len(widths) > 1:
                _mix(layers, side, names, groups[names[0]], widths, vectors, settings)
            elif settings.pinned_in_float and all(name in space.pinned for name in names):
                quantizer_of(layers[names[0]], side).switch(FLOAT)
    change_class(supernet, Supernet)
    assert isinstance(supernet, Supernet)
    supernet.search_space = space
    return supernet


def space_of(supernet: nn.Module) -> SearchSpace:
    """The search space of a supernet. Raises SpaceError for another model."""
    if not isinstance(supernet, Supernet):
        raise SpaceError(f"this {type(supernet).__name__} is no supernet: make one with prepare_supernet(model, space, description).")
    return supernet.search_space


def quantizer_of(layer: QuantizedLayer, side: Side) -> Quantizer:
    """The quantizer of a side, which in a supernet may be a mixture."""
    quantizer: Quantizer = getattr(layer, _ATTRIBUTES[side])
    return quantizer


def _sharing(layers: Mapping[str, QuantizedLayer], side: Side) -> Iterable[tuple[str, ...]]:
    """The layers that have one quantizer, the one that holds it as a child first."""
    holders: dict[int, list[str]] = {}
    for name, layer in layers.items():
        holders.setdefault(id(quantizer_of(layer, side)), []).append(name)
    return [tuple(sorted(names, key=lambda name: _ATTRIBUTES[side] not in layers[name]._modules)) for names in holders.values()]


def _mix(
    layers: Mapping[str, QuantizedLayer],
    side: Side,
    names: Sequence[str],
    group: str,
    widths: tuple[int, ...],
    vectors: dict[str, WidthChoice],
    settings: SupernetSettings,
) -> None:
    """Puts a mixture in the place of the quantizer of the named layers."""
    first = layers[names[0]]
    device = first.weight.device
    owner = group not in vectors
    choice = vectors.setdefault(group, WidthChoice(widths, settings.relaxation).to(device))
    mixture = _mixture(quantizer_of(first, side), choice, owner, settings).to(device)
    attach(_ATTRIBUTES[side], mixture, [layers[name] for name in names])


def _mixture(quantizer: Quantizer, choice: WidthChoice, owner: bool, settings: SupernetSettings) -> Mixture:
    pact = settings.pair == "pact"
    if isinstance(quantizer, WeightLSQ):
        return WeightMixture(WeightPACT(quantizer.name, quantizer.widths, quantizer.channel_axis) if pact else quantizer, choice, owner)
    assert isinstance(quantizer, InputLSQ)
    bank = InputPACT(quantizer.name, quantizer.widths, quantizer.grid, settings.range_start) if pact else quantizer
    return InputMixture(bank, choice, owner)


def _check_tied(names: Sequence[str], groups: Mapping[str, str], side: Side) -> None:
    if len({groups[name] for name in names}) > 1:
        raise SpaceError(
            f"the layers {', '.join(names)} have one {side} quantizer but are not tied in the space: make the space with search_space()."
        )
