"""A fixed part of the compatibility sweep: every check on models that between them have all that is hard to wrap."""

import warnings
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries of models are not ours

MODELS = (
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/densenet121",
    "torchvision/swin_t",
    "torchvision/lraspp_mobilenet_v3_large",
    "timm/convnext_atto",
    "timm/vit_tiny_patch16_224",
    "timm/nf_regnet_b0",
    "timm/mixer_s32_224",
    "timm/ghostnet_050",
    "transformers/BertForMaskedLM",
    "transformers/GPT2LMHeadModel",
    "transformers/LlamaForCausalLM",
    "transformers/WhisperEncoder",
)


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    from benchmarks.compatibility.torchvision_ops import provide_torchvision_operators

    provide_torchvision_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from benchmarks.compatibility.__main__ import all_cases

        return {case.name: case for case in all_cases()}


@pytest.mark.parametrize("name", MODELS)
def test_every_check_of_the_sweep(name: str, cases: dict[str, Any]) -> None:
    from benchmarks.compatibility.__main__ import run

    result = run(cases[name])
    assert {check: outcome.reason for check, outcome in result.outcomes.items() if not outcome.passed} == {}
    assert result.green
