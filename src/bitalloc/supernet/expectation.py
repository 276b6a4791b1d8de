"""What a supernet costs and how wide it is, on average over its choices; differentiable in the architecture logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from bitalloc.policy import Bits
from bitalloc.space import Candidates, Table
from bitalloc.supernet.groups import Side
from bitalloc.supernet.mixture import Mixture
from bitalloc.supernet.prepare import quantizer_of, space_of
from bitalloc.wrap import QuantizedLayer, quantized_layers

Probabilities = Callable[[], Tensor]


class ExpectedBits(NamedTuple):
    """Expected widths of one layer, float64 of shape (); gradients reach the logits."""

    weight: Tensor
    act: Tensor


def expected_bits(supernet: nn.Module) -> dict[str, ExpectedBits]:
    """``softmax(alpha) . bits`` of the weights and the activations of every layer that has a choice, by name, in the model's order.

    A side without a choice has its one width; 32 stands for floating point.

    Raises:
        SpaceError: the model is no supernet.
    """
    space, layers = space_of(supernet), quantized_layers(supernet)

    def side(name: str, side: Side, widths: tuple[int, ...]) -> Tensor:
        p = _probabilities(layers[name], side)().double()
        return p @ p.new_tensor(widths)

    rows = {name: space.candidates[name] for name in space.free}
    return {name: ExpectedBits(side(name, "weight", c.weight), side(name, "act", c.act)) for name, c in rows.items()}


@final
class ExpectedCost:
    """The expected sum of a table over the layers of a supernet, as a function of its logits.

    Weights and activations are chosen independently::

        E = sum_l sum_ij p_i q_j cost_l(i, j)

    Where only some pairs are allowed, the distribution is that of the allowed ones: ``p_i q_j`` over their sum. Tables of sums are
    linear, so ties need no care. Pinned layers count at their pins, whether or not they run in floating point.

    Args:
        supernet: on its device; its modules stay the same ones.
        table: a value for every choice of the supernet's space.

    Raises:
        SpaceError: the model is no supernet, or the table lacks a choice.
    """

    def __init__(self, supernet: nn.Module, table: Table) -> None:
        space, layers = space_of(supernet), quantized_layers(supernet)
        table.check(space)
        self._fixed = sum(table.values[name][bits] for name, bits in space.pinned.items())
        self._terms = [_Term(layers[name], space.candidates[name], table.values[name]) for name in space.free]

    def __call__(self) -> Tensor:
        """The expected cost in the table's unit, float64, shape ()."""
        return torch.stack([term() for term in self._terms]).sum() + self._fixed


def expected_cost(supernet: nn.Module, table: Table) -> Tensor:
    """See :class:`ExpectedCost`, which is quicker where it is asked for many times."""
    return ExpectedCost(supernet, table)()


class _Term:
    def __init__(self, layer: QuantizedLayer, candidates: Candidates, row: Mapping[Bits, float]) -> None:
        self._weight, self._act = _probabilities(layer, "weight"), _probabilities(layer, "act")
        allowed = frozenset(candidates.pairs)
        self._restricted = len(allowed) < len(candidates.weight) * len(candidates.act)
        pairs = [[Bits(w, a) for a in candidates.act] for w in candidates.weight]
        device = layer.weight.device
        self._costs = _matrix([[row[b] if b in allowed else 0.0 for b in line] for line in pairs], device)
        self._mask = _matrix([[float(b in allowed) for b in line] for line in pairs], device)

    def __call__(self) -> Tensor:
        weight, act = self._weight().double(), self._act().double()
        value = weight @ self._costs @ act
        return value / (weight @ self._mask @ act) if self._restricted else value


def _matrix(rows: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _probabilities(layer: QuantizedLayer, side: Side) -> Probabilities:
    quantizer = quantizer_of(layer, side)
    if isinstance(quantizer, Mixture):
        return quantizer.choice.probabilities
    one = torch.ones(1, device=layer.weight.device)
    return lambda: one
