"""The numbers of every layer, from the products that are its calls."""

from collections.abc import Mapping, Sequence

from bitalloc.errors import DescribeError
from bitalloc.layers import LayerInfo
from bitalloc.wrap.flow import Flow
from bitalloc.wrap.operations import CONVOLUTIONS
from bitalloc.wrap.products import Product
from bitalloc.wrap.units import is_constant_arithmetic


def count_layers(flow: Flow, products: Sequence[Product], sites: Mapping[str, str], batch: int) -> tuple[LayerInfo, ...]:
    """The layers in the order of their first call.

    Args:
        flow: of the graph.
        products: all calls of all layers.
        sites: name of a layer to the site that it reads.
        batch: samples in the example; counts of what reads a constant are the same for any.

    Raises:
        DescribeError: a count does not divide by the batch size, or a convolution was called without a batch.
    """
    calls: dict[str, list[Product]] = {}
    for product in products:
        calls.setdefault(product.layer, []).append(product)
    holders: dict[frozenset[int], str] = {}
    layers = []
    for name, own in calls.items():
        holder = holders.setdefault(own[0].roots, name)
        layers.append(_count(flow, name, own, sites.get(name, ""), holder if holder != name else "", batch))
    return tuple(layers)


def output_of(flow: Flow, product: Product) -> int:
    """The base of what one call of a layer gives: its product, with the bias where that is added on its own."""
    added = _bias_step(flow, product)
    return product.node.results[0] if added is None else added


def _bias_step(flow: Flow, product: Product) -> int | None:
    readers = flow.readers.get(product.node.results[0], ())
    if len(readers) != 1 or product.node.results[0] in flow.outputs:
        return None
    (node,) = readers
    own = (node.module, node.call) == (product.node.module, product.node.call)
    return node.results[0] if own and node.operation == "add" and is_constant_arithmetic(node, flow) else None


def _bias_numel(flow: Flow, product: Product) -> int:
    node = product.node
    bias = node.operand("bias") if node.operation in CONVOLUTIONS else node.operand("self") if node.operation == "addmm" else None
    added = _bias_step(flow, product)
    if bias is None and added is not None and product.kind != "embedding":
        bias = next(value for value in flow.maker[added].inputs if value in flow.fixed)
    return flow.graph.values[bias].numel if bias is not None and flow.roots.get(bias) else 0


def _count(flow: Flow, name: str, calls: Sequence[Product], site: str, holder: str, batch: int) -> LayerInfo:
    values = flow.graph.values
    number = len(calls)
    # A table that is multiplied with as well, as tied embeddings are, is a layer that reads activations.
    calls = [call for call in calls if call.kind != "embedding"] or calls
    first = calls[0]
    if batch > 1 and any(_without_batch(flow, call) for call in calls):
        shape = values[flow.base[first.input]].shape
        raise DescribeError(
            f"layer {name} was called without a batch dimension (input shape {shape}): "
            "give an example input whose first dimension is a batch of one."
        )
    totals = dict.fromkeys(("macs", "input_numel", "output_numel"), 0)
    for call in calls:
        samples = 1 if call.input in flow.fixed else batch
        counts = {"macs": call.macs, "input_numel": values[call.input].numel, "output_numel": values[call.node.results[0]].numel}
        for what, total in counts.items():
            totals[what] += total * (batch // samples)
    for what, total in totals.items():
        if total % batch:
            raise DescribeError(
                f"layer {name}: {what} is {total} in total, which does not divide by the batch size {batch}; "
                "give an example input with a batch of one."
            )
    return LayerInfo(
        name=name,
        kind=first.kind,
        weight_shape=first.shape,
        macs=totals["macs"] // batch,
        input_numel=totals["input_numel"] // batch,
        output_numel=totals["output_numel"] // batch,
        groups=int(first.node.options.get("groups", 1)) if first.node.operation in CONVOLUTIONS else 1,
        bias_numel=_bias_numel(flow, first),
        calls=number,
        site=site,
        same_weight_as=holder,
    )


def _without_batch(flow: Flow, product: Product) -> bool:
    """Whether PyTorch had to give a convolution's input a batch dimension."""
    node = flow.maker.get(product.input)
    if node is None or product.node.operation not in CONVOLUTIONS or (node.module, node.call) != (product.node.module, product.node.call):
        return False
    return node.operation == "unsqueeze" and node.options.get("dim") == 0
