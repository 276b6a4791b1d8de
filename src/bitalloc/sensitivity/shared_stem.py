"""The part of a network in front of the first layer with a choice: computed once for all passes of a step."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bitalloc.errors import TrainingError
from bitalloc.wrap.embedding import QuantizedEmbedding
from bitalloc.wrap.layers import QUANTIZED, QuantizedLayer

# Modules whose output is a new tensor that depends on their parameters and one tensor alone. What draws random numbers (dropout), keeps a
# state that the output depends on, or gives a view of its input is not among them.
_SHAREABLE: frozenset[type[nn.Module]] = frozenset(
    {
        *QUANTIZED, *QUANTIZED.values(), nn.Embedding, QuantizedEmbedding,
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh,
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.ZeroPad2d,
    }
)  # fmt: skip


@dataclass(slots=True)
class _Call:
    """A module's call that was computed in the first pass.

    Attributes:
        source: what it was computed from.
        version: of ``source`` at that time.
        output: with the graph of the shared part behind it.
        leaf: the same values without that graph; gathers the gradient over the passes, in float32 where ``output`` is of a half type.
        modified: whether the network writes into what it gets, and so must get a copy.
    """

    source: Tensor
    version: int
    output: Tensor
    leaf: Tensor
    modified: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """A tensor that a pass met, held so that no other one takes its identity, as it was at ``version``.

    Attributes:
        source: the tensor that shared modules compute from in its place.
        call: the call that it is the output of; None for the network's input.
    """

    tensor: Tensor
    version: int
    source: Tensor
    call: _Call | None


@final
class SharedStem:
    """Computes once a step what is the same in all of its passes: the modules between the input and the first layer with a choice.

    A convolution, linear layer, embedding, normalisation, activation or pooling module without a choice, whose input is the very tensor
    that it got in the first pass (one of the batch, or the output of such a module), gives the output that it gave then. Its output is
    a leaf of the graph whose gradient adds up over the passes; one backward pass through the shared part follows the last of them, so
    the gradients are those of computing everything in every pass. Any operation in between that is no such module, such as a
    functional ``relu`` or one that works in place, is done in every pass and ends the shared part. Dropout draws anew in every pass, as
    it does without sharing. Batch norms in the shared part update their running statistics once a step.

    Modules with backward hooks, with a ``forward`` of their own or of a derived class are left as they are.

    Args:
        model: switchable to all candidate widths.
        varying: the quantizers whose width is not the same in all passes.

    Raises:
        TrainingError: (at the end of a step) what a shared module read was written into after it.
    """

    def __init__(self, model: nn.Module, varying: Collection[nn.Module]) -> None:
        self._modules = [module for module in model.modules() if _gives_a_new_tensor(module) and not _varies(module, varying)]
        self._calls: dict[tuple[nn.Module, int], _Call] = {}
        self._inputs: dict[int, _Known] = {}
        self._outputs: dict[int, _Known] = {}
        self._first = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within the block are the passes of one step, each followed by :meth:`end_pass`; their shared backward pass is done at its end."""
        modules = [module for module in self._modules if _as_it_was_made(module)]
        self._first = True
        try:
            for module in modules:
                module.__dict__["forward"] = partial(self._forward, module, module.forward)
            yield
            self._backward()
        finally:
            for module in modules:
                module.__dict__.pop("forward", None)
            for kept in (self._calls, self._inputs, self._outputs):
                kept.clear()

    def end_pass(self) -> None:
        """Says that the next forward pass is at other widths."""
        if self._first:
            for known in self._outputs.values():
                if known.call is not None and known.tensor._version != known.version:
                    known.call.modified = True
        self._first = False
        self._outputs.clear()

    def _backward(self) -> None:
        used = [(call, call.leaf.grad) for call in self._calls.values() if call.leaf.grad is not None]
        # Autograd would notice this, were it not for the hooks in _computed.
        if used and any(call.source._version != call.version for call in self._calls.values() if call.output.requires_grad):
            raise TrainingError(
                "the loss function writes into its batch, so that the passes of a step differ in it: have it make a new tensor, or set "
                "share_stem to false."
            )
        if used:
            torch.autograd.backward([call.output for call, _ in used], [gradient.to(call.output.dtype) for call, gradient in used])

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        source = self._source(args[0]) if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
        if source is None:
            return forward(*args, **kwargs)
        call = self._calls.get((module, id(source)))
        if call is None:
            if not self._first or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            call = self._calls[module, id(source)] = _computed(forward, source)
        return self._handed_out(call)

    def _source(self, x: Tensor) -> Tensor | None:
        """What a shared module computes from where it is called with ``x``; None if ``x`` is not the same in all passes."""
        known = self._outputs.get(id(x)) or self._inputs.get(id(x))
        # What is computed without gradients, by a teacher or in a checkpointed region, is not held for the rest of the step.
        if known is None and self._first and not x.requires_grad and torch.is_grad_enabled():
            known = self._inputs[id(x)] = _Known(x, x._version, x, None)
        return known.source if known is not None and x._version == known.version else None

    def _handed_out(self, call: _Call) -> Tensor:
        # In the first pass a copy, because the network may write into it; later only if it did. To write into a leaf is an error.
        copied = self._first or call.modified or not call.leaf.requires_grad
        out = call.leaf.to(call.output.dtype, copy=copied)
        self._outputs[id(out)] = _Known(out, out._version, call.output, call)
        return out


def _computed(forward: Callable[..., Any], source: Tensor) -> _Call:
    # Hooks around it, of activation checkpointing, would compute the saved tensors again in the first pass's backward pass.
    with saved_tensors_hooks(_unchanged, _unchanged):
        output: Tensor = forward(source)
    leaf = output.detach().to(torch.promote_types(output.dtype, torch.float32))
    return _Call(source, source._version, output, leaf.requires_grad_(output.requires_grad))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _varies(module: nn.Module, varying: Collection[nn.Module]) -> bool:
    quantizers = (module.weight_quantizer, module.input_quantizer) if isinstance(module, QuantizedLayer) else ()
    return any(quantizer in varying for quantizer in quantizers)


def _gives_a_new_tensor(module: nn.Module) -> bool:
    unusual = getattr(module, "inplace", False) or getattr(module, "return_indices", False)  # of activations, of maximum pooling
    return type(module) in _SHAREABLE and not unusual


def _as_it_was_made(module: nn.Module) -> bool:
    return "forward" not in module.__dict__ and not module._backward_hooks and not module._backward_pre_hooks
