"""PACT: activations clipped to a learned range, and the plain weight quantizer that GMPQ pairs with it.

Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018, arXiv 1805.06085, section 3; the pair as in
Wang et al., "Generalizable Mixed-Precision Quantization via Attribution Rank Preservation", ICCV 2021, arXiv 2108.02720.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from bitalloc.errors import QuantizerError
from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.calibrated import CalibratedQuantizer
from bitalloc.quantizers.grid import InputGrid
from bitalloc.quantizers.rounding import MIN_STEP, fake_quantize, positive

START = 6.0
"""The published start of the clipping range."""


def is_clip_range(name: str, parameter: nn.Parameter) -> bool:
    """Whether a named parameter is a learned clipping range; for optimisers that treat it apart."""
    return name.rpartition(".")[2] == "clip_range" and parameter.dim() == 1


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """``values``, exactly, with the gradient of ``x``."""
    out: Tensor = _StraightThrough.apply(x, values)  # type: ignore[no-untyped-call]
    return out


@final
class InputPACT(CalibratedQuantizer):
    """PACT of an activation tensor: one learned range r for all widths, step ``r / (2^b - 1)``, levels ``0 .. 2^b - 1``.

    ::

        x_hat = s * round(clip(x, 0, r) / s),  s = r / (2^b - 1)
        d x_hat / d x = 1 for 0 < x < r, else 0
        d x_hat / d r = 1 for x >= r, else 0                      (PACT, equation 3)

    The range belongs to the tensor, not to a width, as GMPQ publishes it: the widths then differ in the step alone. PACT is defined
    behind a ReLU. Where calibration meets negative values the tensor is clipped to both sides, ``[-r, r]`` on the levels
    ``-(2^(b-1) - 1) .. 2^(b-1) - 1``, and the gradient of r is 1 above, -1 below. Until calibration a call is an error.

    Args:
        name: for messages.
        widths: candidate widths.
        grid: ``auto``: both sides if a calibration value is negative. ``unsigned``, ``signed``: whatever the values.
        start: the range before training, 6 as published; None takes the largest magnitude of the calibration values, which suits
            tensors that are far from that.

    Raises:
        QuantizerError: an asymmetric grid, which PACT has not, or a start that is not positive.
    """

    def __init__(self, name: str, widths: Sequence[int], grid: InputGrid = "auto", start: float | None = START) -> None:
        super().__init__(name, widths)
        if grid == "asymmetric":
            raise QuantizerError(f"{name}: PACT has no zero point, so no asymmetric grid. Use auto, unsigned or signed, or LSQ.")
        if start is not None and not 0 < start < math.inf:
            raise QuantizerError(f"{name}: the clipping range starts at {start}, expected a positive number or None.")
        self.grid: InputGrid = grid
        self.start = start
        self.clip_range = nn.Parameter(torch.full((1,), START if start is None else start))
        # -1 until calibrated. A buffer, so that a checkpoint carries it; mirrored in Python to spare a device sync a call.
        self.register_buffer("signed_flag", torch.tensor([-1], dtype=torch.int32))
        self._signed: bool | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the sign comes from data."""
        return self._signed is not None

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest level at the active width. Raises QuantizerError before calibration."""
        if self._signed is None:
            raise QuantizerError(f"{self.name} is not calibrated: call calibrate(model, batches).")
        high = 2 ** (self.bits - 1) - 1 if self._signed else 2**self.bits - 1
        return (-high if self._signed else 0), high

    @property
    def step(self) -> Tensor:
        """The step size of the active width, positive, shape (1,)."""
        return positive(self.clip_range) / self.levels[1]

    def initialise(self) -> None:
        """Sets sign and range from what was observed. Raises QuantizerError if nothing, or a value that is not finite, was."""
        seen = self._seen()
        self._signed = self.grid == "signed" or (self.grid == "auto" and seen.low < 0)
        self._flag.fill_(int(self._signed))
        with torch.no_grad():
            self.clip_range.fill_(max(float(seen.sample.abs().max()), MIN_STEP) if self.start is None else self.start)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        out: Tensor = _Clipped.apply(x, positive(self.clip_range), *self.levels)  # type: ignore[no-untyped-call]
        return out

    @property
    def _flag(self) -> Tensor:
        flag: Tensor = self.get_buffer("signed_flag")
        return flag

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        flag = int(self._flag.item())
        self._signed = None if flag < 0 else bool(flag)


@final
class WeightPACT(Quantizer):
    """Symmetric weights whose range is their largest magnitude, as it is at every call; nothing is learned.

    ::

        w_hat = s * round(w / s),  s = max|w| / (2^(b-1) - 1),  d w_hat / d w = 1

    So the levels are ``-(2^(b-1) - 1) .. 2^(b-1) - 1``, and 2 bits are ternary. The range counts as a constant in the gradient.

    Args:
        name: for messages.
        widths: candidate widths.
        channel_axis: axis of the output channels for one range a channel; None for one a tensor, as published.
    """

    def __init__(self, name: str, widths: Sequence[int], channel_axis: int | None = None) -> None:
        super().__init__(name, widths)
        self.channel_axis = channel_axis

    def rows(self, rows: Tensor, index: Tensor, table: Tensor) -> Tensor:
        """Rows ``index`` of the weight ``table``, as if the whole table had been quantized before they were looked up.

        Args:
            rows: shape ``(*index.shape, columns)``.
            index: places in the table; not needed, as a row knows its own range.
            table: shape (places, columns); with one range a channel, the places are the channels.
        """
        reach = table.detach().abs().amax() if self.channel_axis is None else rows.detach().abs().amax(-1, keepdim=True)
        return self._rounded(rows, reach)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self.channel_axis is None:
            return self._rounded(x, x.detach().abs().amax())
        others = [axis for axis in range(x.dim()) if axis != self.channel_axis]
        return self._rounded(x, x.detach().abs().amax(others, keepdim=True))

    def _rounded(self, x: Tensor, reach: Tensor) -> Tensor:
        high = 2 ** (self.bits - 1) - 1
        return straight_through(x, fake_quantize(x.detach(), (reach / high).clamp_min(MIN_STEP), -high, high, 1.0))


class _Clipped(torch.autograd.Function):
    """Saves its input and the range; the backward pass is plain operations, so it has a gradient itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, reach)
        ctx.signed = low < 0
        return fake_quantize(x, reach / high, low, high, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, reach = ctx.saved_tensors
        wanted_x, wanted_reach = ctx.needs_input_grad[:2]
        above, below = x >= reach, x <= (-reach if ctx.signed else torch.zeros_like(reach))
        grad_reach = None
        if wanted_reach:
            slope = above.to(grad.dtype) - below.to(grad.dtype) if ctx.signed else above
            grad_reach = (grad * slope).sum(dtype=reach.dtype).reshape(reach.shape)
        return grad.masked_fill(above | below, 0.0) if wanted_x else None, grad_reach, None, None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
