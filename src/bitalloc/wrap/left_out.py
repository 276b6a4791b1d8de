"""What is not counted, by module, and why."""

from collections.abc import Sequence

from bitalloc.layers import NotCounted
from bitalloc.wrap.flow import Flow
from bitalloc.wrap.graph import ModuleFacts
from bitalloc.wrap.products import Product, Uncounted


def not_counted(flow: Flow, products: Sequence[Product], uncounted: Sequence[Uncounted], batch: int) -> tuple[NotCounted, ...]:
    """Modules that hold parameters of no layer, or compute products of no layer, in the model's order.

    Multiply-accumulates are those of one sample, rounded up where the batch size does not divide them; what does not depend on the
    inputs, such as computing a weight, is the same for any batch.
    """
    graph = flow.graph
    layers = {product.layer for product in products}
    weights = {owner for product in products for root in product.roots for owner in graph.owners(root)}
    used = {value for node in graph.nodes for value in node.inputs}
    unused = [index for index, value in enumerate(graph.values) if value.origin == "parameter" and index not in used]
    idle = {owner for parameter in unused for owner in graph.owners(parameter)}
    found = []
    for name, facts in graph.modules.items():
        reasons = [] if name in layers else _holding(name, facts, weights, idle)
        own = [entry for entry in uncounted if entry.node.module == name]
        if own:
            reasons.append(f"computes outside of a counted layer: {'; '.join(sorted({entry.what for entry in own}))}")
        if reasons:
            once = sum(entry.macs for entry in own if flow.fixed.issuperset(entry.node.inputs))
            macs = sum(entry.macs for entry in own) - once
            found.append(NotCounted(name, facts.type, "; ".join(reasons), once - (-macs // batch)))
    return tuple(found)


def _holding(name: str, facts: ModuleFacts, weights: set[tuple[str, str]], idle: set[tuple[str, str]]) -> list[str]:
    """Why the parameters that a module holds are in no layer; empty if they are, or if it holds none."""
    held = [(name, attribute) for attribute in facts.parameters]
    rest = [attribute for owner, attribute in held if (owner, attribute) not in weights]
    if len(rest) < len(held):  # what stays beside a weight in functional code are its biases
        rest = [attribute for attribute in rest if "bias" not in attribute]
    if not rest or "parametrizations" in name.split("."):
        return []
    if all((name, attribute) in idle for attribute in rest):
        return ["never called on the example input"]
    if "norm" in facts.type.lower():
        return ["normalisation, folded or kept in floating point"]
    return [f"holds parameters ({', '.join(rest)}) that are no layer's weight, kept in floating point"]
