import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bitalloc.errors import FileError
from bitalloc.training import Checkpoint, CheckpointStore
from bitalloc.training.nested import pack, unpack
from bitalloc.training.random_state import capture, restore


def checkpoint(step=1, **changes):
    values = Checkpoint(
        step=step,
        epoch=0,
        batch=step,
        images=4 * step,
        seconds=1.5,
        losses=torch.arange(step, dtype=torch.float64) / 3,
        model={"weight": torch.randn(3, 2), "half": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0)},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3, 2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]},
        train_step={},
        random=[capture()],
        epoch_random=[capture()],
    )
    return replace(values, **changes)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3) | st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(values)
def test_nested_values_come_back_the_same_through_json(value):
    tensors = {}
    text = json.dumps(pack(value, tensors, origin="value"), allow_nan=False)
    back = unpack(json.loads(text), tensors)
    assert back == value
    assert repr(back) == repr(value)  # == does not tell True from 1 and -0.0 from 0.0


def test_nan_comes_back():
    assert math.isnan(unpack(json.loads(json.dumps(pack(math.nan, {}, origin="value"))), {}))


def test_save_and_load_give_the_same(tmp_path):
    store = CheckpointStore(tmp_path / "file", "run")
    saved = checkpoint(3)
    store.save(saved)
    loaded = CheckpointStore(tmp_path / "file", "run").load()
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(loaded.losses, saved.losses)
    for name, tensor in saved.model.items():
        assert loaded.model[name].dtype == tensor.dtype
        assert torch.equal(loaded.model[name], tensor)
    assert torch.equal(loaded.optimizer["state"][0]["momentum_buffer"], torch.ones(3, 2))


def test_file_is_plain_safetensors_with_a_json_header(tmp_path):
    CheckpointStore(tmp_path / "file", "run 7").save(checkpoint())
    with safe_open(tmp_path / "file", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert (header["schema"], header["version"], header["fingerprint"]) == ("bitalloc.checkpoint", 2, "run 7")


def test_tied_weights_can_be_saved(tmp_path):
    weight = torch.randn(4)
    CheckpointStore(tmp_path / "file", "run").save(checkpoint(model={"a": weight, "b": weight, "c": weight[1:]}))
    model = CheckpointStore(tmp_path / "file", "run").load().model
    assert torch.equal(model["a"], weight)
    assert torch.equal(model["c"], weight[1:])


def test_nothing_to_load_is_none(tmp_path):
    assert CheckpointStore(tmp_path / "file", "run").load() is None


def test_the_last_two_are_kept_and_deleted(tmp_path):
    store = CheckpointStore(tmp_path / "file", "run")
    for step in (1, 2, 3):
        store.save(checkpoint(step))
    assert store.load().step == 3
    store.path.unlink()
    assert store.load().step == 2
    store.delete()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    folder = tmp_path_factory.mktemp("flip")
    store = CheckpointStore(folder / "file", "run")
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    content = bytearray(store.path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    store.path.write_bytes(content)
    assert store.load().step == 1


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
def test_both_damaged_is_an_error_that_names_the_file(tmp_path, length):
    store = CheckpointStore(tmp_path / "file", "run")
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    for path in (store.path, store.previous):
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"no checkpoint is whole: .*file is damaged"):
        store.load()


def test_edited_header_is_noticed(tmp_path):
    store = CheckpointStore(tmp_path / "file", "run")
    store.save(checkpoint())
    with safe_open(store.path, framework="pt") as file:
        metadata = file.metadata()
    metadata["header"] = metadata["header"].replace('"run"', '"mine"')
    save_file(load_file(store.path), store.path, metadata)
    with pytest.raises(FileError, match="checksum"):
        store.load()


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "file")
    with pytest.raises(FileError, match="damaged"):
        CheckpointStore(tmp_path / "file", "run").load()


def test_state_that_is_not_plain_data_is_refused_by_name(tmp_path):
    with pytest.raises(FileError, match=r"checkpoint\.model\.thing is a object"):
        CheckpointStore(tmp_path / "file", "run").save(checkpoint(model={"thing": object()}))
    assert list(tmp_path.iterdir()) == []


def test_random_state_replays_all_generators():
    import random

    import numpy as np

    own = torch.Generator()

    def draw():
        return random.random(), float(np.random.randn()), float(torch.rand(())), float(torch.rand((), generator=own))

    draw()
    state = unpack(json.loads(json.dumps(pack(capture([own]), tensors := {}, origin="random"))), tensors)
    first, second = draw(), draw()
    assert first != second
    restore(state, [own])
    assert (draw(), draw()) == (first, second)
