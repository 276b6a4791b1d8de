"""The levels of activations, set in a recipe."""

from pathlib import Path
from typing import Any

from bitalloc import load_checkpoint


def test_the_grid_of_an_input_can_be_set_by_pattern(project: Any) -> None:
    project.good("finetune", project.recipe(quantizers={"act_grids": {"body.*": "signed", "body.3": "auto"}}), "--out", "out")
    for kind in ("mixed", "uniform"):
        state, policy, settings = load_checkpoint(Path("out", f"{kind}.safetensors"))
        found = {name: int(state[f"{name}.input_quantizer.zero_point_{bits.act}"]) for name, bits in policy.bits.items()}
        # All but the first read what a ReLU gave.
        assert found["body.0"] == 2 ** (policy.bits["body.0"].act - 1)
        assert found["body.3"] == found["head"] == 0
        assert settings["act_grids"] == {"body.*": "signed", "body.3": "auto"}
