"""The random number generators of a process as one value: PyTorch (CPU, the current CUDA device), NumPy, Python."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bitalloc.training.ranks import from_main, take_from_main, world_size

RandomState = dict[str, Any]


def capture(generators: Sequence[torch.Generator] = ()) -> RandomState:
    """The state of the global generators and of ``generators``, as nested plain values and uint8 tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        # Of this process's device alone: asking the others would take memory on each of them.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": (str(name), keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
        "generators": [generator.get_state() for generator in generators],
    }


def restore(state: RandomState, generators: Sequence[torch.Generator] = ()) -> None:
    """Sets every generator to ``state``. A device that is not there any more is left out: its numbers cannot be replayed."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
    for generator, value in zip(generators, state["generators"], strict=True):
        generator.set_state(value)


def agree_on_torch() -> None:
    """PyTorch's generator for the processor becomes that of rank 0."""
    if world_size() > 1:
        state = torch.get_rng_state()
        take_from_main([state])
        torch.set_rng_state(state)


def agree_on_order(generators: Sequence[torch.Generator]) -> None:
    """All generators that an order of samples may be drawn from become those of rank 0: PyTorch's, NumPy's, Python's, ``generators``."""
    if world_size() > 1:
        own = capture(generators)
        restore({**from_main({**own, "cuda": []}), "cuda": own["cuda"]}, generators)


@contextmanager
def own_random(seed: int) -> Iterator[None]:
    """Within the block the generators for the processor start at ``seed``; afterwards they are as they were."""
    before = {**capture(), "cuda": []}
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        restore(before)
