"""Sign and initial step size of every activation quantizer, from data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitalloc.errors import QuantizerError
from bitalloc.placement import module_device, to_device
from bitalloc.policy import FLOAT
from bitalloc.quantizers import InputLSQ
from bitalloc.wrap.functional import layers_of
from bitalloc.wrap.layers import QuantizedLayer


def run_on_inputs(model: nn.Module, batch: Any) -> Any:
    """Runs a model on a batch in the default way.

    That is ``model(**batch)`` for a mapping, ``model(batch[0])`` for a tuple or list (inputs first, then labels), else ``model(batch)``.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0]) if isinstance(batch, tuple | list) else model(batch)


def calibrate(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None) -> None:
    """Initialises the activation quantizers of ``model`` in place; nothing else of it changes.

    All layers run in floating point meanwhile, in eval mode and without gradients, so the result does not depend on widths.

    Args:
        model: a quantized model.
        batches: a few batches; they are moved to the model's device.
        forward: ``forward(model, batch)``; default :func:`run_on_inputs`. A ``loss_fn(model, batch)`` serves as well.

    Raises:
        QuantizerError: there is no batch, a layer is not reached, or its input is not finite.
    """
    layers = list(layers_of(model).values())
    # One that several layers share observes at each of them. Embeddings read no activation.
    inputs = list(dict.fromkeys(layer.input_quantizer for layer in layers if layer.input_quantizer.widths))
    with _observing(model, layers, inputs):
        if _run(model, batches, forward or run_on_inputs) == 0:
            raise QuantizerError("there is no calibration batch: pass at least one (an exhausted iterator gives none).")
        for quantizer in inputs:
            quantizer.initialise()


@contextmanager
def _observing(model: nn.Module, layers: Sequence[QuantizedLayer], inputs: Sequence[InputLSQ]) -> Iterator[None]:
    weight_bits = [layer.weight_quantizer.bits for layer in layers]
    modes = {module: module.training for module in model.modules()}
    try:
        for layer in layers:
            layer.weight_quantizer.switch(FLOAT)
        for quantizer in inputs:
            quantizer.observe()
        model.eval()
        yield
    finally:
        for layer, bits in zip(layers, weight_bits, strict=True):
            layer.weight_quantizer.switch(bits)
        for quantizer in inputs:
            quantizer.forget()
        for module, training in modes.items():
            module.training = training


def _run(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> int:
    count = 0
    with torch.no_grad():
        for batch in batches:
            forward(model, to_device(batch, module_device(model)))
            count += 1
    return count
