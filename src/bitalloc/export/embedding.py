"""Deployed embeddings: a table of integers, whose rows are scaled after they are looked up."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import ExportError
from bitalloc.export.parts import weight_codes
from bitalloc.policy import FLOAT
from bitalloc.wrap.embedding import QuantizedEmbedding


@final
class IntegerEmbedding(nn.Module):
    """Integer rows times their scale: ``y = codes[ids] * scale[ids]``.

    Args:
        codes: int8 of shape (rows, dimensions).
        scale: float32 of shape (1, 1), or (rows, 1) for a scale a row.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows, float32 of shape ``(*ids.shape, dimensions)``."""
        scale = self.scale if len(self.scale) == 1 else F.embedding(ids, self.scale)
        return F.embedding(ids, self.codes).float() * scale


def deployed_embedding(name: str, layer: QuantizedEmbedding) -> nn.Module:
    """The embedding as a table of integers; itself where its weights are not quantized.

    Raises:
        ExportError: it has a ``max_norm``, which changes the table at every call.
    """
    if layer.weight_quantizer.bits == FLOAT:
        return layer
    if layer.max_norm is not None:
        raise ExportError(f"layer {name} is an embedding with max_norm, which changes its weights at every call: leave it at 32 bits.")
    scale = layer.weight_quantizer.step.detach().float().reshape(-1, 1)
    return IntegerEmbedding(weight_codes(layer.weight, scale, layer.weight_quantizer), scale.clone())
