"""Layers that a runtime would run as one: the projections of an attention, depthwise followed by pointwise convolution."""

from collections.abc import Iterator, Sequence

from bitalloc.layers import Group
from bitalloc.wrap.flow import Flow
from bitalloc.wrap.graph import Node
from bitalloc.wrap.operations import ADDITIONS, ARITHMETIC, ATTENTION, CONCATENATIONS, CONVOLUTIONS, PRODUCTS, words
from bitalloc.wrap.products import Product
from bitalloc.wrap.unit import Unit

_SOFTMAX = frozenset({"_softmax", "_safe_softmax", "softmax"})
_ON_THE_WAY = (
    ADDITIONS
    | ARITHMETIC
    | CONCATENATIONS
    | words(
        "neg pow sqrt rsqrt reciprocal mean sum linalg_vector_norm norm clamp clamp_min native_layer_norm native_group_norm  "
        "_fused_rms_norm native_batch_norm where masked_fill maximum minimum tanh update _to_copy index_put"
    )
)
"""What may stand between a projection and its attention: norms of queries and keys, rotary positions, scales, masks."""


def find_groups(flow: Flow, units: Sequence[Unit], products: Sequence[Product]) -> tuple[Group, ...]:
    """The groups in the order of their first layers."""
    order = {name: index for index, name in enumerate(dict.fromkeys(product.layer for product in products))}
    found = [*_projections(flow, products, order), *_depthwise_pointwise(flow, units, products)]
    return tuple(sorted(dict.fromkeys(found), key=lambda group: order[group.layers[0]]))


def _projections(flow: Flow, products: Sequence[Product], order: dict[str, int]) -> Iterator[Group]:
    layers = {id(product.node): product for product in products if product.kind in ("linear", "matmul")}
    counted = {id(product.node) for product in products}
    for sides in _attentions(flow, counted):
        reading: dict[int, list[str]] = {}
        for side in sides:
            behind = [layers.get(id(node)) for node in _behind(flow, side)]
            if len(behind) == 1 and behind[0] is not None:
                reading.setdefault(flow.base[behind[0].input], []).append(behind[0].layer)
        for names in reading.values():
            distinct = sorted(set(names), key=order.__getitem__)
            if len(distinct) > 1:
                yield Group("qkv", tuple(distinct))


def _attentions(flow: Flow, counted: set[int]) -> Iterator[tuple[int, ...]]:
    """The queries, keys and values of every attention."""
    for node in flow.steps:
        if ATTENTION in node.operation:
            yield tuple(value for name in ("query", "key", "value") if (value := node.operand(name)) is not None)
        elif node.operation in PRODUCTS and id(node) not in counted:
            for value in node.inputs:
                softmaxes = [before for before in _behind(flow, value) if before.operation in _SOFTMAX]
                scores = [before for softmax in softmaxes for before in _behind(flow, softmax.inputs[0])]
                sides = [side for before in scores if before.operation in PRODUCTS and id(before) not in counted for side in before.inputs]
                if sides:
                    yield (*sides, *(other for other in node.inputs if other != value))


def _behind(flow: Flow, value: int) -> list[Node]:
    """The steps that a value comes from, with what may stand on the way left out."""
    found: dict[int, Node] = {}
    seen: set[int] = set()
    waiting = [flow.base[value]]
    while waiting:
        base = waiting.pop()
        node = flow.maker.get(base)
        if base in seen or base in flow.fixed or node is None:
            continue
        seen.add(base)
        if node.operation in _ON_THE_WAY:
            waiting.extend(flow.moving(node))
        else:
            found[id(node)] = node
    return list(found.values())


def _depthwise_pointwise(flow: Flow, units: Sequence[Unit], products: Sequence[Product]) -> Iterator[Group]:
    by_node = {id(product.node): product for product in products}
    readers: dict[int, list[Unit]] = {}
    for unit in units:
        for base in unit.reads:
            readers.setdefault(base, []).append(unit)
    for unit in units:
        depthwise = by_node.get(id(unit.nodes[0]))
        after = readers.get(unit.result, [])
        if depthwise is None or len(after) != 1 or unit.result in flow.outputs:
            continue
        pointwise = by_node.get(id(after[0].nodes[0]))
        if pointwise is not None and _is_depthwise(depthwise) and _is_pointwise(pointwise):
            yield Group("depthwise-pointwise", (depthwise.layer, pointwise.layer))


def _is_depthwise(product: Product) -> bool:
    groups = product.node.options.get("groups", 1)
    return product.node.operation in CONVOLUTIONS and groups > 1 and product.shape[1] == 1 and not product.node.options.get("transposed")


def _is_pointwise(product: Product) -> bool:
    convolution = product.node.operation in CONVOLUTIONS and product.node.options.get("groups", 1) == 1
    return convolution and not product.node.options.get("transposed") and all(size == 1 for size in product.shape[2:])
