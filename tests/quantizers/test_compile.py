"""A whole quantized network through ``torch.compile``: the loss and all gradients are those of eager code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitalloc as ba
from bitalloc.quantizers import kernel

pytestmark = pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # from PyTorch's own tracing


def network(channel_steps):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    images = torch.randn(4, 3, 8, 8)
    description = ba.describe(model, images[:1])
    policy = ba.Policy.uniform(description.layers, ba.Bits(4, 4))
    settings = ba.QuantizerSettings(per_channel=channel_steps)
    return ba.quantize(model, policy, calibration=[images], settings=settings), images


def gradients(model, images, precision):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = F.cross_entropy(model(images).float(), torch.arange(4))
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal_to_eager(backend, channel_steps=False, precision="float32"):
    torch.compiler.reset()
    model, images = network(channel_steps)
    loss, expected = gradients(model, images, precision)
    compiled_loss, found = gradients(torch.compile(model, backend=backend, fullgraph=True), images, precision)
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert any("step" in name and gradient.any() for name, gradient in expected.items())
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=["kernel", "no kernel"])
def machine(request, monkeypatch):
    """This one, and one without a compiler."""
    if request.param == "no kernel":
        monkeypatch.setattr(kernel, "load", lambda: kernel.KernelUnavailable("there is no C compiler"))
    elif isinstance(kernel.load(), kernel.KernelUnavailable):
        pytest.skip(f"no kernel: {kernel.load()}")


@pytest.mark.parametrize(("channel_steps", "precision"), [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_loss_and_gradients_are_those_of_eager_code(machine, channel_steps, precision):
    assert_equal_to_eager("aot_eager", channel_steps, precision)
