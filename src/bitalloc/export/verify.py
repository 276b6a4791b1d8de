"""Reading an exported file back with an independent runtime, and comparing it with PyTorch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.errors import ExportError, MissingDependencyError
from bitalloc.files import AnyPath
from bitalloc.placement import module_device, to_device
from bitalloc.wrap import run_on_inputs
from bitalloc.wrap.trace import tensors_in

INSTALL = "pip install 'bitalloc[onnx]'"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the runtime agrees with PyTorch.

    Attributes:
        images: number of samples compared.
        agreement: share of the predictions (largest logit, classes in dimension 1) that are equal, 0 to 1.
        max_abs_diff: largest absolute difference of two logits.
    """

    images: int
    agreement: float
    max_abs_diff: float


def require_onnx() -> None:
    """Raises MissingDependencyError unless everything is installed that writing and reading back ONNX needs."""
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(f"exporting to ONNX needs {', '.join(missing)}, which is not installed: {INSTALL}")


def onnx_session(path: AnyPath, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU, with the default optimisations.

    One option is set where it works: ``session.x64quantprecision``. Without it, x86 processors that lack the VNNI instructions add pairs of
    products in 16 bits, which saturate where both weights and input have 8 bits: logits were off by 3 to 50 % in our tests on such
    a processor, and equal with the option. It costs speed on those processors and does nothing on others. Set it wherever
    the file is deployed.

    Args:
        path: the ONNX file.
        threads: threads inside an operation; 0 leaves it to the runtime.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ExportError: the file is missing, damaged, or refused by the runtime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"reading ONNX back needs onnxruntime, which is not installed: {INSTALL}") from error
    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist: export the model first.")
    failure = Exception()
    for precise in (True, False):  # the option itself fails on some files, for example where one weight is used twice
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors come as exceptions
        if precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common base
            failure = error
    raise ExportError(f"{path} cannot be loaded by ONNX Runtime ({_first_line(failure)}): it is damaged. Export it again.") from failure


def verify_onnx(path: AnyPath, model: nn.Module, loader: Iterable[Any], threads: int = 0) -> Agreement:
    """Runs the file in ONNX Runtime and the deployed model in PyTorch on the same data, and compares logits.

    Args:
        path: the ONNX file, of :func:`~bitalloc.export.export_onnx`.
        model: the deployed model that it was made from; its mode is left as it is.
        loader: batches whose first element is the input tensor, for example ``(inputs, labels)``, or mappings of keyword arguments, of
            which those are taken that the file reads.
        threads: threads of the runtime inside an operation; 0 leaves it to the runtime.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ExportError: the file cannot be loaded or run, the loader is empty, or a logit is not finite.
    """
    session = onnx_session(path, threads)
    training = model.training
    model.eval()
    images, predictions, equal, largest = 0, 0, 0, 0.0
    try:
        for batch in loader:
            inputs = _inputs(session, path, batch)
            expected, found = _torch_logits(model, inputs), _onnx_logits(session, path, inputs)
            if expected.shape != found.shape:
                raise ExportError(f"{path} gives logits of shape {tuple(found.shape)}, the model {tuple(expected.shape)}: another model?")
            if expected.numel() == 0:
                continue
            images += len(expected)
            same = expected.argmax(1) == found.argmax(1)
            predictions, equal = predictions + same.numel(), equal + int(same.sum())
            difference = float((expected - found).abs().max())
            if not math.isfinite(difference):
                raise ExportError(f"{path}: a logit is not finite, so nothing can be compared; check the model's weights.")
            largest = max(largest, difference)
    finally:
        model.train(training)
    if images == 0:
        raise ExportError(f"{path} cannot be verified: the loader gave no image.")
    return Agreement(images, equal / predictions, largest)


def _inputs(session: Any, path: AnyPath, batch: Any) -> Tensor | dict[str, Tensor]:
    if not isinstance(batch, Mapping):
        tensor: Tensor = batch[0]
        return tensor
    names = [entry.name for entry in session.get_inputs()]
    missing = [name for name in names if name not in batch]
    if missing:
        raise ExportError(
            f"{path} reads {', '.join(names)}, and the batch has only {', '.join(map(str, batch))}: add {', '.join(missing)}."
        )
    return {name: batch[name] for name in names}


def _torch_logits(model: nn.Module, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out = run_on_inputs(model, to_device(inputs, module_device(model)))
    logits: Tensor = next(tensors_in(out))
    return logits.float().cpu()


def _onnx_logits(session: Any, path: AnyPath, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    named = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    try:
        (out, *_) = session.run(None, {name: tensor.detach().cpu().numpy() for name, tensor in named.items()})
    except Exception as error:  # the runtime's errors have no common base
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in named.values())
        raise ExportError(f"{path} cannot be run on a batch of shape {shapes} ({_first_line(error)}).") from error
    return torch.from_numpy(out).float()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
