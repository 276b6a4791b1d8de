"""Quantized checkpoints: safetensors whose header says with which policy and settings the tensors are to be read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitalloc import files
from bitalloc.errors import FileError, PolicyError
from bitalloc.files import AnyPath
from bitalloc.policy import Policy

SCHEMA = "bitalloc.checkpoint.quantized"
VERSION = 1
KEY = "bitalloc"
"""The entry of the header's metadata that holds everything of ours, as JSON."""


def save_checkpoint(path: AnyPath, state: Mapping[str, Tensor], policy: Policy, settings: Mapping[str, Any] | None = None) -> None:
    """Writes the state dict of a quantized model together with its policy, atomically.

    The header also holds a SHA-256 of tensors, policy and settings, so that an edited or damaged file is found on reading.

    Args:
        path: the file; conventionally ``*.safetensors``. Any safetensors reader can read its tensors.
        state: ``model.state_dict()`` of the quantized model.
        policy: the widths that the model was quantized with.
        settings: how, as JSON values; for example ``QuantizerSettings().to_json()``.

    Raises:
        FileError: the file cannot be written, or a setting is no JSON value; what was on disk stays.
    """
    from safetensors.torch import save

    # Cloned, because tensors that share memory (tied weights) are refused otherwise.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    header: dict[str, Any] = {"schema": SCHEMA, "version": VERSION, "policy": policy.to_json(), "settings": dict(settings or {})}
    try:
        header["sha256"] = _digest(tensors, header)
        metadata = {KEY: json.dumps(header, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise FileError(f"cannot write {path}: the settings or the policy's provenance hold what JSON cannot ({error}).") from error
    with files.replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_checkpoint(path: AnyPath) -> tuple[dict[str, Tensor], Policy, dict[str, Any]]:
    """Reads what :func:`save_checkpoint` wrote: state dict (on the CPU), policy, settings.

    Raises:
        FileError: the file is missing, truncated, edited, of another kind or of another version.
        PolicyError: the policy inside is malformed.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileError(f"{path} does not exist: expected a {SCHEMA} file.")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is no whole safetensors file ({error}): it was truncated or edited. Make it again.") from error
    if text is None:
        raise FileError(f"{path} holds tensors but no policy: expected a {SCHEMA} file, this may be a float checkpoint.")
    header = files.parse_json(text, origin=str(path), schema=SCHEMA, version=VERSION)
    found, settings = header.pop("sha256", None), header.get("settings")
    if found != _digest(tensors, header) or not isinstance(settings, dict):
        raise FileError(f"{path} was edited or damaged: its content does not fit its checksum. Make it again.")
    try:
        return tensors, Policy.from_json(header["policy"], origin=str(path)), settings
    except (KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{path}: the policy inside is malformed ({error!r}).") from error


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
