"""The checks of one model. Each raises ``Failed`` with a reason, or any error of the library or of the model."""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.compatibility.cases import call, first_sample
from benchmarks.compatibility.counter import count
from benchmarks.compatibility.subject import Failed, Subject, tensors
from bitalloc import Bits, Description, LayerInfo, Problem, Table, describe, is_step_size, quantize, resolve_budgets, search_space, solve
from bitalloc.errors import DescribeError
from bitalloc.wrap import active_bits, prepare_joint

FLOAT = Bits(32, 32)
W4A4 = Bits(4, 4)
QUANTIZER = "quantizer"
"""Every key that quantization adds to a state dict has this word in it."""
RECURRENT = "recurrent layer"
"""What ``describe`` calls an LSTM, GRU or RNN among what is not counted."""
ADVICE = "a batch of one"
"""What ``describe`` asks for where counts do not divide by the batch size."""


def wraps(s: Subject) -> None:
    """``describe`` and ``quantize`` at W4A4 run, the result runs, and every described layer is quantized."""
    try:
        s.description = describe(s.model, s.inputs)
    except DescribeError as error:
        if ADVICE not in str(error):
            raise
        s.inputs = first_sample(s.inputs)
        s.description = describe(s.model, s.inputs)
        s.facts["note"] = f"described with a batch of one: {error}"
    s.facts["layers"] = len(s.description.layers)
    s.facts["not_counted"] = [f"{entry.name or '(model)'} [{entry.type}]: {entry.reason}" for entry in s.description.not_counted]
    quantized = s.quantized(s.uniform(W4A4))
    with torch.no_grad():
        call(quantized, s.inputs)
    left = sorted({layer.name for layer in s.description.layers} - set(active_bits(quantized)))
    if left:
        raise Failed(f"described, but not quantized: {_some(left)}")


def macs(s: Subject) -> None:
    """Layers plus what ``not_counted`` says are what PyTorch's own counter finds; no product with a weight is silently left out."""
    counted = count(s.model, s.inputs)
    layers = sum(layer.macs * _times(layer, counted.batch) for layer in s.described.layers)
    # PyTorch has no formula for recurrent layers, which run as one operation.
    rest = sum(entry.macs for entry in s.described.not_counted if RECURRENT not in entry.reason) * counted.batch
    s.facts |= {"macs": counted.total, "macs_in_layers": layers, "macs_not_counted": rest}
    s.facts["macs_with_parameters"] = sum(counted.of_parameter.values())
    known = {layer.name for layer in s.described.layers}
    s.facts["float_weights"] = [name for name in counted.of_parameter if name.rpartition(".")[0] not in known]
    if layers + rest != counted.total:
        where = [f"{name or '(model)'} {product:+d}" for name, product in _unexplained(s.described, counted.of_module, counted.batch)]
        raise Failed(f"counted {layers} + {rest}, PyTorch counts {counted.total}; modules that differ: {_some(where)}")


def unchanged_at_32_bits(s: Subject) -> None:
    """The output is the float one bit for bit, both without quantizers and with quantizers that are switched to 32 bits."""
    with torch.no_grad():
        expected = list(tensors(call(s.model, s.inputs)))
        again = list(tensors(call(s.model, s.inputs)))
        if not _equal(expected, again):
            raise Failed("the float model itself gives another output at the second call")
        if not _equal(expected, tensors(call(quantize(s.model, s.uniform(FLOAT)), s.inputs))):
            raise Failed("the output differs under a policy of 32 bits everywhere")
        space = search_space(s.described, (32, 4))
        if not _equal(expected, tensors(call(prepare_joint(s.model, space, s.described), s.inputs))):
            raise Failed("the output differs when wrapped layers are switched to 32 bits")


def trains_at_w4a4(s: Subject) -> None:
    """Forward and backward in training mode are finite, and a step size gets a gradient. The loss is a random projection of the outputs."""
    model = s.quantized(s.uniform(W4A4)).train()
    outputs = [tensor for tensor in tensors(call(model, s.training)) if tensor.requires_grad]
    if not outputs:
        raise Failed("no output has a gradient")
    # Not a sum of squares: behind a layer norm that is a constant.
    loss = torch.stack([(tensor * torch.randn_like(tensor)).sum() for tensor in outputs]).sum()
    if not loss.isfinite():
        raise Failed(f"the loss is {loss.item()}")
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if broken:
        raise Failed(f"the gradient is not finite: {_some(broken)}")
    steps = [name for name, parameter in model.named_parameters() if is_step_size(name, parameter)]
    moved = [name for name in steps if name in gradients and gradients[name].any()]
    s.facts |= {"steps": len(steps), "steps_with_gradient": len(moved)}
    if not moved:
        raise Failed("no step size gets a gradient")


