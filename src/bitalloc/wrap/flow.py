"""Where the values of a graph come from and who reads them, with views followed."""

from bitalloc.wrap.graph import Graph, Node
from bitalloc.wrap.operations import CONCATENATIONS, CREATIONS, RENORMALISATION, VIEWS


class Flow:
    """What follows from a graph alone.

    A value is *fixed* if it does not depend on the inputs. A view has the same *base* as what it views: the value that was computed
    or given. The *roots* of a fixed value are the parameters and buffers that it is computed from.

    Attributes:
        graph: the graph.
        maker: the node that makes each computed value.
        fixed: the fixed values.
        base: the base of every value.
        roots: parameters and buffers of every fixed value.
        steps: the nodes that compute something from the inputs: no views, nothing fixed.
        readers: the steps that read each base, once for each step.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = graph.makers()
        self.fixed = {index for index, value in enumerate(graph.values) if value.origin in ("parameter", "buffer", "constant")}
        self.base = {index: index for index in range(len(graph.values))}
        self.roots: dict[int, frozenset[int]] = {
            index: frozenset({index} if graph.values[index].origin != "constant" else ()) for index in self.fixed
        }
        self.steps: list[Node] = []
        self.readers: dict[int, list[Node]] = {}
        for node in graph.nodes:
            self._follow(node)
        self.outputs = {self.base[value] for value in graph.outputs}

    def moving(self, node: Node) -> list[int]:
        """The bases of the operands of a step that depend on the inputs and hold numbers, in order, each once."""
        bases = dict.fromkeys(self.base[value] for value in node.inputs if value not in self.fixed)
        return [base for base in bases if self.graph.values[base].floating]

    def _follow(self, node: Node) -> None:
        fixed = node.operation in (*CREATIONS, RENORMALISATION) or all(value in self.fixed for value in node.inputs)
        view = self._is_view(node) and (fixed or self._source(node) not in self.fixed)
        if fixed:
            self.fixed.update(node.results)
            roots = frozenset().union(*(self.roots[value] for value in node.inputs if value in self.fixed))
            self.roots.update(dict.fromkeys(node.results, roots if node.operation not in CREATIONS else frozenset()))
        if view:
            self.base.update(dict.fromkeys(node.results, self.base[self._source(node)]))
        elif not fixed:
            self.steps.append(node)
            for base in dict.fromkeys(self.base[value] for value in node.inputs if value not in self.fixed):
                self.readers.setdefault(base, []).append(node)

    def _is_view(self, node: Node) -> bool:
        if not node.operands:
            return False
        values = self.graph.values
        if node.operation == "_to_copy":
            return values[self._source(node)].floating == values[node.results[0]].floating
        if node.operation == "constant_pad_nd":  # a convolution's padding, which runtimes fuse
            return bool(node.options.get("value", 0) == 0)
        if node.operation in CONCATENATIONS:  # with what is empty as yet, such as a cache
            return sum(values[value].numel > 0 for value in node.inputs) == 1
        return node.operation in VIEWS

    def _source(self, node: Node) -> int:
        """What a view is of."""
        if node.operation == "copy":
            written = node.operand("src")
            assert written is not None
            return written
        return next((value for value in node.inputs if self.graph.values[value].numel), node.inputs[0])
