"""The independent count: PyTorch's own FLOP counter, two operations a multiply-accumulate."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.compatibility.cases import call


@dataclass(frozen=True, slots=True)
class Count:
    """Multiply-accumulates of one forward pass of the whole batch.

    Attributes:
        total: of the model.
        of_module: by the innermost module in which the product runs, ``""`` for the model itself.
        of_parameter: of the products one of whose operands is a parameter or a view of it, by the parameter's name.
        batch: samples in the batch.
    """

    total: int
    of_module: Mapping[str, int]
    of_parameter: Mapping[str, int]
    batch: int


def count(model: nn.Module, inputs: Any) -> Count:
    """Counts with ``torch.utils.flop_counter``; which module and which parameter a product belongs to is noted beside it.

    Attention is computed by its plain formula meanwhile: the fused kernels of the CPU have no formula in PyTorch's table.
    """
    counter, watch = FlopCounterMode(display=False), _Watch(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, watch:  # with gradients: without, the counter fails on a parameter as an input
            call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        watch.remove()
    return Count(counter.get_total_flops() // 2, dict(watch.of_module), dict(watch.of_parameter), batch_size(inputs))


def batch_size(inputs: Any) -> int:
    """Samples in an example input: the length of the first tensor, or of a list of images."""
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0] if isinstance(inputs, tuple) else inputs
    return len(first)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of_module: Counter[str] = Counter()
        self.of_parameter: Counter[str] = Counter()
        self._parameters = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()}
        self._stack: list[str] = []
        self._hooks = []
        for name, module in model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and (whole := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
            return whole
        out = func(*args, **(kwargs or {}))
        if formula is not None:
            product = formula(*args, **(kwargs or {}), out_val=out) // 2
            self.of_module[self._stack[-1] if self._stack else ""] += product
            held = [self._parameters.get(t.untyped_storage().data_ptr()) for t in args[:3] if isinstance(t, Tensor) and t.dim() > 1]
            if name := next((name for name in held if name), None):
                self.of_parameter[name] += product
        return out
