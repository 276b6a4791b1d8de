"""LSQ, learned step size quantization, with a bank of step sizes: one a candidate width.

Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153; the bank and the initialisation of the weights'
steps as in Tang et al., "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import QuantizerError
from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.calibrated import CalibratedQuantizer
from bitalloc.quantizers.grid import ENOUGH, InputGrid, Observed, best_grid, fixed_zero_point, levels
from bitalloc.quantizers.rounding import MIN_STEP, bounds, fake_quantize, positive
from bitalloc.quantizers.weight_cache import kept

ActGradient = Literal["features", "batch"]
_STEP = re.compile(r"step_\d+")


def is_step_size(name: str, parameter: nn.Parameter) -> bool:
    """Whether a named parameter is a step size; for optimisers that treat step sizes apart."""
    return _STEP.fullmatch(name.rpartition(".")[2]) is not None and parameter.dim() == 1


class LSQ(Quantizer):
    """A quantizer with one learned step size a width: per tensor, or per channel.

    The steps are parameters named ``step_<bits>`` of shape (1,), or (channels,). A step never gets below ``MIN_STEP``.
    """

    def __init__(self, name: str, widths: Sequence[int], channels: int = 1) -> None:
        super().__init__(name, widths)
        for bits in self.widths:
            self.register_parameter(f"step_{bits}", nn.Parameter(torch.ones(channels)))

    @property
    @abstractmethod
    def levels(self) -> tuple[int, int]:
        """Smallest and largest integer level at the active width, which is not 32."""

    @property
    def step(self) -> Tensor:
        """The effective step size of the active width, positive, shape (1,) or (channels,); gradients reach the parameter."""
        return positive(self.raw_step(self.bits))

    def raw_step(self, bits: int) -> nn.Parameter:
        """The step size parameter of a width."""
        parameter: nn.Parameter = getattr(self, f"step_{bits}")
        return parameter

    def _store(self, bits: int, step: Tensor) -> None:
        with torch.no_grad():
            self.raw_step(bits).copy_(step.clamp_min(MIN_STEP))


@final
class WeightLSQ(LSQ):
    """LSQ of a weight tensor: signed levels ``-2^(b-1) .. 2^(b-1) - 1``.

    The initial step is ``max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1)`` of the tensor, or of each channel (LIMPQ, section 3;
    sigma is the population standard deviation, so that a channel of one element works). The gradient scale is
    ``1 / sqrt(Qp * n)`` with n the number of weights that share a step (LSQ, section 2.2).

    Args:
        name: for messages.
        widths: candidate widths.
        weight: the pretrained weights, which the steps are initialised from.
        channel_axis: axis of the output channels for one step a channel; None for one step a tensor, as published.
    """

    def __init__(self, name: str, widths: Sequence[int], weight: Tensor, channel_axis: int | None = None) -> None:
        super().__init__(name, widths, 1 if channel_axis is None else weight.shape[channel_axis])
        self.channel_axis = channel_axis
        self.to(weight.device)
        self.initialise(weight)

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest level at the active width."""
        return bounds(self.bits, signed=True)

    def initialise(self, weight: Tensor) -> None:
        """Sets all steps from the weights. Raises QuantizerError if a weight is not finite."""
        values = weight.detach().float()
        if not torch.isfinite(values).all():
            raise QuantizerError(f"{self.name}: the weights hold values that are not finite; load a sound checkpoint.")
        rows = values.reshape(1, -1) if self.channel_axis is None else values.transpose(0, self.channel_axis).flatten(1)
        mean, deviation = rows.mean(1), rows.std(1, correction=0)
        reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
        for bits in self.widths:
            self._store(bits, reach / 2 ** (bits - 1))

    def rows(self, rows: Tensor, index: Tensor, table: Tensor) -> Tensor:
        """Rows ``index`` of the weight ``table``, as if the whole table had been quantized before they were looked up.

        Args:
            rows: shape ``(*index.shape, columns)``.
            index: places in the table, whole numbers.
            table: shape (places, columns); with one step a channel, the places are the channels.
        """
        low, high = self.levels
        step = self.step
        scale = 1.0 / math.sqrt(high * table.numel() / step.numel())
        return fake_quantize(rows, step if step.numel() == 1 else F.embedding(index, step[:, None]), low, high, scale)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        return kept(self, x, self.raw_step(self.bits), self.bits, self._computed)

    def _computed(self, x: Tensor) -> Tensor:
        low, high = self.levels
        step = self.step
        shared = x.numel() // step.numel()
        if self.channel_axis is not None:
            step = step.reshape([-1 if axis == self.channel_axis else 1 for axis in range(x.dim())])
        return fake_quantize(x, step, low, high, 1.0 / math.sqrt(high * shared))


