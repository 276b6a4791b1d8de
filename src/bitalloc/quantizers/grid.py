"""Which levels an activation tensor gets: unsigned, signed, or with a few levels below zero for a small negative tail.

SiLU, GELU and hardswish give outputs that reach far above zero and a little below. A signed grid wastes almost half of its
levels on them, an unsigned one cuts the tail off. An integer zero point ``z``, levels ``-z .. 2^b - 1 - z``, keeps the tail and
all levels. It keeps zero itself exact too, so that zero padding stays exact and ONNX QuantizeLinear can hold it (its
``zero_point`` is ``z``).

Signal to quantization noise at the best step of each grid, 8000 values of SiLU of a standard normal, in dB::

    bits                                2     3     4     5     6     7     8
    signed, z = 2^(b-1)               5.5   9.1  15.4  20.1  25.2  30.9  36.8
    unsigned, z = 0                   9.1  11.0  11.8  12.0  12.1  12.1  12.1
    best z                            9.1  14.1  19.9  25.1  30.4  36.1  41.9
    learned offset (LSQ+)            10.5  15.3  20.3  25.2  30.6  36.2  42.0

The learned offset of LSQ+ (Bhalgat et al., 2020, arXiv 2004.09576) gains little more from 4 bits up. It makes zero fall between two
levels, which no integer convolution with zero padding can compute. So the zero point is an integer, and only the step learns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bitalloc.quantizers.rounding import MIN_STEP

InputGrid = Literal["auto", "unsigned", "signed", "asymmetric"]

CLEARLY = 0.6
"""Another grid is taken in place of a signed one if it leaves at most this share of the squared error, 2.2 dB less. Below that it may be
chance: on symmetric data the extremes of the two sides differ."""
NEGLIGIBLE = 1e-9
"""Squared error, as a share of the mean square, that nothing is changed for: data that lie on the levels of several grids."""
ENOUGH = 512
"""Fewer observed values than this do not tell zero points apart; the sign decides alone."""
_OFFSETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_COARSE = tuple(40 ** (-index / 16) for index in range(17))
_FINE = tuple(40 ** (index / 64) for index in range(-3, 4))


def levels(bits: int, zero_point: int) -> tuple[int, int]:
    """Smallest and largest level: ``(-zero_point, 2^bits - 1 - zero_point)``."""
    return -zero_point, 2**bits - 1 - zero_point


def fixed_zero_point(bits: int, signed: bool) -> int:
    """The zero point of a signed or an unsigned grid."""
    return 2 ** (bits - 1) if signed else 0


def best_grid(sample: Tensor, bits: int, prefer_signed: bool) -> tuple[int, float]:
    """The zero point and the step of least mean squared error on a sample, by search.

    Zero points near both ends of ``0 .. 2^bits - 1`` are tried first, then some around the best of them; steps from the smallest at
    which nothing is clipped down to a 40th of it, to within 6 %.

    Args:
        sample: float64 of shape (values,).
        bits: the width.
        prefer_signed: a signed grid stays unless another is clearly better, see :data:`CLEARLY`.
    """
    signed = fixed_zero_point(bits, signed=True)
    near = [offset for offset in _OFFSETS if offset < signed]
    candidates = sorted({signed, *near, *(2**bits - 1 - offset for offset in near)})
    found = {zero_point: _best_step(sample, *levels(bits, zero_point)) for zero_point in candidates}
    best = min(candidates, key=lambda zero_point: found[zero_point])
    place = candidates.index(best)
    low, high = candidates[max(place - 1, 0)], candidates[min(place + 1, len(candidates) - 1)]
    found |= {between: _best_step(sample, *levels(bits, between)) for between in range(low + 1, high, max(1, (high - low) // 8))}
    best = min(found, key=lambda zero_point: found[zero_point])
    if prefer_signed and found[best][0] > CLEARLY * found[signed][0] - NEGLIGIBLE * float(sample.square().mean()):
        best = signed
    return best, found[best][1]


def _best_step(sample: Tensor, low: int, high: int) -> tuple[float, float]:
    """The least mean squared error of a grid, and its step."""
    above, below = float(sample.max()) / high if high else 0.0, float(sample.min()) / low if low else 0.0
    start = max(above, below)
    _, coarse = _best_of(sample, low, high, [start * share for share in _COARSE])
    return _best_of(sample, low, high, [coarse * factor for factor in _FINE])


def _best_of(sample: Tensor, low: int, high: int, steps: Sequence[float]) -> tuple[float, float]:
    column = torch.tensor([[max(step, MIN_STEP)] for step in steps], dtype=torch.float64, device=sample.device)
    errors = ((sample / column).round_().clamp_(low, high).mul_(column) - sample).square_().mean(1)
    index = int(errors.argmin())
    return float(errors[index]), float(column[index])


class Observed:
    """Running statistics of an activation tensor over calls, with a bounded random sample, the same in every run.

    Attributes:
        mean_magnitude: mean of ``|x|``; not finite if a value is not.
        numel: elements seen.
        low: the smallest value, or 0 if none is negative.
    """

    _LIMIT = 8192

    def __init__(self) -> None:
        self.numel, self.low = 0, 0.0
        self._absolute, self._draw, self._held = 0.0, self._LIMIT // 4, 0
        self._parts: list[Tensor] = []
        self._random = torch.Generator("cpu").manual_seed(0)

    @property
    def mean_magnitude(self) -> float:
        """Mean of ``|x|``."""
        return self._absolute / self.numel

    @property
    def sample(self) -> Tensor:
        """Float64 of shape (values,) on the CPU, at most 8192 of them, as many of one large call as of another."""
        return torch.cat(self._parts)

    def add(self, x: Tensor) -> None:
        """Takes note of the elements of ``x``."""
        if not x.numel():
            return
        self._absolute += float(x.abs().sum(dtype=torch.float64))
        self.numel += x.numel()
        self.low = min(self.low, float(x.min()))
        places = torch.randint(x.numel(), (min(self._draw, x.numel()),), generator=self._random, device="cpu")
        self._parts.append(x.take(places.to(x.device)).double().cpu())
        self._held += len(places)
        if self._held > self._LIMIT:
            # Thinned out, and from now on as thin: every call keeps its weight.
            self._parts = [torch.cat(self._parts)[::2]]
            self._held = self._parts[0].numel()
            self._draw = max(1, self._draw // 2)
