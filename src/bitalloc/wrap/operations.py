"""What the operations of ATen mean for a description."""

from typing import Final


def words(text: str) -> frozenset[str]:
    """The words of a text: long sets read better so."""
    return frozenset(text.split())


PRODUCTS: Final[dict[str, tuple[str, str]]] = {
    "convolution": ("input", "weight"),
    "_convolution": ("input", "weight"),
    "mm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "_grouped_mm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
}
"""Products of two tensors, with the names of the arguments that are multiplied."""

CONVOLUTIONS: Final = frozenset({"convolution", "_convolution"})
ATTENTION: Final = "scaled_dot_product_attention"
RECURRENT: Final = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
COMPOSITES: Final = RECURRENT | {ATTENTION}
"""Functions of PyTorch that are one operation here: what they consist of differs from device to device."""

OTHER_PRODUCTS: Final = {
    "_trilinear": "bilinear product",
    "_embedding_bag": "embedding bag, sums of rows",
    "_embedding_bag_forward_only": "embedding bag, sums of rows",
    "deform_conv2d": "deformable convolution",
    "_cdist_forward": "pairwise distances",
    "mkldnn_rnn_layer": "recurrent layer",
    "_cudnn_rnn": "recurrent layer",
    "_native_multi_head_attention": "attention",
    "_transformer_encoder_layer_fwd": "transformer layer",
}
RENORMALISATION: Final = "embedding_renorm"
"""Shortens the rows of a table that are looked up: the table stays one, whatever the tokens."""

EMBEDDINGS: Final = frozenset({"embedding"})

VIEWS: Final = words(
    "view _unsafe_view reshape _reshape_alias t transpose permute movedim expand expand_as unsqueeze squeeze select slice split  "
    "split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind narrow diagonal unfold as_strided alias  "
    "detach clone contiguous lift_fresh lift_fresh_copy copy flatten unflatten dropout alpha_dropout feature_dropout roll flip  "
    "rot90 repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col index index_select  "
    "gather masked_select tril triu view_as_real view_as_complex squeeze_copy _conj resolve_conj embedding_renorm"
)
"""Operations that only move or choose elements: their result has the values of their first operand (of ``src`` in a copy)."""

CREATIONS: Final = words(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty new_empty_strided"
)
"""Operations that take a tensor for its shape alone."""

BATCH_NORM_OPERATIONS: Final = words(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm batch_norm  "
    "_batch_norm_no_update batch_norm_with_update"
)
ACTIVATIONS: Final = words(
    "relu relu6 leaky_relu rrelu_with_noise _prelu_kernel elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh  "
    "softplus softshrink hardshrink log_sigmoid log_sigmoid_forward threshold clamp clamp_min clamp_max"
)
"""Functions of one element that a runtime computes with the operation in front of them."""

ADDITIONS: Final = frozenset({"add", "sub", "rsub"})
ARITHMETIC: Final = ADDITIONS | {"mul", "div"}
CONCATENATIONS: Final = frozenset({"cat", "stack"})

_MADE_BY: Final = {
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "cat": "concat",
    "stack": "concat",
    "rsub": "sub",
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "log_sigmoid",
    "mm": "matmul",
    "addmm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "_grouped_mm": "matmul",
    "_to_copy": "cast",
    "update": "write",
    ATTENTION: "attention",
    **dict.fromkeys(BATCH_NORM_OPERATIONS, "batch_norm"),
    **{f"max_pool{d}d_with_indices": "max_pool" for d in (2, 3)},
    **{f"adaptive_max_pool{d}d": "max_pool" for d in (1, 2, 3)},
    **{f"{kind}avg_pool{d}d": "avg_pool" for d in (1, 2, 3) for kind in ("", "_adaptive_", "adaptive_")},
}


def made_by(operation: str) -> str:
    """The usual word for an operation of ATen, for example ``softmax`` for ``_softmax``."""
    return _MADE_BY.get(operation, operation.strip("_"))
