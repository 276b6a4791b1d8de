"""Quantizers that are set from what they see: calibration, the same for every method."""

import math
from collections.abc import Sequence

from torch import Tensor

from bitalloc.errors import QuantizerError
from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.grid import Observed


class CalibratedQuantizer(Quantizer):
    """A quantizer that gathers statistics of the tensors it is called with, and takes its grid from them."""

    def __init__(self, name: str, widths: Sequence[int]) -> None:
        super().__init__(name, widths)
        self._observed: Observed | None = None

    @property
    def observing(self) -> bool:
        """Whether calls pass the tensor through and gather statistics."""
        return self._observed is not None

    def observe(self) -> None:
        """From now on calls pass the tensor through and gather statistics, until :meth:`forget`."""
        self._observed = Observed()

    def forget(self) -> None:
        """Stops observing."""
        self._observed = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` fake-quantized at the active width; passed through while observing."""
        if self._observed is not None:
            self._observed.add(x.detach())
            return x
        return super().forward(x)

    def _seen(self) -> Observed:
        """What was observed. Raises QuantizerError if nothing, or a value that is not finite, was."""
        seen = self._observed
        if seen is None or seen.numel == 0:
            raise QuantizerError(f"{self.name} was not reached by the calibration batches; use batches that reach every layer.")
        if not math.isfinite(seen.mean_magnitude):
            raise QuantizerError(f"{self.name}: calibration gave activations that are not finite; check the model and the data.")
        return seen
