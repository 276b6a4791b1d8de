"""The random number generators of a process as one value: PyTorch (CPU, every CUDA device), NumPy, Python."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def capture(generators: Sequence[torch.Generator] = ()) -> RandomState:
    """The state of all global generators and of ``generators``, as nested plain values and uint8 tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
        "generators": [generator.get_state() for generator in generators],
    }


def restore(state: RandomState, generators: Sequence[torch.Generator] = ()) -> None:
    """Sets every generator to ``state``. Devices that are not there any more are left out: their numbers cannot be replayed."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value, index)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
    for generator, value in zip(generators, state["generators"], strict=True):
        generator.set_state(value)
