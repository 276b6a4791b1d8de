"""Bad input: each ends in one clear sentence, and loses nothing that was on disk."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Contents = Callable[[Path], dict[str, bytes]]
RECIPE_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"modle": "a:b"}, "recipe.toml: key 'modle': is not a known key (did you mean 'model'?)."),
    ({"finetun": {"epochs": 1}}, "recipe.toml: key 'finetun': is not a known key (did you mean 'finetune'?)."),
    ({"finetune": {"epoch": 1}}, "recipe.toml: key 'finetune.epoch': is not a known key (did you mean 'epochs'?)."),
    ({"zzz": 1}, "recipe.toml: key 'zzz': is not a known key; check its spelling"),
    ({"batch_size": "many"}, "key 'batch_size': input should be a valid integer"),
    ({"batch_size": 0}, "key 'batch_size': input should be greater than 0, but it is 0"),
    ({"finetune": {"epochs": -1}}, "key 'finetune.epochs': input should be greater than or equal to 0"),
    ({"seed": -1}, "key 'seed': "),
    ({"model": "tiny_module.net"}, "key 'model': expected package.module:function, but it is 'tiny_module.net'."),
    ({"levels": []}, "key 'levels': is empty, expected at least one entry."),
    ({"levels": 3}, "key 'levels': expected a list (in TOML [[levels]] if its entries are sections), but it is 3."),
    (
        {"levels": [{"name": "a/b", "budgets": {"bitops": 1}}]},
        "recipe.toml: key 'levels.0.name': expected letters, digits, '_', '.' and '-'",
    ),
    ({"levels": [{"name": "a", "budgets": {}}]}, "recipe.toml: key 'levels.0.budgets': is empty, expected at least one entry."),
    ({"levels": [{"name": "a", "budgets": {"bitops": [1]}}]}, "key 'levels.0.budgets.bitops"),
    ({"levels": [{"name": name, "budgets": {"bitops": "w3a3"}} for name in "aba"]}, "recipe.toml: two levels are named a"),
    (
        {"space": {"first_last": "8 bits"}},
        "key 'space.first_last': input should be '' or '8 bits' is not a pair of bit-widths",
    ),
    ({"space": {"weight": [9, 4]}}, "key 'space.weight.0': 9 bits are not supported, expected one of 2, 3, 4, 5, 6, 7, 8, 32"),
    ({"space": {"act": [4, 4]}}, "key 'space.act': a width is there twice"),
    ({"space": {"weight": []}}, "key 'space.weight': is empty"),
    ({"space": {"first_act": 1}}, "key 'space.first_act': 1 bits are not supported"),
    ({"space": {"pins": {"head": "w9a9"}}}, "weight width 9 is not supported"),
    ({"measure": {"projection": "some"}}, "key 'measure.projection': input should be 'isotonic', 'erase' or 'none'"),
]
PLAN_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"model": "tiny_module:nothing_to_quantize"}, "Sequential has no quantizable layer"),
    ({"model": "tiny_module:missing"}, "model = 'tiny_module:missing': the module tiny_module has no function missing."),
    ({"model": "no_such_module:net"}, "model = 'no_such_module:net': the module no_such_module cannot be imported"),
    ({"model": "tiny_module:no_module"}, "model = 'tiny_module:no_module' returned a str, expected a torch.nn.Module."),
    ({"model_options": {"depth": 3}}, "got an unexpected keyword argument 'depth'"),
    ({"data": "tiny_module:missing"}, "data = 'tiny_module:missing': the module tiny_module has no function missing."),
    ({"data": "tiny_module:raises"}, "data = 'tiny_module:raises': calling it with"),
    ({"data": "tiny_module:net"}, "got an unexpected keyword argument"),
    ({"data": "tiny_module:broken", "data_options": {"kind": "without test"}}, "returned a SimpleNamespace without test"),
    (
        {"data": "tiny_module:broken", "data_options": {"kind": "without length"}},
        "train is a list_iterator, expected batches that have a length",
    ),
    ({"data": "tiny_module:broken", "data_options": {"kind": "streamed"}}, "train is a DataLoader, expected batches that have a length"),
    ({"input_shape": [3, 8, 8]}, "the forward pass of Net failed on the example input of shape (1, 3, 8, 8)"),
    ({"space": {"pins": {"haed": "w8a8"}}}, "the pattern 'haed' matches no layer. The layers are: stem.0, body.0, body.3, head"),
    ({"space": {"include": ["layer*"]}}, "the pattern 'layer*' matches no layer"),
    ({"space": {"exclude": ["fc"]}}, "the pattern 'fc' matches no layer"),
    ({"quantizers": {"act_grids": {"haed": "signed"}}}, "the pattern 'haed' matches no layer"),
    ({"space": {"exclude": ["*"]}}, "no layer is left to quantize"),
    ({"space": {"weight": [4], "act": [4]}}, "every layer has one candidate only"),
    ({"levels": [{"name": "a", "budgets": {"bitopps": "w3a3"}}]}, "level a: 'bitopps' is no budget: expected one of bitops, weight_bytes"),
    (
        {"levels": [{"name": "a", "budgets": {"weight_bytes": "70 bites"}}]},
        "level a: the budget weight_bytes = '70 bites' has the unknown unit",
    ),
    ({"levels": [{"name": "a", "budgets": {"bitops": "few"}}]}, "level a: the budget bitops = 'few' does not start with a number"),
    ({"levels": [{"name": "a", "budgets": {"bitops": -1}}]}, "is not positive and finite"),
    # (576 + 12) x 8 x 8 + (576 + 256) x 2 x 2, and 36 + 12 + 9 + 4 bytes
    (
        {"levels": [{"name": "a", "budgets": {"bitops": "40k"}}]},
        "level a: no policy of the search space meets all budgets. bitops: limit 40000",
    ),
    ({"levels": [{"name": "a", "budgets": {"bitops": "40k"}}]}, "smallest reachable 40960"),
    ({"levels": [{"name": "a", "budgets": {"weight_bytes": "60B"}}]}, "smallest reachable 61"),
    (
        {"levels": [{"name": "a", "budgets": {"bitops": "w3a3"}, "uniform": "w4a4"}]},
        "level a: the uniform policy w4a4 is not inside the budgets",
    ),
    ({"levels": [{"name": "a", "budgets": {"bitops": "w3a3"}, "uniform": "w3a3"}]}, "the largest that is: "),
]


@pytest.mark.parametrize(("changes", "sentence"), RECIPE_ERRORS, ids=[sentence for _, sentence in RECIPE_ERRORS])
def test_a_recipe_that_is_not_valid(project: Any, changes: dict[str, Any], sentence: str) -> None:
    message = project.error("run", project.recipe(**changes), "--out", "out")
    assert sentence in message
    assert not Path("out").exists()


@pytest.mark.parametrize("key", ["name", "model", "data", "levels"])
def test_a_missing_key_is_named(project: Any, key: str) -> None:
    assert f"key '{key}': is missing" in project.error("run", project.recipe(key), "--out", "out")


@pytest.mark.parametrize(("changes", "sentence"), PLAN_ERRORS, ids=[f"{number} {error[1]}" for number, error in enumerate(PLAN_ERRORS)])
def test_a_recipe_that_cannot_be_done_is_refused_before_any_training(project: Any, changes: dict[str, Any], sentence: str) -> None:
    recipe = project.recipe(**changes)
    message = project.error("run", recipe, "--out", "out", "--dry-run")
    assert sentence in message
    assert not Path("out").exists()
    assert project.error("run", recipe, "--out", "out") == message
    assert not Path("out/float.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "recipe.toml does not exist: expected a recipe"), ("name = ", "cannot be read as TOML"), ("\udcff", "cannot be read as TOML")],
    ids=["missing", "no TOML", "no text"],
)
def test_a_recipe_that_cannot_be_read(project: Any, text: str | None, sentence: str) -> None:
    if text is not None:
        Path("recipe.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert sentence in project.error("run", "recipe.toml", "--out", "out")


def test_a_module_that_cannot_be_parsed(project: Any) -> None:
    Path("half_written.py").write_text("def net(:\n")
    message = project.error("describe", project.recipe(model="half_written:net"), "--out", "out")
    assert message.startswith("model = 'half_written:net': the module half_written cannot be imported (SyntaxError: ")


def test_the_run_folder_is_a_file(project: Any) -> None:
    Path("out").write_text("mine")
    assert (
        project.error("describe", project.recipe(), "--out", "out")
        == "the run folder out is a file, expected a folder: choose another --out."
    )
    assert Path("out").read_text() == "mine"


def test_the_run_folder_cannot_be_made(project: Any) -> None:
    Path("file").write_text("mine")
    message = project.error("describe", project.recipe(), "--out", "file/out")
    assert message == "cannot write to the run folder file/out: Not a directory. Choose another --out, or free it."


@pytest.mark.parametrize(
    ("kind", "stage", "sentence"),
    [
        ("nan", "measure", "the loss is nan at step 2"),
        ("empty train", "measure", "the loader is empty: there is no data to train on"),
        ("empty valid", "measure", "the loader is empty: there is no data to evaluate on"),
        ("empty calibration", "measure", "calibrat"),
        ("empty test", "evaluate", "the loader is empty: there is no data to evaluate on"),
    ],
)
def test_data_that_cannot_be_trained_on(project: Any, kind: str, stage: str, sentence: str) -> None:
    recipe = project.recipe(data="tiny_module:broken", data_options={"kind": kind})
    assert sentence in project.error(stage, recipe, "--out", "out")


def test_weights_that_are_not_finite(project: Any) -> None:
    message = project.error("measure", project.recipe(model="tiny_module:not_finite", float={"epochs": 0}), "--out", "out")
    assert "the tensor head.weight holds values that are not finite" in message


def test_float_weights_that_are_missing_or_of_another_model(finetuned: Path, project: Any) -> None:
    given = project.recipe(float={"weights": "given.safetensors"})
    assert "given.safetensors" in project.error("measure", given, "--out", "new")
    Path("given.safetensors").write_bytes((finetuned / "float.safetensors").read_bytes()[:-8])
    assert "given.safetensors cannot be read as weights" in project.error("measure", given, "--out", "new")
    Path("given.safetensors").write_bytes((finetuned / "mixed.safetensors").read_bytes())
    assert "given.safetensors do not fit Net; unexpected keys: " in project.error("measure", given, "--out", "new")


def _truncated(text: bytes) -> bytes:
    return text[: len(text) // 2]


def _of_another_kind(text: bytes) -> bytes:
    return b'{"schema": "bitalloc.table", "version": 1}'


def _emptied(text: bytes) -> bytes:
    return re.sub(rb'"(layers|weight|done)": \{', rb'"gone": {', text.replace(b'"layers": [', b'"gone": ['))


def _no_text(text: bytes) -> bytes:
    return b"\xff\xfe" + text


@pytest.mark.parametrize("damaged", [_truncated, _of_another_kind, _emptied, _no_text])
@pytest.mark.parametrize("name", ["layers.json", "importance.json", "policy.json", "stages.json"])
def test_a_damaged_json_file(finetuned: Path, project: Any, contents: Contents, name: str, damaged: Callable[[bytes], bytes]) -> None:
    path = finetuned / name
    sound = path.read_bytes()
    path.write_bytes(damaged(sound))
    assert path.read_bytes() != sound
    before = contents(finetuned)
    message = project.error("finetune", "recipe.toml", "--out", "out")
    assert f"out/{name}" in message
    assert "Delete it, and " in message
    assert contents(finetuned) == before
    path.unlink()  # as the sentence says
    project.good("finetune", "recipe.toml", "--out", "out")
    assert contents(finetuned)["policy.json"] == before["policy.json"] or name == "policy.json"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("layers.json", "macs", '"many"'),
        ("layers.json", "weight_numel", "1"),
        ("importance.json", "4", "NaN"),
        ("importance.json", "4", "null"),
        ("policy.json", "weight_bits", "9"),
        ("policy.json", "act_bits", "true"),
        ("policy.json", "version", "99"),
    ],
)
def test_an_edited_value_that_makes_no_sense(finetuned: Path, project: Any, contents: Contents, name: str, key: str, value: str) -> None:
    path = finetuned / name
    path.write_text(re.sub(rf'"{key}": [^,\n]*', f'"{key}": {value}', path.read_text()))
    before = contents(finetuned)
    assert f"out/{name}" in project.error("finetune", "recipe.toml", "--out", "out")
    assert contents(finetuned) == before


def test_importance_without_a_layer(finetuned: Path, project: Any) -> None:
    path = finetuned / "importance.json"
    value = json.loads(path.read_text())
    del value["act"]["body.3"]
    path.write_text(json.dumps(value))
    message = project.error("search", "recipe.toml", "--out", "out")
    assert "out/importance.json: there is no importance for body.3 (activation at 4, 2 bits)" in message


def test_a_policy_of_another_model(finetuned: Path, project: Any, contents: Contents) -> None:
    path = finetuned / "policy.json"
    path.write_text(path.read_text().replace('"body.3"', '"body.7"'))
    before = contents(finetuned)
    message = project.error("finetune", "recipe.toml", "--out", "out")
    assert "out/policy.json: the policy belongs to another model" in message
    assert "body.7" in message
    assert contents(finetuned) == before


def test_a_policy_for_other_shapes(finetuned: Path, project: Any) -> None:
    path = finetuned / "policy.json"
    value = json.loads(path.read_text())
    value["layers"]["body.3"]["weight_shape"] = [8, 8, 1, 1]
    path.write_text(json.dumps(value))
    assert "body.3 (policy (8, 8, 1, 1), model (4, 4, 1, 1))" in project.error("finetune", "recipe.toml", "--out", "out")


@pytest.mark.parametrize(("name", "stage"), [("float.safetensors", "measure"), ("mixed.safetensors", "evaluate")])
@pytest.mark.parametrize("cut", [0, 4, 100, -8])
def test_truncated_weights(finetuned: Path, project: Any, contents: Contents, name: str, stage: str, cut: int) -> None:
    path = finetuned / name
    path.write_bytes(path.read_bytes()[:cut])
    before = contents(finetuned)
    message = project.error(stage, "recipe.toml", "--out", "out")
    assert f"out/{name}" in message
    assert "Delete it, and the next run makes it again." in message
    assert contents(finetuned) == before
    path.unlink()
    project.good(stage, "recipe.toml", "--out", "out")


def test_an_edited_bit_in_the_quantized_weights(finetuned: Path, project: Any) -> None:
    path = finetuned / "mixed.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "out/mixed.safetensors was edited or damaged" in project.error("evaluate", "recipe.toml", "--out", "out")


def test_damaged_reports(finished: Path, project: Any) -> None:
    for name in ("evaluation.json", "second/search.json", "export.json", "measure.json"):
        path = finished / name
        sound = path.read_bytes()
        for content in (b"{}", b"[]", sound[:-20]):
            path.write_bytes(content)
            message = project.error("run", "recipe.toml", "--out", "out")
            assert f"out/{name}" in message
            assert "Delete it, and the next run makes it again." in message
        path.write_bytes(sound)
    project.good("run", "recipe.toml", "--out", "out")


def test_a_full_disk_at_every_moment(project: Any, contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for no file, then for one more file, then for two more, and so on, until the job is done."""
    project.recipe()
    real, room, failures = os.fsync, 0, 0

    def fsync(handle: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    while failures < 30:
        room = failures
        result = project.run("finetune", "recipe.toml", "--out", "out")
        if result.exit_code == 0:
            break
        failures += 1
        last = result.stderr.splitlines()[-1]
        assert re.fullmatch(r"Error: cannot write out/\S+: No space left on device\. The file was left as it was; free some space .*", last)
        assert "Traceback" not in result.stderr
    assert failures > 5
    monkeypatch.undo()
    monkeypatch.chdir(project.folder)
    project.good("finetune", "recipe.toml", "--out", "whole")
    same = [name for name in contents(Path("whole")) if name.endswith((".safetensors", "policy.json", "importance.json"))]
    assert {name: contents(Path("out"))[name] for name in same} == {name: contents(Path("whole"))[name] for name in same}


def test_a_disk_that_cannot_make_files(finetuned: Path, project: Any, contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def mkstemp(**_: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(finetuned)
    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    message = project.error("finetune", project.recipe(finetune={"epochs": 0.5}), "--out", "out")
    assert "No space left on device. Nothing was changed." in message
    assert contents(finetuned) | {"training.jsonl": b""} == before | {"training.jsonl": b""}  # the log is only added to


def test_onnx_that_is_not_installed_is_found_before_the_training(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitalloc.export.verify.find_spec", lambda name: None if name == "onnxruntime" else name)
    result = project.run("run", project.recipe(), "--out", "fresh")
    assert result.exit_code == 1
    assert "onnxruntime" in result.stderr
    assert "bitalloc[onnx]" in result.stderr
    assert not Path("fresh").exists()


def test_a_model_file_that_was_not_the_one_compared(finished: Path, project: Any) -> None:
    model = Path("out/model.onnx")
    model.write_bytes(model.read_bytes()[:100])
    assert "not the file that was compared" in project.error("run", project.recipe(), "--out", "out")
    model.unlink()
    project.good("run", project.recipe(), "--out", "out")


@pytest.mark.parametrize("name", ["checkpoints", "policy.json", "x.onnx"])
def test_a_level_cannot_take_the_name_of_a_file_of_the_run(project: Any, name: str) -> None:
    levels = [{"name": "first", "budgets": {"bitops": "w4a4"}}, {"name": name, "budgets": {"bitops": "w4a4"}}]
    assert name in project.error("run", project.recipe(levels=levels), "--out", "fresh")
