"""Fine-tuning from a float model whose batch norms are folded."""

import json
from pathlib import Path
from typing import Any

from bitalloc import Policy, load_checkpoint

FOLDED = {"finetune": {"fold_batch_norms": True}}


def test_folded_networks_are_trained_evaluated_and_exported(project: Any) -> None:
    recipe = project.recipe(finetune={"fold_batch_norms": True, "distillation": 0.5})
    project.good("run", recipe, "--out", "out")
    for kind in ("mixed", "uniform"):
        state, policy, _ = load_checkpoint(Path("out", f"{kind}.safetensors"))
        assert not [name for name in state if "running" in name]
        assert {f"{layer}.bias" for layer in policy.bits} <= set(state)
    assert set(Policy.load(Path("out/policy.json")).bits) == {"stem.0", "body.0", "body.3", "head"}
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["levels"][0]["onnx_agreement"] == 1.0
    again = project.good("run", recipe, "--out", "out").stderr.splitlines()
    assert {line.split(": ")[1] for line in again} == {"done before"}


def test_only_the_fine_tuning_and_what_follows_depends_on_it(finetuned: Path, project: Any) -> None:
    batch_norms = [name for name in load_checkpoint(finetuned / "mixed.safetensors")[0] if "running" in name]
    assert len(batch_norms) == 6
    log = project.good("finetune", project.recipe(**FOLDED), "--out", "out").stderr.splitlines()
    started = [line for line in log if line.endswith(": started")]
    assert started == ["finetune/first/mixed: started", "finetune/first/uniform: started"]


def test_the_joint_training_has_batch_norms_and_so_cannot_be_inherited(project: Any) -> None:
    message = project.error("run", project.recipe(finetune={"fold_batch_norms": True, "start": "joint"}), "--out", "out")
    assert "fold_batch_norms needs start" in message
    assert not Path("out").exists()
