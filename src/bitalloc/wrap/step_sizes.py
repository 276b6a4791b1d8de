"""What became of the learned step sizes: those that collapsed, saturate, or never moved, by layer."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor, nn

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import LSQ, InputLSQ, InputPACT, Quantizer, WeightLSQ, positive
from bitalloc.quantizers.rounding import MIN_STEP
from bitalloc.wrap.functional import layers_of
from bitalloc.wrap.occupancy import Occupancy, of_inputs, of_weight

COLLAPSED: Final = 16.0
"""A step size that fell below its start by more than this factor, four octaves, collapsed; a good one moves by less than two."""
SATURATED: Final = 0.25
"""A larger share of values beyond the grid is too much. With the best step for normal values 7 % of them lie there at 2 bits."""
MOVED: Final = 1e-4
"""A change by a smaller share is none."""
_HUGE: Final = 1 / MIN_STEP

Side = Literal["weight", "act"]
Problem = Literal["collapsed", "one level", "saturated", "unmoved"]
StepSizes = Mapping[str, tuple[float, ...]]

_ADVICE: Final[Mapping[Problem, str]] = {
    "collapsed": "train the step sizes at a lower rate, or give the layer more bits",
    "one level": "all values round to one level, so the layer passes nothing on: give it more bits or exclude it",
    "saturated": "give the layer more bits, or calibrate on more data and train the step sizes at a lower rate",
    "unmoved": "set step_size_rate above 0, or train longer; an importance read from this step size is that of its start",
}


@dataclass(frozen=True, slots=True)
class StepSizeFinding:
    """A step size that training did not do well.

    Attributes:
        layer: name; the first of those that share the quantizer.
        side: of the layer.
        width: bits.
        problem: ``collapsed``: it fell by more than four octaves, or to the smallest in use. ``one level``: all values round to the same
            level. ``saturated``: more than a quarter of the values lie beyond the grid, by more than half a step. ``unmoved``: it is
            where it started, to within 0.01 %.
        start: before the training; with one step size a channel, that of the channel that fell most.
        end: after it, of the same channel.
        clipped: share of the values that lie beyond the grid; None for an activation without data.
        advice: what to do.
    """

    layer: str
    side: Side
    width: int
    problem: Problem
    start: float
    end: float
    clipped: float | None
    advice: str


def step_sizes(model: nn.Module) -> dict[str, tuple[float, ...]]:
    """The effective step sizes of a quantized model by parameter name, one a channel: the start for :func:`step_size_report`.

    Those within the mixtures of a supernet too.
    """
    return {step.name: step.values for step in _steps(model)}


def step_size_report(
    model: nn.Module,
    start: StepSizes,
    batches: Iterable[Any] = (),
    forward: Callable[[nn.Module, Any], Any] | None = None,
    layers: Collection[str] | None = None,
) -> tuple[StepSizeFinding, ...]:
    """The step sizes that collapsed, saturate, leave one level only, or never moved; nothing on a training that went well.

    Of a supernet the step sizes of every candidate are looked at; the activations are those of the mixtures as they stand. PACT has no
    step sizes of its own and is left out.

    Args:
        model: quantized, after its training; it stays as it is.
        start: :func:`step_sizes` of it before the training.
        batches: a few, which show how activations fill their grids, at the widths that the model is switched to. Default: none, and
            nothing is said about how activations fill them.
        forward: ``forward(model, batch)``; default :func:`~bitalloc.wrap.run_on_inputs`.
        layers: only these. Default None, all; give those that took part if others did not.

    Raises:
        QuantizerError: ``start`` is of another model.
    """
    seen = of_inputs(model, batches, forward)
    found = []
    for step in _steps(model):
        if layers is not None and step.layer not in layers:
            continue
        if step.name not in start:
            raise QuantizerError(
                f"the start has no step size {step.name}: take it from the same model, by step_sizes(model) before the training."
            )
        finding = _finding(step, start[step.name], _filled(step, seen))
        if finding is not None:
            found.append(finding)
    return tuple(found)


def broken_step_sizes(model: nn.Module) -> str:
    """The step sizes and PACT's clipping ranges that cannot be used, as part of a sentence; empty if none.

    They are not finite, not positive, or too large for any value. What :func:`bitalloc.training.fit` takes as ``explain``.
    """
    ranges = ((f"{path}.clip_range", module.clip_range) for path, module in model.named_modules() if isinstance(module, InputPACT))
    found = {
        "step sizes": _out_of_range((step.name, step.raw) for step in _steps(model)),
        "clipping ranges": _out_of_range(ranges),
    }
    return "; ".join(f"{kind} out of range: {names}" for kind, names in found.items() if names)


def _out_of_range(scales: Iterable[tuple[str, Tensor]]) -> str:
    found = []
    for name, parameter in scales:
        value = parameter.detach()
        if not bool(value.isfinite().all()):
            found.append(f"{name} is not finite")
        elif bool((value <= MIN_STEP).any()):
            found.append(f"{name} is {float(value.min()):.3g} (not above {MIN_STEP:.3g}, the smallest in use)")
        elif bool((value > _HUGE).any()):
            found.append(f"{name} is {float(value.max()):.3g} (all values round to 0)")
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


@dataclass(frozen=True, slots=True)
class _Step:
    """One step size of a model, and where it stands."""

    layer: str
    weight: Tensor
    side: Side
    name: str  # of the parameter
    quantizer: WeightLSQ | InputLSQ
    bits: int

    @property
    def raw(self) -> nn.Parameter:
        return self.quantizer.raw_step(self.bits)

    @property
    def values(self) -> tuple[float, ...]:
        """The effective step sizes, one a channel."""
        return tuple(positive(self.raw).detach().tolist())


def _steps(model: nn.Module) -> Iterator[_Step]:
    """Every step size; those of a shared quantizer come once."""
    paths = {module: path for path, module in model.named_modules() if isinstance(module, LSQ)}
    for name, layer in layers_of(model).items():
        sides: tuple[tuple[Side, Quantizer], ...] = (("weight", layer.weight_quantizer), ("act", layer.input_quantizer))
        for side, quantizer in sides:
            for bank in quantizer.modules():  # itself, or what a mixture is made of
                if isinstance(bank, WeightLSQ | InputLSQ) and (path := paths.pop(bank, None)):
                    for bits in bank.widths:
                        yield _Step(name, layer.weight, side, f"{path}.step_{bits}", bank, bits)


def _filled(step: _Step, seen: Mapping[tuple[InputLSQ, int], Occupancy]) -> Occupancy | None:
    """How the tensor of a step size fills its grid; None for an activation that was not seen."""
    if isinstance(step.quantizer, WeightLSQ):
        return of_weight(step.quantizer, step.weight, step.bits)
    return seen.get((step.quantizer, step.bits))


def _finding(step: _Step, start: tuple[float, ...], filled: Occupancy | None) -> StepSizeFinding | None:
    pairs = list(zip(start, step.values, strict=True))
    before, after = min(pairs, key=lambda pair: pair[1] / pair[0])  # of the channel that fell most
    problem: Problem
    if after <= 4 * MIN_STEP or after * COLLAPSED < before:
        problem = "collapsed"
    elif filled is not None and filled.one_level:
        problem = "one level"
    elif filled is not None and filled.clipped > SATURATED:
        problem = "saturated"
    elif step.raw.requires_grad and all(abs(new - old) <= MOVED * old for old, new in pairs):
        problem = "unmoved"
    else:
        return None
    clipped = None if filled is None else filled.clipped
    return StepSizeFinding(step.layer, step.side, step.bits, problem, before, after, clipped, _ADVICE[problem])
