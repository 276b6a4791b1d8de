"""The base of all quantizers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from bitalloc.errors import QuantizerError
from bitalloc.policy import FLOAT


class Quantizer(nn.Module, ABC):
    """Fake-quantizes one tensor at the active bit-width.

    A quantizer knows a fixed set of widths, one of which is active. Width 32 stands for "not quantized" and passes the
    tensor through; it is always allowed.

    Attributes:
        name: the layer and the side that the quantizer belongs to, for messages.
        widths: the widths that it can be switched to, from most to fewest bits.
    """

    def __init__(self, name: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.name = name
        self.widths = tuple(sorted(set(widths) - {FLOAT}, reverse=True))
        self._bits = self.widths[0] if self.widths else FLOAT

    @property
    def bits(self) -> int:
        """The active width."""
        return self._bits

    def switch(self, bits: int) -> None:
        """Makes ``bits`` the active width. Raises QuantizerError for a width that the quantizer was not built for."""
        if bits != FLOAT and bits not in self.widths:
            known = ", ".join(map(str, self.widths)) or "none"
            raise QuantizerError(f"{self.name} has no step size for {bits} bits; it knows {known}.")
        self._bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """``x`` fake-quantized at the active width, same shape and type."""
        return x if self._bits == FLOAT else self._fake_quantize(x)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"bits={self._bits}, widths={self.widths}"

    @abstractmethod
    def _fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the active width, which is not 32."""
