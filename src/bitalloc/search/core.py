"""The search through what bound and incumbent leave open: dynamic programming over blocks, states pruned by bounds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from bitalloc.search.core_choices import Choices, TooManyStatesError
from bitalloc.search.layout import Floats, Indices
from bitalloc.search.states import best_states

_KEPT: Final = 30_000_000
"""Partial solutions of all blocks together, six bytes each, from which the best solution is put together."""
_VECTORS: Final = 8
"""Price vectors that are looked at together."""


class TimeOverError(Exception):
    """The deadline passed."""


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """What a search is held against.

    Attributes:
        limits: of every budget.
        cutoff: only solutions with a score below that are wanted.
        prices: several price vectors, each of which gives a bound for every partial solution; shape (vectors, budgets).
        states: most partial solutions that may be held at once.
        deadline: of ``time.perf_counter``.
    """

    limits: Floats
    cutoff: float
    prices: Floats
    states: int
    deadline: float


def search(blocks: Sequence[Choices], frame: Frame) -> Indices | None:
    """The entries of the best solution with a score below the cutoff, ``None`` if there is none.

    One block after the other; a partial solution is dropped if at one of the prices its bound reaches the cutoff, if what the rest
    needs at least no longer fits, or if another one has a lower score and takes no more of any budget.

    Raises:
        TooManyStatesError: more partial solutions than ``frame.states`` at once, or than memory should hold.
        TimeOverError: the deadline passed.
    """
    if not blocks:
        return np.zeros(0, dtype=np.intp) if frame.cutoff > 0 and (frame.limits >= 0).all() else None
    rests, needs = _rests(blocks, frame)
    score, use = np.zeros(1), np.zeros((len(frame.limits), 1))
    trail: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
    left = _KEPT
    for i, block in enumerate(blocks):
        if time.perf_counter() > frame.deadline:
            raise TimeOverError
        room = frame.cutoff - rests[i + 1] + frame.prices @ frame.limits
        parent, choice = _children(score, use, block, frame.prices[0], room[0], frame.states)
        score = score[parent] + block.score[choice]
        use = use[:, parent] + block.cost[:, choice]
        kept = np.flatnonzero((use <= (frame.limits - needs[i + 1])[:, None]).all(axis=0))
        for k in range(1, len(frame.prices), _VECTORS):
            some = slice(k, k + _VECTORS)
            kept = kept[(score[kept] + frame.prices[some] @ use[:, kept] < room[some, None]).all(axis=0)]
        kept = kept[best_states(score[kept], use[:, kept])]
        if not len(kept):
            return None
        left -= len(kept)
        if left < 0:
            raise TooManyStatesError
        score, use = score[kept], use[:, kept]
        trail.append((parent[kept].astype(np.int32), choice[kept].astype(np.int16)))
    return _entries(blocks, trail, int(np.argmin(score)))


def _rests(blocks: Sequence[Choices], frame: Frame) -> tuple[Floats, Floats]:
    """For every block what the blocks from there on add at least: at every price vector, and to every budget."""
    values = np.array([(block.score + frame.prices @ block.cost).min(axis=1) for block in blocks])
    costs = np.array([block.cost.min(axis=1) for block in blocks])
    return tuple(np.concatenate([np.cumsum(of[::-1], axis=0)[::-1], np.zeros((1, of.shape[1]))]) for of in (values, costs))  # type: ignore[return-value]


def _children(score: Floats, use: Floats, block: Choices, prices: Floats, room: float, most: int) -> tuple[Indices, Indices]:
    """The pairs of a state and a choice whose bound at the best prices is below the cutoff."""
    value = score + prices @ use
    extra = block.score + prices @ block.cost
    order = np.argsort(value)
    counts = np.searchsorted(value[order], room - extra)
    if counts.sum() > most:
        raise TooManyStatesError
    choice = np.repeat(np.arange(len(extra)), counts)
    return np.concatenate([order[:count] for count in counts]), choice


def _entries(blocks: Sequence[Choices], trail: Sequence[tuple[NDArray[np.int32], NDArray[np.int16]]], state: int) -> Indices:
    rows = []
    for block, (parent, choice) in zip(reversed(blocks), reversed(trail), strict=True):
        rows.append(block.entries[choice[state]])
        state = int(parent[state])
    entries = np.concatenate(rows) if rows else np.zeros(0, dtype=np.intp)
    return np.sort(entries[entries >= 0])
