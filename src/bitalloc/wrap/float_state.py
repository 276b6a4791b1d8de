"""The float weights of a quantized model, under their own names."""

from torch import Tensor, nn

from bitalloc.quantizers import Quantizer
from bitalloc.wrap.batchnorm import SwitchableBatchNorm


def float_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a quantized model without its quantizers: what the float model of the same architecture loads.

    The weights are those that were trained, not rounded. Of a switchable batch norm the active branch is taken. In the other direction
    ``quantized.load_state_dict(state, strict=False)`` does, as the names are the same.

    Args:
        model: from :func:`~bitalloc.wrap.quantize` or :func:`~bitalloc.wrap.prepare_joint`.

    Returns:
        The tensors themselves, not copies.
    """
    modules = dict(model.named_modules())
    dropped = tuple(f"{path}." for path, module in modules.items() if isinstance(module, Quantizer))
    switches = {f"{path}.": module for path, module in modules.items() if isinstance(module, SwitchableBatchNorm)}
    state = {}
    for key, value in model.state_dict().items():
        switch = next((prefix for prefix in switches if key.startswith(prefix)), None)
        if switch is not None:
            active = f"{switch}branches.{switches[switch].active}."
            if key.startswith(active):
                state[switch + key.removeprefix(active)] = value
        elif not key.startswith(dropped):
            state[key] = value
    return state
