"""Which implementation of fake quantization runs: chosen by itself, or forced."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from bitalloc.errors import QuantizerError

FakeQuantizeMode = Literal["auto", "fused", "reference"]
VARIABLE = "BITALLOC_FAKE_QUANTIZE"

_mode: str = os.environ.get(VARIABLE) or "auto"


def mode() -> str:
    """The mode in force. Raises QuantizerError if the environment variable holds none."""
    if _mode not in get_args(FakeQuantizeMode):
        raise QuantizerError(f"{VARIABLE}={_mode} in the environment is none of auto, fused, reference; unset it or write one of them.")
    return _mode


@contextmanager
def use_fake_quantize(mode: FakeQuantizeMode) -> Iterator[None]:
    """Within the block, in all threads, fake quantization runs as ``mode`` says; the environment's BITALLOC_FAKE_QUANTIZE is the default.

    Args:
        mode: ``auto``: a fused kernel for float32 and bfloat16 tensors with a float32 step: in C on the CPU, if it is compiled or there
            is a C compiler; in Triton on CUDA devices of compute capability 7.0 or higher, if it is installed. Else the reference.
            ``fused``: the same, but to have no kernel is an error. ``reference``: plain tensor operations everywhere.
            Other types, other devices and exports take the reference in every mode.

    Raises:
        QuantizerError: ``mode`` is none of these. In mode ``fused`` the first call of a quantizer raises it where there is no kernel.
    """
    global _mode  # noqa: PLW0603
    if mode not in get_args(FakeQuantizeMode):
        raise QuantizerError(f"there is no fake quantization {mode!r}; use auto, fused or reference.")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before
