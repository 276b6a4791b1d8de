"""Recipes with networks of a user's own: layers named after parameters, and networks that ONNX's exporter refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitalloc import Policy

ATTENTION = {"model": "tiny_module:attention", "levels": [{"name": "first", "budgets": {"mean_bits": 4}}], "space": {"first_last": ""}}


def test_a_layer_named_after_its_parameter_is_found_again(project: Any) -> None:
    recipe = project.recipe(**ATTENTION)
    project.good("run", recipe, "--out", "out", "--dry-run")
    project.good("finetune", recipe, "--out", "out")
    assert "attn.in_proj_weight" in Policy.load(Path("out/policy.json")).bits
    assert "finetune/first/mixed: done before" in project.good("finetune", recipe, "--out", "out").stderr


def test_an_export_that_fails_says_where_the_results_are(project: Any) -> None:
    pytest.importorskip("onnx")
    message = project.error("run", project.recipe(model="tiny_module:branching"), "--out", "out")
    assert message.startswith("level first: ")
    assert "out/evaluation.json" in message
    assert 0 <= json.loads(Path("out/evaluation.json").read_text())["levels"]["first"]["mixed_top1"] <= 1