@final
class InputLSQ(LSQ, CalibratedQuantizer):
    """LSQ of an activation tensor: one step a tensor, on levels ``-z .. 2^b - 1 - z`` with an integer zero point ``z`` a width.

    Calibration sets zero points and initial steps. The initial step of an unsigned (``z = 0``) or signed (``z = 2^(b-1)``) grid is
    ``2 E|x| / sqrt(Qp)`` (LSQ, section 2.1), with the mean taken over the calibration batches; that of any other grid is the one of
    least mean squared error on them, see :func:`bitalloc.quantizers.grid.best_grid`. Until then a call is an error.

    Args:
        name: for messages.
        widths: candidate widths.
        gradient: what n counts in the gradient scale ``1 / sqrt(Qp * n)``. ``features``: the elements of one sample, as in the
            LSQ paper; the default, because the step then moves at the same pace at every batch size. ``batch``: the elements
            of the whole batch, as the published LIMPQ code counts them. Qp is the largest level, or the magnitude of the smallest where
            that is larger by more than one.
        grid: ``auto``: unsigned if no calibration value is negative, else signed, unless another zero point is clearly better on the
            calibration values, as it is behind SiLU and GELU. ``unsigned`` and ``signed`` whatever the values. ``asymmetric``: the zero
            point of least mean squared error, whatever it is.
    """

    def __init__(self, name: str, widths: Sequence[int], gradient: ActGradient = "features", grid: InputGrid = "auto") -> None:
        super().__init__(name, widths)
        self.gradient: ActGradient = gradient
        self.grid: InputGrid = grid
        # -1 until calibrated. Buffers, so that a checkpoint carries them; mirrored in Python to spare a device sync a call.
        for bits in self.widths:
            self.register_buffer(f"zero_point_{bits}", torch.tensor([-1], dtype=torch.int32))
        self._zero_points: dict[int, int] = {}

    @property
    def calibrated(self) -> bool:
        """Whether steps and zero points come from data."""
        return len(self._zero_points) == len(self.widths)

    @property
    def signed(self) -> bool:
        """Whether the grid of any width has negative levels. Raises QuantizerError before calibration."""
        return any(self.zero_point(bits) > 0 for bits in self.widths)

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest level at the active width. Raises QuantizerError before calibration."""
        return levels(self.bits, self.zero_point(self.bits))

    def zero_point(self, bits: int) -> int:
        """How many levels a width has below zero. Raises QuantizerError before calibration."""
        if bits not in self._zero_points:
            raise QuantizerError(f"{self.name} is not calibrated: call calibrate(model, batches), or pass calibration= to quantize().")
        return self._zero_points[bits]

    def initialise(self) -> None:
        """Sets zero points and steps from what was observed. Raises QuantizerError if nothing, or a value that is not finite, was."""
        seen = self._seen()
        for bits in self.widths:
            zero_point, step = self._choose(bits, seen)
            self._zero_points[bits] = zero_point
            self._zero_point_buffer(bits).fill_(zero_point)
            self._store(bits, torch.tensor([step]))

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, grid={self.grid}"

    def _choose(self, bits: int, seen: Observed) -> tuple[int, float]:
        signed = self.grid == "signed" or (self.grid == "auto" and seen.low < 0)
        if self.grid == "asymmetric" or (self.grid == "auto" and signed and seen.numel >= ENOUGH):
            zero_point, step = best_grid(seen.sample, bits, prefer_signed=self.grid == "auto")
            if self.grid == "asymmetric" or zero_point != fixed_zero_point(bits, signed=True):
                return zero_point, step
        zero_point = fixed_zero_point(bits, signed)
        return zero_point, 2 * seen.mean_magnitude / math.sqrt(levels(bits, zero_point)[1])

    def _fake_quantize(self, x: Tensor) -> Tensor:
        low, high = self.levels
        largest = high if high >= -low - 1 else -low
        counted = math.prod(x.shape[1:]) if self.gradient == "features" and x.dim() > 1 else x.numel()
        return fake_quantize(x, self.step, low, high, 1.0 / math.sqrt(largest * max(counted, 1)))

    def _zero_point_buffer(self, bits: int) -> Tensor:
        buffer: Tensor = getattr(self, f"zero_point_{bits}")
        return buffer

    def _load_from_state_dict(  # the signature is PyTorch's
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if f"{prefix}signed_flag" in state_dict:
            error_msgs.append(f"{prefix}signed_flag: the checkpoint is of an earlier version, which had no zero points; make it again")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        found = {bits: int(self._zero_point_buffer(bits).item()) for bits in self.widths}
        self._zero_points = {bits: zero_point for bits, zero_point in found.items() if zero_point >= 0}
