"""An ONNX file in quantize-dequantize form, from a deployed model."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitalloc import files
from bitalloc.errors import ExportError, MissingDependencyError
from bitalloc.export.exact import scale_after_convolution
from bitalloc.export.ops import OPSET, translations
from bitalloc.files import AnyPath
from bitalloc.placement import module_device, to_device
from bitalloc.policy import FLOAT
from bitalloc.quantizers import Quantizer
from bitalloc.wrap import quantized_layers
from bitalloc.wrap.describe import arguments_of

IR_VERSION = 10
"""Version of the file format: the one that belongs to operator set 21. Newer ones are refused by runtimes of a year ago."""
LIMIT = 2**31 - 1
"""A protocol buffer cannot be larger."""
INSTALL = "pip install 'bitalloc[onnx]'"


def export_onnx(model: nn.Module, example: Any, path: AnyPath, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a deployed model as ONNX, operator set 21, IR version 10, with a free batch size.

    Weights are INT8 tensors in front of DequantizeLinear, biases INT32 tensors with the scale ``input step * weight scale``,
    activations QuantizeLinear to UINT8, Clip below 8 bits, DequantizeLinear: the form that runtimes turn into integer kernels.
    The input is called ``input`` (``input_0``, ``input_1``... if there are several; keyword arguments keep their names) and the output
    ``output``.

    Args:
        model: ``deploy(...).model``.
        example: inputs, the batch in the first dimension; a tensor, a tuple or list of positional arguments, or a mapping of keyword
            arguments.
        path: the file; it is replaced in one step, and left as it was if anything fails.
        metadata: texts to keep in the file, for example the policy as JSON.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        ExportError: the model has quantizers, cannot be traced, needs a fixed batch size, or is too large for one file.
        DescribeError: the example is no tensor, tuple, list or mapping.
        FileError: the file cannot be written.
    """
    active = [
        name
        for name, layer in quantized_layers(model).items()
        if any(isinstance(side, Quantizer) and side.bits != FLOAT for side in (layer.weight_quantizer, layer.input_quantizer))
    ]
    if active:
        raise ExportError(f"layer {active[0]} still has quantizers: export deploy(model, example, producers).model.")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"writing ONNX needs {error.name}, which is not installed: {INSTALL}") from error
    args, kwargs = to_device(arguments_of(example), module_device(model))
    with files.replacing(path) as temporary:  # opened first, so that a folder that cannot be written costs no waiting
        content = _program(model.eval(), *_at_least_two(args, kwargs)).model_proto
        _strip(content, metadata or {})
        scale_after_convolution(content)
        _add_zero_points(content)
        if content.ByteSize() > LIMIT:
            raise ExportError(f"{path}: the model has {content.ByteSize()} bytes, more than the {LIMIT} that one ONNX file can hold.")
        temporary.write_bytes(content.SerializeToString())
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{type(model).__name__} gives an invalid ONNX graph, so {path} was not written: {error}") from error


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = torch.export.Dim("batch", min=1)
    names = list(kwargs) or (["input"] if len(args) == 1 else [f"input_{index}" for index in range(len(args))])
    sizes = [{0: batch} if isinstance(value, Tensor) else None for value in (*args, *kwargs.values())]
    try:
        with _quiet(), torch.no_grad():
            # Traced here, because torch.onnx.export would fall back to a fixed batch size without a word.
            traced = torch.export.export(
                model,
                args,
                kwargs,
                dynamic_shapes=dict(zip(kwargs, sizes, strict=True)) if kwargs else tuple(sizes),
                strict=False,
            )
            return torch.onnx.export(
                traced,
                input_names=names,
                output_names=["output"],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:  # the exporter raises whatever the model's own code, or a translation, raised
        cause = error.__cause__ or error
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ExportError(
            f"{type(model).__name__} cannot be exported to ONNX with a free batch size ({type(cause).__name__}: {reason}). "
            "Python control flow on tensor values and fixed batch sizes in forward() are the usual causes."
        ) from error


def _strip(model: Any, metadata: Mapping[str, str]) -> None:
    """Takes out the exporter's notes, which name source files and take more room than small weights, and sets ours."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "bitalloc", "", ""
    graphs = [model.graph, *model.functions]
    for holder in (model, *graphs, *(node for graph in graphs for node in graph.node)):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    for key, text in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text


def _add_zero_points(model: Any) -> None:
    """Gives every weight zero points of its own, all 0.

    ONNX lets a file leave them out, but ONNX Runtime 1.31 then makes no integer kernel of a linear layer; and its option
    ``session.x64quantprecision`` fails where two weights share them, as the exporter would have it.
    """
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == TensorProto.INT8 and len(node.input) == 2:
            zeros = np.zeros(tuple(tensors[node.input[1]].dims), np.int8)
            model.graph.initializer.append(numpy_helper.from_array(zeros, f"{weight.name}.zeros.{index}"))
            node.input.append(f"{weight.name}.zeros.{index}")


def _at_least_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a batch of two at least: a batch of one would be taken for a fixed size."""

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1 else value

    return tuple(map(doubled, args)), {name: doubled(value) for name, value in kwargs.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's own deprecation warnings and log lines from the user; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
