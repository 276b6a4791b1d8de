"""The sum of one tensor's fake-quantized versions, in the memory of one.

    out = sum_i shares_i * Q_i(x)

Composed of plain operations this keeps every ``Q_i(x)`` and every mask until the backward pass, |B| + 1 times the memory of ``x``. Here
only ``x``, the shares and the quantizer's parameters are saved, and each branch is computed again, one at a time::

    d shares_i = <grad, Q_i(x)>        d x = sum_i shares_i * dQ_i/dx grad        d step_i = shares_i * dQ_i/dstep_i grad
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Branch = Callable[[Tensor, int], Tensor]
"""The tensor quantized at a width."""


def blend(x: Tensor, shares: Tensor, branch: Branch, widths: Sequence[int], parameters: Sequence[nn.Parameter]) -> Tensor:
    """``sum_i shares_i * branch(x, widths_i)``, same shape and type as ``x``; it can be differentiated twice.

    Args:
        x: any shape.
        shares: shape (widths,).
        branch: gives the same at every call. Its operations need a gradient themselves for the second derivative.
        widths: of the branches.
        parameters: that ``branch`` depends on, besides ``x``.
    """
    out: Tensor = _Blend.apply(branch, tuple(widths), x, shares, *parameters)  # type: ignore[no-untyped-call]
    return out


def composed(x: Tensor, shares: Tensor, branch: Branch, widths: Sequence[int]) -> Tensor:
    """The same in plain operations."""
    out = branch(x, widths[0]) * shares[0]
    for index, width in enumerate(widths[1:], 1):
        out = torch.addcmul(out, branch(x, width), shares[index])
    return out.to(x.dtype)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Branch, widths: tuple[int, ...], x: Tensor, shares: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, shares, *parameters)
        ctx.branch, ctx.widths = branch, widths
        return composed(x, shares, branch, widths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shares, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        # A gradient of the gradient was asked for: then the graph is needed, with every branch in it.
        gradients = _with_graph if torch.is_grad_enabled() else _one_by_one
        return (None, None, *gradients(grad, x, shares, parameters, ctx.branch, ctx.widths, wanted))


def _with_graph(
    grad: Tensor, x: Tensor, shares: Tensor, parameters: list[Tensor], branch: Branch, widths: tuple[int, ...], wanted: Sequence[bool]
) -> list[Tensor | None]:
    inputs = [x, shares, *parameters]
    asked = [value for value, flag in zip(inputs, wanted, strict=True) if flag]
    found = iter(torch.autograd.grad(composed(x, shares, branch, widths), asked, grad, create_graph=True, allow_unused=True))
    return [next(found) if flag else None for flag in wanted]


def _one_by_one(
    grad: Tensor, x: Tensor, shares: Tensor, parameters: list[Tensor], branch: Branch, widths: tuple[int, ...], wanted: Sequence[bool]
) -> list[Tensor | None]:
    wanted_x, wanted_shares, *learning = wanted
    leaf = x.detach().requires_grad_(wanted_x)
    asked = [leaf] * wanted_x + [parameter for parameter, flag in zip(parameters, learning, strict=True) if flag]
    totals: list[Tensor | None] = [None] * len(asked)
    slopes: list[Tensor] = []
    for index, width in enumerate(widths):
        with torch.enable_grad():
            out = branch(leaf, width)
        if wanted_shares:
            slopes.append((grad * out.detach()).sum(dtype=shares.dtype))
        if out.requires_grad:
            found = torch.autograd.grad(out, asked, (grad * shares[index]).to(out.dtype), allow_unused=True)
            totals = [new if old is None else old if new is None else old.add_(new) for old, new in zip(totals, found, strict=True)]
    rest = iter(totals[wanted_x:])
    return [
        totals[0] if wanted_x else None,
        torch.stack(slopes) if wanted_shares else None,
        *(next(rest) if flag else None for flag in learning),
    ]
