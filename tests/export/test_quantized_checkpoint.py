import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from bitalloc.errors import FileError
from bitalloc.export import load_checkpoint, save_checkpoint
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import QuantizerSettings, quantize

POLICY = Policy({"0": Bits(4, 3)}, {"0": (4, 6)}, {"method": "a test", "seed": 3})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return quantize(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), POLICY, calibration=[torch.randn(16, 6)]).eval()


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(tmp_path / "mixed.safetensors", model.state_dict(), POLICY, QuantizerSettings().to_json())
    return tmp_path / "mixed.safetensors"


def test_the_model_is_rebuilt_from_the_file_alone(model, path):
    state, policy, values = load_checkpoint(path)
    assert policy == POLICY
    assert values == QuantizerSettings().to_json()
    again = quantize(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), policy, settings=QuantizerSettings(**values)).eval()
    again.load_state_dict(state)
    x = torch.randn(8, 6)
    assert torch.equal(again(x), model(x))


def test_any_safetensors_reader_reads_the_tensors(model, path):
    tensors = load_file(path)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_shared_scalar_empty_and_half_tensors_come_back(tmp_path):
    weight = torch.randn(3, 4)
    state = {
        "one": weight,
        "other": weight,
        "turned": weight.T,
        "count": torch.tensor(7),
        "none": torch.zeros(0, 2),
        "half": weight.to(torch.bfloat16),
        "codes": torch.tensor([-128, 127], dtype=torch.int8),
        "flag": torch.tensor([True]),
    }
    save_checkpoint(tmp_path / "a.safetensors", state, POLICY)
    found, _, values = load_checkpoint(tmp_path / "a.safetensors")
    assert values == {}
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_every_truncated_file_is_refused(tmp_path_factory, part):
    whole = tmp_path_factory.mktemp("cut") / "mixed.safetensors"
    save_checkpoint(whole, {"w": torch.arange(50.0)}, POLICY)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(part * len(content))])
    with pytest.raises(FileError, match=r"mixed\.safetensors"):
        load_checkpoint(whole)


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, place, change):
    whole = tmp_path_factory.mktemp("edit") / "mixed.safetensors"
    save_checkpoint(whole, {"w": torch.arange(50.0)}, POLICY)
    before = load_checkpoint(whole)
    content = bytearray(whole.read_bytes())
    content[place % len(content)] ^= change
    whole.write_bytes(bytes(content))
    try:
        state, policy, values = load_checkpoint(whole)
    except FileError:
        return
    # A change to the white space of the header does no harm.
    assert torch.equal(state["w"], before[0]["w"])
    assert (policy, values) == before[1:]


def test_an_edited_policy_is_refused(path):
    content = path.read_bytes()
    assert b'weight_bits\\":4' in content.replace(b" ", b"")
    path.write_bytes(content.replace(b'weight_bits\\": 4', b'weight_bits\\": 8'))
    with pytest.raises(FileError, match="checksum"):
        load_checkpoint(path)


def test_a_float_checkpoint_is_told_apart(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "float.safetensors")
    with pytest.raises(FileError, match=r"float\.safetensors holds tensors but no policy"):
        load_checkpoint(tmp_path / "float.safetensors")


@pytest.mark.parametrize("header", [{"schema": "another", "version": 1}, {"schema": "bitalloc.checkpoint.quantized", "version": 99}])
def test_another_schema_or_version_is_refused(header, tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "a.safetensors", {"bitalloc": json.dumps(header)})
    with pytest.raises(FileError, match="schema|version"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"absent\.safetensors does not exist"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_settings_that_json_cannot_hold_are_refused_and_the_old_file_stays(model, path):
    before = path.read_bytes()
    for value in (float("nan"), torch.zeros(1)):
        with pytest.raises(FileError, match="JSON"):
            save_checkpoint(path, model.state_dict(), POLICY, {"value": value})
    assert path.read_bytes() == before
