"""A data set that changed between two runs in a folder is said; what was trained before stays until the new is there."""

import logging
from pathlib import Path
from typing import Any

import pytest


def test_changed_data_are_said_once_and_the_checkpoint_of_before_stays(project: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    project.good("measure", project.recipe(data_options={"images": 48}), "--out", "out")
    assert "data are not those" not in caplog.text
    unfinished = Path("out/checkpoints/finetune.first.mixed-0123456789ab.safetensors")
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.write_bytes(b"of the former data")
    recipe = project.recipe(data_options={"images": 36})
    project.good("measure", recipe, "--out", "out")
    assert caplog.text.count("The data are not those of the last run in out") == 1
    assert unfinished.exists()
    caplog.clear()
    project.good("measure", recipe, "--out", "out")
    assert "data are not those" not in caplog.text


def test_a_damaged_record_of_the_data_is_named(project: Any) -> None:
    project.good("measure", project.recipe(), "--out", "out")
    Path("out/data.json").write_text("{")
    assert "data.json is not valid JSON" in project.error("measure", "recipe.toml", "--out", "out")
