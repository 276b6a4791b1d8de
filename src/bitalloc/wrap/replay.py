"""The graph of an exported programme: the programme runs once under the same recorder as a model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from bitalloc.wrap.graph import Graph, ModuleFacts
from bitalloc.wrap.operations import COMPOSITES
from bitalloc.wrap.record import Recorder, Where, recording
from bitalloc.wrap.trace import BATCH_NORMS, name_inputs, tensors_in, unchanged

_BATCH_NORMS = frozenset(kind.__name__ for kind in BATCH_NORMS)


def export_model(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Exports the model in evaluation mode and reads the graph of the programme. The model is left as it was."""
    with unchanged(model):
        model.eval()
        with torch.no_grad():
            program = torch.export.export(model, args, dict(kwargs), strict=False)
        return replay(program, args, kwargs)


def replay(program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Runs a programme on the given inputs, operation by operation, and records what each consists of."""
    graph = Graph(source="export")
    where = Where()
    recorder = Recorder(graph, where)
    state = _register_state(recorder, program)
    parts = program.module_call_graph[0].signature
    arguments = list(parts.forward_arg_names or ()) if parts is not None else []
    for name, tensor in name_inputs(arguments, args, kwargs):
        graph.inputs.append(recorder.register(tensor, "input", (name,)))
    modules = _Modules(program)
    signature = program.graph_signature
    given = iter(tree_leaves((args, dict(kwargs))))
    values = [next(given) if spec.kind == InputKind.USER_INPUT else state[str(spec.target)] for spec in signature.input_specs]
    try:
        with recording(recorder):
            output = _Replay(program.graph_module, recorder, where, modules).run(*values)
    finally:
        recorder.restore()
    results = zip(signature.output_specs, output, strict=True)
    given_back = [value for spec, value in results if spec.kind == OutputKind.USER_OUTPUT]
    graph.outputs = [recorder.value_of(tensor) for tensor in tensors_in(given_back)]
    graph.modules = modules.facts
    return graph


class _Modules:
    """The modules that a programme remembers: those that its operations came from, and those that its parameters belong to."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        types: dict[str, str] = {"": "Module"}
        for node in program.graph.nodes:
            types.update({path: _class_name(kind) for path, kind in _stack(node)})
        parameters: dict[str, list[str]] = {}
        for name in program.graph_signature.parameters:
            owner, _, attribute = name.rpartition(".")
            types.setdefault(owner, "Module")
            parameters.setdefault(owner, []).append(attribute)
        parents = {path.rpartition(".")[0] for path in types if path}
        self.facts = {
            path: ModuleFacts(kind, tuple(parameters.get(path, ())), path in parents, kind in _BATCH_NORMS) for path, kind in types.items()
        }
        self._calls: dict[str, int] = {}

    def innermost(self, node: fx.Node) -> tuple[str, int]:
        """Name of the module that a node came from, and a number that tells its calls apart."""
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        if not stack:
            return "", 0
        key = "/".join(key for key, _ in stack)
        return stack[-1][1][0], self._calls.setdefault(key, len(self._calls) + 1)


class _Replay(fx.Interpreter):
    def __init__(self, programme: fx.GraphModule, recorder: Recorder, where: Where, modules: _Modules) -> None:
        super().__init__(programme, garbage_collect_values=False)
        self._recorder = recorder
        self._where = where
        self._modules = modules

    def run_node(self, n: fx.Node) -> Any:
        self._where.stack = [self._modules.innermost(n)]
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = target._schema.name.split("::")[-1] if isinstance(target, OpOverload) else ""
        if name in COMPOSITES:
            return self._recorder.composite(name, target, args, kwargs)
        return super().call_function(target, args, kwargs)


def _register_state(recorder: Recorder, program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Makes parameters, buffers and constants known; a tensor under several names is one value."""
    state = _with_ties({**program.constants, **program.state_dict})
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    parameters = set(program.graph_signature.parameters)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            recorder.register(tensor, "parameter" if name in parameters else "buffer", tuple(names[id(tensor)]))
    return state


def _with_ties(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with one tensor for all names of a tied weight: a programme read from a file has one for each, on the same memory."""
    first: dict[Any, Tensor] = {}

    def tied(tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        return first.setdefault(place, tensor)

    return {name: tied(value) if isinstance(value, Tensor) else value for name, value in state.items()}


def _stack(node: fx.Node) -> list[tuple[str, Any]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def _class_name(kind: Any) -> str:
    return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
