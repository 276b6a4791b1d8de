"""The operations of a deployed graph: what a runtime computes without writing anything in between to memory."""

from collections.abc import Iterator, Sequence

from bitalloc.wrap.flow import Flow
from bitalloc.wrap.functions import join_functions
from bitalloc.wrap.graph import Node
from bitalloc.wrap.operations import ACTIVATIONS, ADDITIONS, ARITHMETIC, BATCH_NORM_OPERATIONS, PRODUCTS, made_by
from bitalloc.wrap.products import Product
from bitalloc.wrap.unit import Unit

_CLASSES = (
    ("hardswish", "hardswish"),
    ("gelu", "gelu"),
    ("silu", "silu"),
    ("swish", "silu"),
    ("mish", "mish"),
    ("rmsnorm", "rms_norm"),
    ("layernorm", "layer_norm"),
)


def find_units(flow: Flow, products: Sequence[Product]) -> list[Unit]:
    """The operations in the order in which their results are made.

    Fused are: a product with the batch norm, the scales and shifts by constants and the activation function after it; an addition or a
    batch norm with the activation function after it; each only where nothing else reads what is in between.
    """
    kinds = {id(product.node): product.kind for product in products}
    units = join_functions(list(_single_functions(flow, kinds)), flow.outputs)
    readers: dict[int, list[Unit]] = {}
    for unit in units:
        for base in unit.reads:
            readers.setdefault(base, []).append(unit)
    fused: list[Unit] = []
    taken: set[int] = set()
    for unit in units:
        if unit.result in taken:
            continue
        chain = [unit]
        while (after := _only_reader(chain[-1], readers, flow)) is not None and _fuses(chain, after, flow):
            chain.append(after)
            taken.add(after.result)
        nodes = tuple(node for part in chain for node in part.nodes)
        fused.append(Unit(nodes, _name_of(chain), chain[0].reads, chain[-1].result))
    order = {id(node): index for index, node in enumerate(flow.steps)}
    return sorted(fused, key=lambda unit: order[id(unit.nodes[-1])])


def _name_of(chain: Sequence[Unit]) -> str:
    """The last operation, but that a bias which the product's own module adds does not rename it."""
    product = chain[0].nodes[-1]
    own = (product.module, product.call)
    biases = [part for part in chain[1:] if part.made_by in ARITHMETIC and (part.nodes[-1].module, part.nodes[-1].call) == own]
    return next(part.made_by for part in reversed(chain) if part not in biases)


def _only_reader(unit: Unit, readers: dict[int, list[Unit]], flow: Flow) -> Unit | None:
    found = readers.get(unit.result, [])
    if len(found) != 1 or unit.result in flow.outputs or found[0].reads != (unit.result,):
        return None
    return found[0]


def _fuses(chain: Sequence[Unit], after: Unit, flow: Flow) -> bool:
    head, end = chain[0], chain[-1]
    if end is not head and end.made_by in ACTIVATIONS:
        return False
    if after.made_by in ACTIVATIONS or after.made_by == "relu6":
        return _is_product(head) or head.made_by in ADDITIONS or head.made_by == "batch_norm"
    return _is_product(head) and (after.nodes[-1].operation in BATCH_NORM_OPERATIONS or is_constant_arithmetic(after.nodes[-1], flow))


def _is_product(unit: Unit) -> bool:
    return len(unit.nodes) == 1 and unit.nodes[0].operation in PRODUCTS


def is_constant_arithmetic(node: Node, flow: Flow) -> bool:
    """Whether a step scales or shifts one activation by constants."""
    return node.operation in ARITHMETIC and sum(value not in flow.fixed for value in node.inputs) == 1


def _single_functions(flow: Flow, kinds: dict[int, str]) -> Iterator[Unit]:
    """The steps, with those of one call of a module without submodules taken together if they compute one function of one tensor."""
    calls: dict[tuple[str, int], list[Node]] = {}
    for node in flow.steps:
        calls.setdefault((node.module, node.call), []).append(node)
    together: dict[int, Unit] = {}
    for (module, _), nodes in calls.items():
        facts = flow.graph.modules.get(module)
        unit = _one_function(flow, nodes, facts.type) if facts is not None and module and not facts.children else None
        if unit is not None:
            together.update(dict.fromkeys(map(id, nodes), unit))
    for node in flow.steps:
        unit = together.get(id(node))
        if unit is None:
            if node.results:
                yield Unit((node,), kinds.get(id(node)) or _step_name(node), tuple(flow.moving(node)), node.results[0])
        elif node is unit.nodes[-1]:
            yield unit


def _one_function(flow: Flow, nodes: Sequence[Node], kind: str) -> Unit | None:
    inside = {result for node in nodes for result in node.results}
    reads = dict.fromkeys(base for node in nodes for base in flow.moving(node) if base not in inside)
    within = {id(node) for node in nodes}
    gives = [
        result
        for node in nodes
        for result in node.results
        if result in flow.outputs or any(id(reader) not in within for reader in flow.readers.get(result, ()))
    ]
    if len(nodes) < 2 or len(reads) != 1 or len(gives) != 1 or any(node.operation in PRODUCTS for node in nodes):
        return None
    name = next((name for part, name in _CLASSES if part in kind.lower()), _step_name(nodes[-1]))
    return Unit(tuple(nodes), name, tuple(reads), gives[0])


def _step_name(node: Node) -> str:
    if node.operation == "hardtanh" and (node.options.get("min_val"), node.options.get("max_val")) == (0, 6):
        return "relu6"
    return made_by(node.operation)
