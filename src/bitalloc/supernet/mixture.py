"""Quantizers of a supernet: a mixture over candidate widths, in the place of the quantizer of a layer."""

from typing import final

from torch import Tensor

from bitalloc.policy import FLOAT
from bitalloc.quantizers import InputLSQ, InputPACT, Quantizer, WeightLSQ, WeightPACT
from bitalloc.supernet.blend import Branch, blend
from bitalloc.supernet.choice import WidthChoice

MIXED = 0
"""The active "width" of a quantizer that mixes."""


class Mixture(Quantizer):
    """``sum_i shares_i * Q_i(x)`` over the widths of a choice; GMPQ, section 3.1 (arXiv 2108.02720).

    It mixes until it is switched to a width: to 32, which passes the tensor through, or to a candidate, which runs the network of one
    policy on the shared weights. Switched to ``MIXED`` it mixes again.

    Args:
        bank: quantizes at each of the widths.
        choice: the logits; those of tied quantizers are one module.
        owner: whether the choice is registered here, which one of the quantizers that share it does.
    """

    bank: Quantizer
    choice: WidthChoice

    def __init__(self, bank: Quantizer, choice: WidthChoice, owner: bool) -> None:
        super().__init__(bank.name, choice.widths)
        self.bank = bank
        if owner:
            self.choice = choice
        else:
            self.__dict__["choice"] = choice
        self._bits = MIXED

    def switch(self, bits: int) -> None:
        """Makes ``bits`` active; ``MIXED`` mixes. Raises QuantizerError for a width that is no candidate."""
        if bits == MIXED:
            self._bits = MIXED
        else:
            super().switch(bits)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"widths={self.choice.widths}"

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self._bits != MIXED:
            return self._at(x, self._bits)
        return self._mixed(x, self._at)

    def _mixed(self, x: Tensor, branch: Branch) -> Tensor:
        choice = self.choice
        return blend(x, choice.shares(), branch, choice.widths, list(self.bank.parameters()), sparse=choice.relaxation.sparse)

    def _at(self, x: Tensor, bits: int) -> Tensor:
        self.bank.switch(bits)
        out: Tensor = self.bank(x)
        return out


@final
class WeightMixture(Mixture):
    """The mixture of a layer's weight."""

    bank: WeightLSQ | WeightPACT

    @property
    def channel_axis(self) -> int | None:
        """See :class:`~bitalloc.quantizers.WeightLSQ`."""
        return self.bank.channel_axis

    def rows(self, rows: Tensor, index: Tensor, table: Tensor) -> Tensor:
        """Rows of a table, as if the whole mixture had been computed before they were looked up."""
        bank = self.bank

        def at(rows: Tensor, bits: int) -> Tensor:
            bank.switch(bits)
            return rows if bits == FLOAT else bank.rows(rows, index, table.detach())

        if self._bits != MIXED:
            return at(rows, self._bits)
        return self._mixed(rows, at)


@final
class InputMixture(Mixture):
    """The mixture of the tensor that a layer reads; calibrated as its bank is."""

    bank: InputLSQ | InputPACT

    @property
    def observing(self) -> bool:
        """Whether calls pass the tensor through and gather statistics."""
        return self.bank.observing

    def observe(self) -> None:
        """See :meth:`~bitalloc.quantizers.InputLSQ.observe`."""
        self.bank.observe()

    def forget(self) -> None:
        """See :meth:`~bitalloc.quantizers.InputLSQ.forget`."""
        self.bank.forget()

    def initialise(self) -> None:
        """See :meth:`~bitalloc.quantizers.InputLSQ.initialise`."""
        self.bank.initialise()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` mixed; passed through while the bank observes."""
        if self.bank.observing:
            out: Tensor = self.bank(x)
            return out
        return super().forward(x)
