"""The activation tensors that a deployed network has in memory, and where they meet."""

from collections import Counter
from collections.abc import Iterable, Sequence

from bitalloc.layers import Meeting, Site
from bitalloc.wrap.flow import Flow
from bitalloc.wrap.operations import ADDITIONS, CONCATENATIONS
from bitalloc.wrap.products import Product
from bitalloc.wrap.unit import Unit


class Sites:
    """The sites of a graph, see :class:`~bitalloc.layers.Site`.

    Only floating-point tensors have one; tokens and masks have none. A scale and shift by constants, a batch norm and an activation
    function are fused with what they follow, see :func:`~bitalloc.wrap.units.find_units`. Max pooling gives a new site, though it
    keeps the grid of what it reads. A constant has a site only where a layer reads it.

    Attributes:
        units: the operations that make the sites.
        name_of: base value to the name of its site.
    """

    def __init__(self, flow: Flow, units: Sequence[Unit], products: Sequence[Product], batch: int) -> None:
        self.units = units
        self._flow = flow
        self._batch = batch
        self._products = [product for product in products if product.kind != "embedding"]
        self.name_of: dict[int, str] = {}
        self._position: dict[str, tuple[str, int, int]] = {}  # name: made by, value, born
        self._name_inputs()
        self._name_constants()
        for position, (unit, name) in enumerate(zip(units, unit_names(flow, units), strict=True), 1):
            if flow.graph.values[unit.result].floating:
                self._add(name, unit.made_by, unit.result, position)
                self.name_of.update({result: name for node in unit.nodes for result in node.results})

    def read_by(self, product: Product) -> str:
        """The site that one call of a layer reads, empty for an embedding."""
        return "" if product.kind == "embedding" else self.name_of[self._flow.base[product.input]]

    def representatives(self) -> dict[str, str]:
        """Site to the first of those that are read by one layer, which has one quantizer for all of them."""
        first = {name: name for name in self._position}
        reads: dict[str, list[str]] = {}
        for product in self._products:
            reads.setdefault(product.layer, []).append(self.read_by(product))
        order = list(self._position)
        for together in reads.values():
            labels = {first[name] for name in together}
            if len(labels) > 1:
                label = min(labels, key=order.index)
                first = {name: label if old in labels else old for name, old in first.items()}
        return first

    def sites(self) -> tuple[Site, ...]:
        """The sites in the order in which they are made."""
        readers: dict[str, list[str]] = {}
        dies = {name: born for name, (_, _, born) in self._position.items()}
        for product in self._products:
            readers.setdefault(self.read_by(product), []).append(product.layer)
        for position, unit in enumerate(self.units, 1):
            for base in self._read(unit):
                name = self.name_of[base]
                dies[name] = max(dies[name], position)
        for base in self._flow.outputs:
            if base in self.name_of:
                dies[self.name_of[base]] = len(self.units)
        return tuple(
            Site(name, made_by, self._numel(value), tuple(dict.fromkeys(readers.get(name, ()))), born, dies[name])
            for name, (made_by, value, born) in self._position.items()
        )

    def meetings(self) -> tuple[Meeting, ...]:
        """Additions and concatenations of two and more sites, and max poolings, in the order of execution."""
        found = []
        for unit in self.units:
            operands = tuple(dict.fromkeys(self.name_of[base] for base in unit.reads if self._flow.graph.values[base].numel > 1))
            kind = self._meeting(unit, len(operands))
            if kind is not None and unit.result in self.name_of:
                name = self.name_of[unit.result]
                found.append(Meeting(name, kind, operands, name))
        return tuple(found)

    def _meeting(self, unit: Unit, operands: int) -> str | None:
        operation = unit.nodes[0].operation
        if operands == 1 and unit.made_by == "max_pool":
            return "max_pool"
        if operands < 2:
            return None
        return "add" if operation in ADDITIONS else "concat" if operation in CONCATENATIONS else None

    def _read(self, unit: Unit) -> Iterable[int]:
        inputs = (self._flow.base[value] for node in unit.nodes for value in node.inputs)
        return (base for base in (*unit.reads, *inputs) if base in self.name_of)

    def _add(self, name: str, made_by: str, value: int, born: int) -> None:
        self._position[name] = (made_by, value, born)
        self.name_of[value] = name

    def _name_inputs(self) -> None:
        values = self._flow.graph.values
        inputs = list(dict.fromkeys(self._flow.graph.inputs))
        for value in inputs:
            if values[value].floating:
                self._add("input" if len(inputs) == 1 else f"input.{values[value].names[0]}", "input", value, 0)

    def _name_constants(self) -> None:
        for product in self._products:
            base = self._flow.base[product.input]
            if product.input in self._flow.fixed and base not in self.name_of:
                names = [self._flow.graph.values[root].names[0] for root in sorted(self._flow.roots[base])]
                taken = set(self._position)
                self._add(_free(f"constant.{names[0]}" if names else "constant", taken), "constant", base, 0)

    def _numel(self, value: int) -> int:
        numel = self._flow.graph.values[value].numel
        return numel if value in self._flow.fixed else -(-numel // self._batch)


def unit_names(flow: Flow, units: Sequence[Unit]) -> list[str]:
    """Names of what the units make: the module, where all that one call of it makes is one tensor, else module and operation."""
    ends = [(unit.nodes[-1].module, unit.nodes[-1].call) for unit in units]
    several = {module for (module, _), count in Counter(ends).items() if count > 1}
    taken: set[str] = set()
    names = []
    for unit, (module, _) in zip(units, ends, strict=True):
        facts = flow.graph.modules.get(module)
        own = bool(module) and facts is not None and not facts.children and module not in several
        name = _free(module if own else f"{module}:{unit.made_by}", taken)
        taken.add(name)
        names.append(name)
    return names


def _free(name: str, taken: set[str]) -> str:
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}#{count}"
    return found
