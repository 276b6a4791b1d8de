"""The quantized embedding: a table whose rows are quantized when they are looked up."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.policy import FLOAT
from bitalloc.wrap.layers import QuantizedLayer


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):
    """A quantized ``nn.Embedding``: its weights have a width, its input is no activation.

    Only the rows that are looked up are quantized. That gives the same values and gradients as quantizing the whole table,
    which is as wide as the vocabulary; gradients of a sparse table stay sparse. The padding row moves neither weights nor steps.
    """

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """The quantized rows, shape ``(*input.shape, embedding_dim)``."""
        quantizer = self.weight_quantizer
        rows = self.compute(input, self.weight, None)
        if quantizer.bits == FLOAT:
            return rows
        out = quantizer.rows(rows, input, self.weight)
        return out if self.padding_idx is None else torch.where((input == self.padding_idx)[..., None], out.detach(), out)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """The rows of ``weight`` at the positions ``x``."""
        return F.embedding(x, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
