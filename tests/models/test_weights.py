from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bitalloc.errors import FileError
from bitalloc.models import load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def save(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    source, target = network(), network()
    load_weights(target, save(source.state_dict(), tmp_path / name))
    assert all(torch.equal(tensor, target.state_dict()[key]) for key, tensor in source.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_under_a_key(tmp_path: Path, key: str) -> None:
    source, target = network(), network()
    load_weights(target, save({key: source.state_dict(), "epoch": 3}, tmp_path / "w.pt"))
    assert torch.equal(source[0].weight, target[0].weight)


def test_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in network().state_dict().items() if "num_batches" not in key}
    model = network()
    load_weights(model, save(state, tmp_path / "w.safetensors"))
    assert torch.equal(model[0].weight, state["0.weight"])


def test_all_misfits_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = {**network().state_dict(), "0.weight": torch.ones(4, 5), "head.weight": torch.ones(1)}
    del state["1.bias"]
    model = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        FileError, match=r"missing keys: 1.bias; unexpected keys: head.weight; .*0.weight \(file \(4, 5\), model \(4, 3\)\)"
    ):
        load_weights(model, save(state, tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 5, 200])
def test_a_truncated_file(tmp_path: Path, name: str, kept: int) -> None:
    path = save(network().state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match=r"w\.(safetensors|pt) cannot be read"):
        load_weights(network(), path)


class Payload:
    """Stands for a pickle that would run code."""


@pytest.mark.parametrize(("value", "message"), [(Payload(), "cannot be read"), ([1, 2], "state dict"), ({"a": 1}, "state dict")])
def test_a_file_with_something_else(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(FileError, match=message):
        load_weights(network(), save(value, tmp_path / "w.pt"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.pt does not exist"):
        load_weights(network(), tmp_path / "absent.pt")
