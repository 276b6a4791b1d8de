"""Starting the fine-tuning from the joint training's weights."""

from collections.abc import Mapping

from torch import Tensor, nn

from bitalloc.errors import PolicyError
from bitalloc.policy import FLOAT, Bits
from bitalloc.wrap.batchnorm import SwitchableBatchNorm
from bitalloc.wrap.layers import QuantizedLayer
from bitalloc.wrap.switch import active_bits


def inherit(quantized: nn.Module, joint: nn.Module) -> None:
    """Copies weights, step sizes and batch norms of the jointly trained model into a quantized one, in place.

    Every batch norm takes the branch that belongs to the quantized model's widths, every quantizer the steps of its width.

    Args:
        quantized: from :func:`~bitalloc.wrap.quantize`, of the same architecture.
        joint: from :func:`~bitalloc.wrap.prepare_joint`.

    Raises:
        PolicyError: the joint model lacks a tensor or has one of another shape, because it is another network, was not trained
            at these widths, or has one step a tensor where the other has one a channel.
    """
    source = _at_widths(joint, active_bits(quantized))
    target = quantized.state_dict()
    missing = sorted(set(target) - set(source))
    if missing:
        raise PolicyError(f"the joint training has no {', '.join(missing[:4])}: it is of another model or lacks these widths.")
    reshaped = sorted(name for name in target if source[name].shape != target[name].shape)
    if reshaped:
        raise PolicyError(f"the joint training has other shapes of {', '.join(reshaped[:4])}: it is of another model or other settings.")
    quantized.load_state_dict({name: source[name] for name in target})


def _at_widths(joint: nn.Module, bits: Mapping[str, Bits]) -> dict[str, Tensor]:
    state = dict(joint.state_dict())
    for name, module in joint.named_modules():
        if isinstance(module, SwitchableBatchNorm):
            # A layer without quantizers is one that the policy leaves in floating point.
            module.switch(bits.get(module.follows, Bits(FLOAT, FLOAT)))
            for key, value in module.branches[module.active].state_dict().items():
                state[f"{name}.{key}"] = value
    for path, module in joint.named_modules():  # shared quantizers, under the name of each of their layers
        if isinstance(module, QuantizedLayer):
            for side in ("weight_quantizer", "input_quantizer"):
                quantizer: nn.Module = getattr(module, side)
                state.update({f"{path}.{side}.{key}".removeprefix("."): value for key, value in quantizer.state_dict().items()})
    return state
