"""The widths of every pass of a joint training step."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from bitalloc.policy import FLOAT, Bits
from bitalloc.space import Candidates, SearchSpace
from bitalloc.wrap import uniform_passes


def joint_passes(free: Mapping[str, Candidates]) -> tuple[dict[str, Bits], ...]:
    """The widths of every free layer in each uniform pass, from most to fewest bits.

    A layer with fewer candidates than others stays at its last ones.
    """
    passes = {name: uniform_passes(candidates) for name, candidates in free.items()}
    count = max(len(each) for each in passes.values())
    return tuple({name: each[min(index, len(each) - 1)] for name, each in passes.items()} for index in range(count))


def draw_passes(count: int, drawn: int) -> list[int]:
    """``drawn`` of the ``count`` uniform passes, every subset as likely, in their order; nothing is drawn where it is all of them."""
    if drawn == count:
        return list(range(count))
    chosen: list[int] = torch.randperm(count)[:drawn].tolist()
    return sorted(chosen)


def draw(free: Mapping[str, Candidates]) -> dict[str, Bits]:
    """Random widths, weights and activations apart, from PyTorch's generator, so that checkpoints replay them."""

    def pick(widths: tuple[int, ...]) -> int:
        return widths[int(torch.randint(len(widths), ()))]

    return {name: Bits(pick(c.weight), pick(c.act)) for name, c in free.items()}


def tied(drawn: Mapping[str, Bits], space: SearchSpace) -> dict[str, Bits]:
    """The same with one width for tied layers, that of the first of them: they may have one quantizer."""
    bits = dict(drawn)
    for side, ties in (("weight", space.weight_ties), ("act", space.act_ties)):
        for group in ties:
            names = [name for name in group if name in bits]
            bits.update({name: replace(bits[name], **{side: getattr(bits[names[0]], side)}) for name in names})
    return bits


def widths_in_float(space: SearchSpace) -> dict[str, Bits]:
    """The pinned layers at 32 bits, but for a quantizer that they share with a layer that has a choice."""

    def shared(name: str, groups: tuple[tuple[str, ...], ...]) -> bool:
        return any(name in group and not set(space.free).isdisjoint(group) for group in groups)

    return {
        name: Bits(
            bits.weight if shared(name, space.weight_ties) else FLOAT,
            bits.act if shared(name, space.shared_inputs) else FLOAT,
        )
        for name, bits in space.pinned.items()
    }