def policy_solves(s: Subject) -> None:
    """8, 4 and 2 bits under the BitOps of uniform W4A4: solved, inside the budget, and the model takes the policy."""
    layers = s.described.layers
    space = search_space(s.described, (8, 4, 2))
    sizes = {layer.name: (layer.weight_numel, layer.input_numel) for layer in layers}
    scores = {
        name: {bits: sizes[name][0] * 4.0**-bits.weight + sizes[name][1] * 4.0**-bits.act for bits in candidates.pairs}
        for name, candidates in space.candidates.items()
    }
    budgets = resolve_budgets({"bitops": "w4a4"}, layers, space)
    solution = solve(Problem(space, Table(scores, "noise"), budgets), gap=0.01, time_limit=60.0)
    if any(use.used > use.limit for use in solution.budgets):
        raise Failed(f"the budget is exceeded: {solution.budgets}")
    left_out = [entry.name for entry in s.described.not_counted]
    policy = solution.policy(layers, {"not_counted": left_out})
    wrong = [name for name, bits in active_bits(s.quantized(policy)).items() if policy.bits.get(name) != bits]
    if wrong:
        raise Failed(f"the quantized model has other widths than the policy: {_some(wrong)}")


def state_dict_round_trips(s: Subject) -> None:
    """A float state dict loads into the wrapped model, where only quantizer keys are missing, and comes back equal."""
    wrapped = s.quantized(s.uniform(W4A4))
    expected = s.model.state_dict()  # changed in place: it carries the versions of the modules
    expected.update({name: value + 1 for name, value in expected.items() if value.is_floating_point()})
    loaded = wrapped.load_state_dict(expected, strict=False)
    missing = [key for key in loaded.missing_keys if QUANTIZER not in key]
    if missing or loaded.unexpected_keys:
        raise Failed(f"into the wrapped model: missing {_some(missing)}; unexpected {_some(loaded.unexpected_keys)}")
    back = deepcopy(s.model)
    returned = back.load_state_dict(wrapped.state_dict(), strict=False)
    unexpected = [key for key in returned.unexpected_keys if QUANTIZER not in key]
    if returned.missing_keys or unexpected:
        raise Failed(f"back into the float model: missing {_some(returned.missing_keys)}; unexpected {_some(unexpected)}")
    changed = [name for name, value in back.state_dict().items() if not torch.equal(value, expected[name])]
    if changed:
        raise Failed(f"came back with other values: {_some(changed)}")


CHECKS = {
    "wraps": wraps,
    "MACs": macs,
    "equal at 32 bits": unchanged_at_32_bits,
    "trains at W4A4": trains_at_w4a4,
    "policy solves": policy_solves,
    "state dict": state_dict_round_trips,
}
"""Column of the table to check, in the order in which they run."""


def _equal(expected: list[Tensor], found: Iterator[Tensor] | list[Tensor]) -> bool:
    other = list(found)
    if not expected:
        raise Failed("the output holds no floating-point tensor")
    if not all(tensor.isfinite().all() for tensor in expected):
        raise Failed("the float model's own output is not finite")
    return len(expected) == len(other) and all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def _times(layer: LayerInfo, batch: int) -> int:
    """How many samples one count of a layer stands for: what reads a constant, such as a table of positions, runs once a batch."""
    return 1 if layer.site.startswith("constant") else batch


def _unexplained(description: Description, of_module: Mapping[str, int], batch: int) -> list[tuple[str, int]]:
    """Modules whose own products are neither in a layer nor in ``not_counted``, the largest first: name and difference."""
    left = dict(of_module)
    for layer in description.layers:
        left[layer.name] = left.get(layer.name, 0) - layer.macs * _times(layer, batch)
    for entry in description.not_counted:
        left[entry.name] = left.get(entry.name, 0) - entry.macs * batch
    return sorted(((name, value) for name, value in left.items() if value), key=lambda item: -math.fabs(item[1]))


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"
