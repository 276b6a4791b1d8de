"""The sum of one tensor's fake-quantized versions, in the memory of one.

    out = sum_i shares_i * Q_i(x)

Composed of plain operations this keeps every ``Q_i(x)`` and every mask until the backward pass, |B| + 1 times the memory of ``x``. Here
only ``x``, the shares and the quantizer's parameters are saved, and each branch is computed again, one at a time::

    d shares_i = <grad, Q_i(x)>        d x = sum_i shares_i * dQ_i/dx grad        d step_i = shares_i * dQ_i/dstep_i grad

A branch whose share is exactly 0 is left out of the sum, and in the backward pass only its value is computed, for the slope of its share.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Branch = Callable[[Tensor, int], Tensor]
"""The tensor quantized at a width."""


def blend(
    x: Tensor, shares: Tensor, branch: Branch, widths: Sequence[int], parameters: Sequence[nn.Parameter], *, sparse: bool = False
) -> Tensor:
    """``sum_i shares_i * branch(x, widths_i)``, same shape and type as ``x``; it can be differentiated twice.

    Args:
        x: any shape.
        shares: shape (widths,).
        branch: gives the same at every call. Its operations need a gradient themselves for the second derivative.
        widths: of the branches.
        parameters: that ``branch`` depends on, besides ``x``.
        sparse: whether shares can be exactly 0. Looking waits for the device, so it is done only where it can pay.
    """
    used = tuple(share != 0 for share in shares.tolist()) if sparse else ()
    out: Tensor = _Blend.apply(branch, tuple(widths), used if any(used) else (True,) * len(widths), x, shares, *parameters)  # type: ignore[no-untyped-call]
    return out


def composed(x: Tensor, shares: Tensor, branch: Branch, widths: Sequence[int], used: Sequence[bool] | None = None) -> Tensor:
    """The same in plain operations; ``used`` says which branches are added up, all by default."""
    first, *others = (index for index in range(len(widths)) if used is None or used[index])
    out = branch(x, widths[first]) * shares[first]
    for index in others:
        out = torch.addcmul(out, branch(x, widths[index]), shares[index])
    return out.to(x.dtype)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, branch: Branch, widths: tuple[int, ...], used: tuple[bool, ...], x: Tensor, shares: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, shares, *parameters)
        ctx.branch, ctx.widths, ctx.used = branch, widths, used
        return composed(x, shares, branch, widths, used)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shares, *parameters = ctx.saved_tensors
        inputs = (ctx.branch, ctx.widths, ctx.used, ctx.needs_input_grad[3:], grad, x, shares, *parameters)
        # Through an operation of its own only where a gradient of the gradient was asked for.
        found = _Slopes.apply(*inputs) if torch.is_grad_enabled() else _one_by_one(*inputs)  # type: ignore[no-untyped-call]
        return (None, None, None, *found)


class _Slopes(torch.autograd.Function):
    """The gradients of a blend, which have a gradient themselves.

    It is taken on copies without a history: ``x`` may depend on the quantizer's parameters, where a module is called twice in a pass, and
    what flows back through ``x`` is not this call's to count.
    """

    @staticmethod
    def forward(
        ctx: Any,
        branch: Branch,
        widths: tuple[int, ...],
        used: tuple[bool, ...],
        wanted: Sequence[bool],
        grad: Tensor,
        x: Tensor,
        shares: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, x, shares, *parameters)
        ctx.set_materialize_grads(False)
        ctx.branch, ctx.widths, ctx.wanted = branch, widths, wanted
        return tuple(_one_by_one(branch, widths, used, wanted, grad, x, shares, *parameters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, x, shares = (value.detach().requires_grad_() for value in ctx.saved_tensors[:3])
        parameters = ctx.saved_tensors[3:]
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        with torch.enable_grad():
            asked = [value for value, flag in zip((x, shares, *parameters), ctx.wanted, strict=True) if flag]
            out = composed(x, shares, ctx.branch, ctx.widths)
            found = torch.autograd.grad(out, asked, grad, create_graph=True, allow_unused=True)
        given = [each for each, flag in zip(incoming, ctx.wanted, strict=True) if flag]
        pairs = [(slope, each) for slope, each in zip(found, given, strict=True) if slope is not None and each is not None]
        if not pairs:
            return (None,) * len(ctx.needs_input_grad)
        slopes, weights = zip(*pairs, strict=True)
        second = iter(torch.autograd.grad(slopes, [grad, x, shares, *learning], weights, allow_unused=True))
        of_parameters = (next(second) if each.requires_grad else None for each in parameters)
        return None, None, None, None, *(next(second) for _ in range(3)), *of_parameters


def _one_by_one(
    branch: Branch,
    widths: tuple[int, ...],
    used: tuple[bool, ...],
    wanted: Sequence[bool],
    grad: Tensor,
    x: Tensor,
    shares: Tensor,
    *parameters: Tensor,
) -> list[Tensor | None]:
    wanted_x, wanted_shares, *learning = wanted
    leaf = x.detach().requires_grad_(wanted_x)
    asked = [leaf] * wanted_x + [parameter for parameter, flag in zip(parameters, learning, strict=True) if flag]
    totals: list[Tensor | None] = [None] * len(asked)
    slopes: list[Tensor] = []
    for index, width in enumerate(widths):
        if not (used[index] or wanted_shares):
            continue
        with torch.set_grad_enabled(used[index]):
            out = branch(leaf, width)
        if wanted_shares:
            slopes.append((grad * out.detach()).sum(dtype=shares.dtype))
        if out.requires_grad:
            found = torch.autograd.grad(out, asked, (grad * shares[index]).to(out.dtype), allow_unused=True)
            totals = [new if old is None else old if new is None else old.add_(new) for old, new in zip(totals, found, strict=True)]
    if not all(used):  # a slope of 0 and none at all are not the same to an optimiser with momentum or decay
        totals = [torch.zeros_like(each) if total is None else total for each, total in zip(asked, totals, strict=True)]
    rest = iter(totals[wanted_x:])
    return [
        totals[0] if wanted_x else None,
        torch.stack(slopes) if wanted_shares else None,
        *(next(rest) if flag else None for flag in learning),
    ]
