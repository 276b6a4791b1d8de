"""The unit of a deployed graph."""

from dataclasses import dataclass

from bitalloc.wrap.graph import Node


@dataclass(frozen=True, slots=True)
class Unit:
    """One operation: a step, the steps of a module that computes one function, or a chain of them that a runtime fuses.

    Attributes:
        nodes: its steps.
        made_by: the operation whose result it is.
        reads: the bases that it reads, see :class:`~bitalloc.wrap.flow.Flow`.
        result: the base that it makes.
    """

    nodes: tuple[Node, ...]
    made_by: str
    reads: tuple[int, ...]
    result: int
