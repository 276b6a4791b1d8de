"""Describes a model from one forward pass on an example input: its layers, and all that is not counted."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitalloc.errors import DescribeError
from bitalloc.layers import Description, LayerInfo, NotCounted
from bitalloc.placement import module_device, to_device
from bitalloc.wrap.kinds import KINDS, kind_of, macs, spatial_dims
from bitalloc.wrap.trace import BATCH_NORMS, Call, Trace, run_traced, tensors_in

_NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_HOLDERS = (nn.ParameterList, nn.ParameterDict)
_REASONS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_NORMS, "normalisation, folded or kept in floating point"),
    ((nn.Embedding, nn.EmbeddingBag), "a table look-up, kept in floating point"),
)


def describe(model: nn.Module, example_inputs: Any) -> Description:
    """The layers of ``model`` with multiply-accumulates and sizes, counted on the real shapes of one forward pass.

    The pass runs in evaluation mode without gradients; training flags, buffers and hooks are afterwards as they were. It
    works on the ``meta`` device too, where it costs no arithmetic. A module under several names is one layer, under its
    first name, with its calls added up.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments. The first
            dimension of the first tensor in it is the batch size; counts are per sample, totals divided by it. They are moved to
            the model's device.

    Raises:
        DescribeError: the forward pass fails, a count does not divide by the batch size, or no layer is quantizable.
    """
    args, kwargs = to_device(_arguments(example_inputs), module_device(model))
    inputs = list(tensors_in((args, kwargs)))
    batch = _batch_size(inputs)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise DescribeError(f"the parameter {lazy[0]} is not initialised yet: run the model once before describing it.")
    try:
        trace, output = run_traced(model, args, kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise DescribeError(
            f"the forward pass of {type(model).__name__} failed on the example input of shape {shapes}: "
            f"{type(error).__name__}: {error}. Give an example input that the model accepts."
        ) from error
    if not trace.calls:
        supported = ", ".join(kind.__name__ for kind in KINDS)
        raise DescribeError(
            f"{type(model).__name__} has no quantizable layer: the forward pass called none of {supported} (exact types, not subclasses)."
        )
    modules = dict(model.named_modules())
    names = list(dict.fromkeys(call.name for call in trace.calls))
    return Description(
        layers=tuple(_count(name, modules[name], [call for call in trace.calls if call.name == name], batch) for name in names),
        not_counted=_not_counted(modules, trace),
        producers=trace.producers,
        first=_first(trace.calls, inputs),
        last=_last(trace.calls, list(tensors_in(output))),
    )


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    kind = type(example).__name__
    raise DescribeError(f"the example input is a {kind}, expected a tensor, a tuple or list of arguments, or a dict of keyword arguments.")


def _batch_size(inputs: list[Tensor]) -> int:
    if not inputs:
        raise DescribeError("the example input holds no tensor: give at least one, with the batch as its first dimension.")
    if inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        raise DescribeError(f"the example input has shape {tuple(inputs[0].shape)}, expected a batch of at least one sample.")
    return inputs[0].shape[0]


def _count(name: str, module: nn.Module, calls: list[Call], batch: int) -> LayerInfo:
    kind = kind_of(module)
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert kind is not None  # only supported layers are in the trace
    assert weight is not None
    shape = tuple(weight.shape)
    spatial = spatial_dims(kind)
    if batch > 1 and spatial is not None and any(call.input.dim() <= spatial + 1 for call in calls):
        raise DescribeError(
            f"layer {name} was called without a batch dimension (input shape {tuple(calls[0].input.shape)}): "
            "give an example input whose first dimension is a batch of one."
        )
    totals = {
        "macs": sum(macs(kind, shape, call.input.numel(), call.output.numel()) for call in calls),
        "input_numel": sum(call.input.numel() for call in calls),
        "output_numel": sum(call.output.numel() for call in calls),
    }
    for what, total in totals.items():
        if total % batch:
            raise DescribeError(
                f"layer {name}: {what} is {total} in total, which does not divide by the batch size {batch}; "
                "give an example input with a batch of one."
            )
    return LayerInfo(
        name=name,
        kind=kind,
        weight_shape=shape,
        macs=totals["macs"] // batch,
        input_numel=totals["input_numel"] // batch,
        output_numel=totals["output_numel"] // batch,
        groups=int(getattr(module, "groups", 1)),
        bias_numel=0 if bias is None else bias.numel(),
        calls=len(calls),
    )


def _not_counted(modules: Mapping[str, nn.Module], trace: Trace) -> tuple[NotCounted, ...]:
    counted = {call.name for call in trace.calls}
    found = []
    for name, module in modules.items():
        reason = None if name in counted else _why_not(module, name in trace.called)
        reasons = [reason] if reason else []
        if name in trace.products:
            reasons.append(f"computes outside of a counted layer: {', '.join(sorted(trace.products[name]))}")
        if reasons:
            found.append(NotCounted(name, type(module).__name__, "; ".join(reasons)))
    return tuple(found)


def _why_not(module: nn.Module, called: bool) -> str | None:
    """Why a module that is not counted is not, None for one that holds no parameters."""
    base = next((kind for kind in KINDS if isinstance(module, kind)), None)
    held = [name for name, parameter in module._parameters.items() if parameter is not None]
    if not held and base is None:
        return None
    if not called and not isinstance(module, _HOLDERS):
        return "never called on the example input"
    if base is type(module):
        return "its weight is recomputed before every call (weight normalisation or pruning): make it a plain parameter first"
    if base is not None:
        return f"a subclass of {base.__name__}, which may compute something else: only exact types are counted"
    known = next((reason for types, reason in _REASONS if isinstance(module, types)), None)
    return known or f"holds parameters ({', '.join(held)}) in a type that is not supported, kept in floating point"


def _first(calls: list[Call], inputs: list[Tensor]) -> tuple[str, ...]:
    reading = dict.fromkeys(call.name for call in calls if any(call.input is tensor for tensor in inputs))
    return tuple(reading) or (calls[0].name,)


def _last(calls: list[Call], outputs: list[Tensor]) -> tuple[str, ...]:
    giving = dict.fromkeys(call.name for call in calls if any(call.output is tensor for tensor in outputs))
    if not giving:  # a view of the layer's output, such as a flatten; on the meta device every address is 0
        giving = dict.fromkeys(call.name for call in calls if any(_same_memory(call.output, tensor) for tensor in outputs))
    return tuple(giving) or (calls[-1].name,)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() != 0 and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
