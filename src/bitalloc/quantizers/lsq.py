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

from bitalloc.errors import QuantizerError
from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.rounding import MIN_STEP, bounds, fake_quantize, positive

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
    def signed(self) -> bool:
        """Whether the grid has negative levels."""

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
    def signed(self) -> bool:
        """Always true."""
        return True

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

    def _fake_quantize(self, x: Tensor) -> Tensor:
        low, high = bounds(self.bits, signed=True)
        step = self.step
        shared = x.numel() // step.numel()
        if self.channel_axis is not None:
            step = step.reshape([-1 if axis == self.channel_axis else 1 for axis in range(x.dim())])
        return fake_quantize(x, step, low, high, 1.0 / math.sqrt(high * shared))


@final
class InputLSQ(LSQ):
    """LSQ of the activation tensor that a layer reads: one step a tensor, signed or unsigned as the data say.

    The initial step is ``2 E|x| / sqrt(Qp)`` (LSQ, section 2.1), with the mean taken over the calibration batches; the grid is
    signed if a calibration value is negative. Until then a call is an error.

    Args:
        name: for messages.
        widths: candidate widths.
        gradient: what n counts in the gradient scale ``1 / sqrt(Qp * n)``. ``features``: the elements of one sample, as in the
            LSQ paper; the default, because the step then moves at the same pace at every batch size. ``batch``: the elements
            of the whole batch, as the published LIMPQ code counts them.
    """

    signed_flag: Tensor

    def __init__(self, name: str, widths: Sequence[int], gradient: ActGradient = "features") -> None:
        super().__init__(name, widths)
        self.gradient: ActGradient = gradient
        # -1 until calibrated. A buffer, so that a checkpoint carries it; mirrored in Python to spare a device sync a call.
        self.register_buffer("signed_flag", torch.tensor([-1], dtype=torch.int8))
        self._signed: bool | None = None
        self._observed: _Observed | None = None

    @property
    def calibrated(self) -> bool:
        """Whether steps and sign come from data."""
        return self._signed is not None

    @property
    def signed(self) -> bool:
        """Whether calibration saw a negative value. Raises QuantizerError before calibration."""
        if self._signed is None:
            raise QuantizerError(f"{self.name} is not calibrated: call calibrate(model, batches), or pass calibration= to quantize().")
        return self._signed

    def observe(self) -> None:
        """From now on calls pass the tensor through and gather statistics, until :meth:`forget`."""
        self._observed = _Observed()

    def forget(self) -> None:
        """Stops observing."""
        self._observed = None

    def initialise(self) -> None:
        """Sets sign and steps from what was observed. Raises QuantizerError if nothing, or a value that is not finite, was."""
        seen = self._observed
        if seen is None or seen.numel == 0:
            raise QuantizerError(f"{self.name} was not reached by the calibration batches; use batches that reach every layer.")
        mean = seen.absolute / seen.numel
        if not math.isfinite(mean):
            raise QuantizerError(f"{self.name}: calibration gave activations that are not finite; check the model and the data.")
        self._signed = seen.low < 0
        self.signed_flag.fill_(int(self._signed))
        for bits in self.widths:
            high = bounds(bits, self._signed)[1]
            self._store(bits, torch.tensor([2 * mean / math.sqrt(high)]))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` fake-quantized at the active width; passed through while observing."""
        if self._observed is not None:
            self._observed.add(x.detach())
            return x
        return super().forward(x)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        low, high = bounds(self.bits, self.signed)
        counted = math.prod(x.shape[1:]) if self.gradient == "features" and x.dim() > 1 else x.numel()
        return fake_quantize(x, self.step, low, high, 1.0 / math.sqrt(high * max(counted, 1)))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        flag = int(self.signed_flag.item())
        self._signed = None if flag < 0 else bool(flag)


class _Observed:
    """Running statistics of an activation tensor."""

    def __init__(self) -> None:
        self.absolute, self.numel, self.low = 0.0, 0, 0.0

    def add(self, x: Tensor) -> None:
        if x.numel():
            self.absolute += float(x.abs().sum(dtype=torch.float64))
            self.numel += x.numel()
            self.low = min(self.low, float(x.min()))
