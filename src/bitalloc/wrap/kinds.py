"""The one table of layer types that are counted and quantized."""

import math
from typing import Final

from torch import nn

KINDS: Final[dict[type[nn.Module], str]] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
}
"""Supported type to kind. Types match exactly: a subclass may compute something else in its ``forward``."""


def kind_of(module: nn.Module) -> str | None:
    """The kind of a supported layer, else None.

    A layer whose weight is recomputed before every call (weight normalisation, pruning, parametrisation) holds no plain
    ``weight`` parameter and is not supported either.
    """
    if module._parameters.get("weight") is None:
        return None
    return KINDS.get(type(module))


def macs(kind: str, weight_shape: tuple[int, ...], input_numel: int, output_numel: int) -> int:
    """Multiply-accumulates of one call; the bias is not counted.

    Every output of a convolution or linear layer, and every input of a transposed convolution, meets
    ``prod(weight_shape[1:])`` weights: input (transposed: output) channels a group, times the kernel's size. Positions in
    the zero padding are counted, as is usual.

    Args:
        kind: as :func:`kind_of` gives it.
        weight_shape: ``(out, in / groups, *kernel)``, transposed ``(in, out / groups, *kernel)``, linear ``(out, in)``.
        input_numel: elements of the input of this call.
        output_numel: elements of the output of this call.
    """
    per_element = math.prod(weight_shape[1:])
    return (input_numel if kind.startswith("conv_transpose") else output_numel) * per_element


def spatial_dims(kind: str) -> int | None:
    """Number of spatial dimensions of a convolution's input, None for a linear layer."""
    return None if kind == "linear" else int(kind[-2])
