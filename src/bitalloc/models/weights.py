"""Loading float weights into a model, all or nothing."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bitalloc.errors import FileError

_WRAPPERS = ("state_dict", "model")


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights in ``path`` into ``model``; the model is left as it was when anything does not fit.

    Args:
        model: the network.
        path: a ``.safetensors`` file, or a ``.pt``, ``.pth`` or ``.bin`` file with a state dict, bare or under the key ``state_dict`` or
            ``model``. The latter is read with ``weights_only=True``: nothing is unpickled but tensors. Batch-norm counters
            (``num_batches_tracked``) may be missing, as in old checkpoints.

    Raises:
        FileError: the file is missing, truncated or of another kind, or keys are missing, unexpected or of another shape.
    """
    path = Path(path)
    loaded = _read(path)
    expected = model.state_dict()
    missing = [key for key in expected if key not in loaded and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in loaded if key not in expected]
    reshaped = [
        f"{key} (file {tuple(tensor.shape)}, model {tuple(expected[key].shape)})"
        for key, tensor in loaded.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    complaints = [
        f"{what}: {_few(keys)}"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("keys of another shape", reshaped))
        if keys
    ]
    if complaints:
        raise FileError(f"the weights in {path} do not fit {type(model).__name__}; {'; '.join(complaints)}.")
    model.load_state_dict(loaded, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(f"{path} does not exist: expected a .safetensors or .pt file with weights.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise FileError(f"{path} cannot be read as weights ({reason}): it is truncated or of another format.") from error
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise FileError(f"{path} does not hold a state dict (parameter names to tensors): save model.state_dict() to it.")
    return dict(value)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
