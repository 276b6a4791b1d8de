"""Multi-head attention from quantized projections, and the shortcuts of PyTorch that would go around them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import QuantizerError
from bitalloc.wrap.layers import QuantizedLayer

Quantize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def attention(  # the signature is that of torch.nn.functional.multi_head_attention_forward
    quantize: Quantize,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` computes, with inputs and weights of all projections through ``quantize``.

    ``quantize(input, weight)`` gives both as they are to be multiplied. The other arguments, shapes and results are those of PyTorch.

    Raises:
        QuantizerError: keys or values that are projected beforehand (``static_k``), which no module of PyTorch uses.
        RuntimeError: a causal hint without its mask, as in PyTorch.
    """
    if static_k is not None or static_v is not None:
        raise QuantizerError("attention with static_k or static_v cannot be quantized: leave its projections at 32 bits.")
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal is only a hint about attn_mask: give the mask too.")
    unbatched = query.dim() == 2
    if unbatched:  # tensors that are one stay one
        batched = {id(x): x.unsqueeze(1) for x in (query, key, value)}
        query, key, value = (batched[id(x)] for x in (query, key, value))
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    q, k, v = _projected(quantize, (query, key, value), weights, in_proj_bias)
    length, batch, width = q.shape
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, bias.expand(1, batch, -1).to(x)]) for x, bias in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(1, batch, x.shape[-1])]) for x in (k, v))
    q, k, v = (x.reshape(x.shape[0], batch, num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, k.shape[2])
    out, probabilities = _weighted(q, k, v, mask, dropout_p if training else 0.0, need_weights)
    out = F.linear(*quantize(out.permute(2, 0, 1, 3).reshape(length, batch, width), out_proj_weight), out_proj_bias)
    if probabilities is not None:
        probabilities = probabilities.mean(1) if average_attn_weights else probabilities
        probabilities = probabilities.squeeze(0) if unbatched else probabilities
    return out.squeeze(1) if unbatched else out, probabilities


def _weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool) -> tuple[Tensor, Tensor | None]:
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    probabilities = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
    return probabilities @ v, probabilities


def _projected(
    quantize: Quantize, inputs: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor | None, ...], bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Queries, keys and values; a self-attention with one weight quantizes its input once."""
    query, key, value = inputs
    if len(weights) == 1 and query is key and key is value:
        assert weights[0] is not None
        return F.linear(*quantize(query, weights[0]), bias).chunk(3, -1)
    parts: list[Tensor] = []
    for index, x in enumerate(inputs):
        weight = weights[index % len(weights)]
        assert weight is not None
        read, whole = quantize(x, weight)
        own = whole if len(weights) == 3 else whole.chunk(3)[index]
        parts.append(F.linear(read, own, None if bias is None else bias.chunk(3)[index]))
    return tuple(parts)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """Both masks as one that is added to the scores; keys that the model adds (biases, zeros) are visible to all."""
    batch, heads, length, _ = q.shape
    total = None
    if attn_mask is not None:
        shaped = attn_mask.reshape(batch, heads, length, -1) if attn_mask.dim() == 3 else attn_mask
        total = _additive(shaped, q, keys)
    if padding is not None:
        hidden = _additive(padding.reshape(batch, 1, 1, -1), q, keys)
        total = hidden if total is None else total + hidden
    return total


def _additive(mask: Tensor, like: Tensor, keys: int) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
    return F.pad(mask.to(like.dtype), (0, keys - mask.shape[-1]))


class SlowEncoderLayer(nn.TransformerEncoderLayer):
    """A transformer layer that calls its parts in evaluation mode too, instead of one fused operation that reads float weights."""

    @property
    def activation_relu_or_gelu(self) -> int:
        """What PyTorch's shortcut asks for: 0, no fusable activation, while anything in the layer is quantized."""
        return 0 if is_quantizing(self) else int(self.__dict__["activation_relu_or_gelu"])

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: int) -> None:
        self.__dict__["activation_relu_or_gelu"] = value


class SlowEncoder(nn.TransformerEncoder):
    """A transformer encoder that makes no nested tensors, which only the fused layers know."""

    @property
    def use_nested_tensor(self) -> bool:
        """As PyTorch's attribute; false while anything in the encoder is quantized."""
        return bool(self.__dict__["use_nested_tensor"]) and not is_quantizing(self)

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        self.__dict__["use_nested_tensor"] = value


def is_quantizing(module: nn.Module) -> bool:
    """Whether any layer in ``module`` is quantized or being calibrated."""
    return any(isinstance(part, QuantizedLayer) and not part.idle for part in module.modules())
