"""Sign and initial step size of every activation quantizer, from data."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitalloc.errors import QuantizerError, TrainingError
from bitalloc.placement import module_device, to_device
from bitalloc.policy import FLOAT
from bitalloc.quantizers import InputLSQ
from bitalloc.wrap.functional import layers_of
from bitalloc.wrap.layers import QuantizedLayer


def run_on_inputs(model: nn.Module, batch: Any) -> Any:
    """Runs a model on a batch in the default way.

    That is ``model(**batch)`` for a mapping, ``model(batch[0])`` for a tuple or list (inputs first, then labels), else ``model(batch)``.

    Raises:
        TrainingError: a mapping has keys that the model does not take, such as labels, or not all that it needs.
    """
    if isinstance(batch, Mapping):
        try:
            return model(**batch)
        except TypeError as error:
            if _takes(model, batch):
                raise
            raise TrainingError(
                f"a batch has the keys {', '.join(map(str, batch))}, which {type(model).__name__}.forward does not take ({error}): give a "
                "function forward(model, batch) that runs the model on such a batch."
            ) from error
    return model(batch[0]) if isinstance(batch, tuple | list) else model(batch)


def _takes(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(**batch)
    except TypeError:
        return False
    return True


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
