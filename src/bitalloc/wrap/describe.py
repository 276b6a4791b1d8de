"""Describes a model from its graph: layers, activation sites, where they meet, and all that is not counted."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitalloc.errors import DescribeError
from bitalloc.layers import Description
from bitalloc.placement import module_device, to_device
from bitalloc.wrap.counting import count_layers, output_of
from bitalloc.wrap.flow import Flow
from bitalloc.wrap.graph import Graph
from bitalloc.wrap.left_out import not_counted
from bitalloc.wrap.operations import BATCH_NORM_OPERATIONS
from bitalloc.wrap.patterns import find_groups
from bitalloc.wrap.products import Product, find_products
from bitalloc.wrap.replay import export_model
from bitalloc.wrap.sites import Sites
from bitalloc.wrap.trace import record_forward, tensors_in
from bitalloc.wrap.units import find_units


def describe(model: nn.Module, example_inputs: Any, *, graph: Literal["trace", "export"] = "trace") -> Description:
    """The layers of ``model`` with multiply-accumulates and sizes, and the graph between them, on real shapes.

    The graph is that of one forward pass in evaluation mode without gradients; training flags, parameters, buffers and hooks are
    afterwards as they were. It works on the ``meta`` device too, where it costs no arithmetic.

    A layer is a product of an activation with a parameter, in whatever module or function it is computed: also in a subclass, with
    a parametrised weight or in functional code. It bears the name of the module that holds the parameter as ``weight``, else the
    name of the parameter. A module under several names is one layer, under its first name, with its calls added up. What is left out is
    listed with the reason and its multiply-accumulates, so that nothing is lost: attention scores, recurrent layers, weights made of
    several parameters.

    Where the graph comes from: ``trace``, the default, records the operations as they run, which works on every model that runs,
    with any control flow and any argument. ``export`` goes through ``torch.export``, which finds the same but refuses some models and
    takes longer; it is there for exported programmes, see
    :func:`~bitalloc.wrap.exported.describe_exported`. ``torch.fx`` traces no model that these two do not.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments. The first
            dimension of the first tensor in it is the batch size; counts are per sample, totals divided by it. A list of images of three
            dimensions as the first argument, which detection models read, is a batch of that many. They are moved to the model's device.
        graph: how the graph is read.

    Raises:
        DescribeError: the forward pass or the export fails, a count does not divide by the batch size, or there is no layer.
    """
    args, kwargs = to_device(arguments_of(example_inputs), module_device(model))
    inputs = list(tensors_in((args, kwargs)))
    batch = batch_size(inputs, args)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise DescribeError(f"the parameter {lazy[0]} is not initialised yet: run the model once before describing it.")
    try:
        found = record_forward(model, args, kwargs) if graph == "trace" else export_model(model, args, kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        step = "forward pass" if graph == "trace" else "export"
        remedy = "Give an example input that the model accepts." if graph == "trace" else 'Or describe it with graph="trace".'
        raise DescribeError(
            f"the {step} of {type(model).__name__} failed on the example input of shape {shapes}: {type(error).__name__}: {error}. {remedy}"
        ) from error
    return description_of(found, batch, type(model).__name__)


def description_of(graph: Graph, batch: int, model: str) -> Description:
    """What a graph says of a model; ``batch`` samples went through it, ``model`` names it in errors."""
    flow = Flow(graph)
    products, uncounted = find_products(flow)
    if not products:
        raise DescribeError(
            f"{model} has no quantizable layer: the forward pass multiplied no parameter with an activation and looked none up in a table."
        )
    units = find_units(flow, products)
    sites = Sites(flow, units, products, batch)
    label = sites.representatives()
    reads = {product.layer: label[sites.read_by(product)] for product in products if product.kind != "embedding"}
    return Description(
        layers=count_layers(flow, products, reads, batch),
        not_counted=not_counted(flow, products, uncounted, batch),
        producers=_producers(flow, products),
        first=_first(flow, products),
        last=_last(flow, products),
        sites=sites.sites(),
        meetings=sites.meetings(),
        groups=find_groups(flow, units, products),
        graph=graph.source,
    )


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what a user gives as an example."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    kind = type(example).__name__
    raise DescribeError(f"the example input is a {kind}, expected a tensor, a tuple or list of arguments, or a dict of keyword arguments.")


def batch_size(inputs: list[Tensor], args: tuple[Any, ...]) -> int:
    """How many samples the example holds."""
    if not inputs:
        raise DescribeError("the example input holds no tensor: give at least one, with the batch as its first dimension.")
    if args and isinstance(args[0], list | tuple) and args[0] and all(isinstance(item, Tensor) and item.dim() == 3 for item in args[0]):
        return len(args[0])
    if inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        raise DescribeError(f"the example input has shape {tuple(inputs[0].shape)}, expected a batch of at least one sample.")
    return inputs[0].shape[0]


def _producers(flow: Flow, products: list[Product]) -> dict[str, str]:
    layers = [product for product in products if product.kind != "embedding"]
    gives = {output_of(flow, product): product.layer for product in layers}
    order = {id(node): index for index, node in enumerate(flow.graph.nodes)}
    producers: dict[str, str] = {}
    for node in flow.steps:
        facts = flow.graph.modules.get(node.module)
        norm = node.operation in BATCH_NORM_OPERATIONS and facts is not None and facts.batch_norm
        if norm and node.module not in producers:
            before = [product.layer for product in layers if order[id(product.node)] < order[id(node)]]
            layer = gives.get(flow.base[node.inputs[0]], before[-1] if before else None)
            if layer is not None:
                producers[node.module] = layer
    return producers


def _first(flow: Flow, products: list[Product]) -> tuple[str, ...]:
    inputs = {flow.base[value] for value in flow.graph.inputs}
    reading = dict.fromkeys(product.layer for product in products if flow.base[product.input] in inputs)
    return tuple(reading) or (products[0].layer,)


def _last(flow: Flow, products: list[Product]) -> tuple[str, ...]:
    giving = dict.fromkeys(product.layer for product in products if output_of(flow, product) in flow.outputs)
    return tuple(giving) or (products[-1].layer,)
