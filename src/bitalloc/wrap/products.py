"""The products of a graph: which belong to a layer, under which name, and which do not and why."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bitalloc.wrap.flow import Flow
from bitalloc.wrap.graph import Graph, Node
from bitalloc.wrap.operations import ATTENTION, CONVOLUTIONS, EMBEDDINGS, OTHER_PRODUCTS, PRODUCTS, RECURRENT


@dataclass(frozen=True, slots=True)
class Product:
    """A product of a weight and an activation: one call of a layer.

    Attributes:
        node: where it is computed.
        layer: the layer's name.
        kind: as in :class:`~bitalloc.layers.LayerInfo`.
        input: the value that the layer reads.
        shape: of the weight.
        roots: the parameters and buffers that make the weight.
        macs: multiply-accumulates of the whole batch.
    """

    node: Node
    layer: str
    kind: str
    input: int
    shape: tuple[int, ...]
    roots: frozenset[int]
    macs: int


@dataclass(frozen=True, slots=True)
class Uncounted:
    """A product that belongs to no layer.

    Attributes:
        node: where it is computed.
        what: what it is, in words, and why it is no layer's.
        macs: multiply-accumulates of the whole batch.
    """

    node: Node
    what: str
    macs: int


def find_products(flow: Flow) -> tuple[list[Product], list[Uncounted]]:
    """All products of the graph in the order of execution."""
    counted: list[Product] = []
    uncounted: list[Uncounted] = []
    for node in flow.graph.nodes:
        if not node.results:
            continue
        if node.operation in EMBEDDINGS:
            found = _embedding(flow, node)
        elif node.operation in PRODUCTS:
            found = _product(flow, node)
        elif (what := _other(node.operation)) is not None:
            found = Uncounted(node, what, _other_macs(flow, node))
        else:
            continue
        if isinstance(found, Product):
            counted.append(found)
        elif found is not None:
            uncounted.append(found)
    return counted, uncounted


def _other(operation: str) -> str | None:
    if operation.startswith((ATTENTION, f"_{ATTENTION}")):
        return "attention, products of two activations"
    if operation in RECURRENT:
        return "recurrent layer, which runs as one operation"
    return OTHER_PRODUCTS.get(operation)


def _embedding(flow: Flow, node: Node) -> Product | Uncounted | None:
    weight, indices = node.operand("weight"), node.operand("indices")
    assert weight is not None
    assert indices is not None
    name = _name(flow, node.module, flow.roots.get(weight, frozenset()))
    if name is None:
        return Uncounted(node, "a look-up in a table that is not one parameter", 0)
    return Product(node, name, "embedding", indices, _shape(flow, weight), flow.roots[weight], 0)


def _product(flow: Flow, node: Node) -> Product | Uncounted | None:
    left, right = (node.operand(argument) for argument in PRODUCTS[node.operation])
    assert left is not None
    assert right is not None
    word = "convolution" if node.operation in CONVOLUTIONS else "matrix product"
    macs = product_macs(flow.graph, node)
    candidates = [(weight, other) for weight, other in ((right, left), (left, right)) if weight in flow.fixed]
    if not candidates:
        return Uncounted(node, f"{word} of two activations", macs)
    for weight, other in candidates:
        name = _name(flow, node.module, flow.roots[weight])
        fits = name is not None and len(_shape(flow, weight)) > 1 and (node.operation not in CONVOLUTIONS or weight == right)
        if name is not None and fits and (other not in flow.fixed or _reads_a_constant(flow, name, node.module, other)):
            return Product(node, name, _kind(flow, node, weight, weight == right), other, _shape(flow, weight), flow.roots[weight], macs)
    return Uncounted(node, f"{word}, {_why_not(flow, node, candidates[0][0])}", macs)


def _why_not(flow: Flow, node: Node, weight: int) -> str:
    names = [flow.graph.values[root].names[0] for root in sorted(flow.roots[weight])]
    parameters = [root for root in flow.roots[weight] if flow.graph.values[root].origin == "parameter"]
    if not parameters:
        return f"the weight is the buffer {', '.join(names)}" if names else "the weight is not a parameter"
    if all(value in flow.fixed for value in node.inputs):
        return f"of constants alone ({', '.join(names)})"
    if len(_shape(flow, weight)) < 2:
        return f"the weight is the vector {', '.join(names)}"
    return f"the weight is computed from several parameters ({', '.join(names)})"


def _reads_a_constant(flow: Flow, name: str, module: str, other: int) -> bool:
    """Whether a product of fixed values is a layer that reads a table of constants, rather than a part of computing a weight."""
    own = {owner for root in flow.roots[other] for owner, _ in flow.graph.owners(root)}
    return module not in own and name not in own and name.startswith(module)


def _name(flow: Flow, module: str, roots: Iterable[int]) -> str | None:
    """The name of the layer whose weight has these roots, in a product that ``module`` computes.

    It is that of the module that holds the parameter as ``weight``, else the parameter's own. A module's own weight may be computed
    from several of its parameters, as in weight normalisation.
    """
    graph = flow.graph
    owners = {root: list(graph.owners(root)) for root in roots}
    parameters = [root for root in owners if graph.values[root].origin == "parameter"]
    if not parameters:
        return None
    if all(any(owner == module for owner, _ in found) for found in owners.values()) and any(
        (module, "weight") in owners[root] for root in parameters
    ):
        return module
    tensors = dict.fromkeys(next((found for found in owners[root] if found[0] == module), owners[root][0]) for root in parameters)
    if len(tensors) != 1:
        return None
    ((owner, attribute),) = tensors
    if attribute == "weight":
        return owner
    return f"{owner}.{attribute}" if owner else attribute


def _shape(flow: Flow, weight: int) -> tuple[int, ...]:
    """The shape of the parameter that a weight is or is computed from, element by element; else that of what was computed."""
    values = flow.graph.values
    computed = values[flow.base[weight]]
    same_size = (values[root].shape for root in sorted(flow.roots[weight]) if values[root].numel == computed.numel)
    return next(same_size, computed.shape)


def _kind(flow: Flow, node: Node, weight: int, on_the_right: bool) -> str:
    shape = _shape(flow, weight)
    if node.operation in CONVOLUTIONS:
        transposed = "_transpose" if node.options.get("transposed") else ""
        return f"conv{transposed}{len(shape) - 2}d"
    if len(shape) > 2:
        return "matmul"
    operand, base = flow.graph.values[weight], flow.graph.values[flow.base[weight]]
    summed = -2 if on_the_right and len(operand.shape) > 1 else -1
    size = operand.shape[summed]
    if (size == shape[-1]) != (size == shape[-2]):
        return "linear" if size == shape[-1] else "matmul"
    return "linear" if operand.stride[summed] == base.stride[-1] else "matmul"


def product_macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a product, the bias not counted; positions in a convolution's zero padding are, as is usual."""
    left, right = (node.operand(argument) for argument in PRODUCTS[node.operation])
    assert left is not None
    assert right is not None
    one, other = graph.values[left], graph.values[right]
    if node.operation in CONVOLUTIONS:
        elements = one.numel if node.options.get("transposed") else graph.values[node.results[0]].numel
        return elements * math.prod(other.shape[1:])
    return one.numel * (other.shape[-1] if len(other.shape) > 1 else 1)


def _other_macs(flow: Flow, node: Node) -> int:
    values = flow.graph.values
    query, key, value = (node.operand(argument) for argument in ("query", "key", "value"))
    if query is not None and key is not None and value is not None:
        rows = math.prod(values[query].shape[:-1])
        return rows * values[key].shape[-2] * (values[query].shape[-1] + values[value].shape[-1])
    first = values[node.inputs[0]]
    weights = [index for index in node.inputs[1:] if flow.roots.get(index)]
    matrices = [values[index].shape for index in weights if len(values[index].shape) > 1]
    if node.operation == "deform_conv2d":
        return values[node.results[0]].numel * sum(math.prod(shape[1:]) for shape in matrices[:1])
    return math.prod(first.shape[:-1]) * sum(math.prod(shape) for shape in matrices)
