"""Inputs on asymmetric grids: the zero point is in the file, padding stays exact, and ONNX Runtime agrees with PyTorch."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from bitalloc.export import deploy, export_onnx, onnx_session
from bitalloc.wrap import quantized_layers

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}


class Net(nn.Module):
    """Padded, depthwise, strided and transposed convolutions behind the activation, a residual add, a linear layer."""

    def __init__(self, act):
        super().__init__()
        self.act = act()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=2)
        self.up = nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = x + self.pointwise(self.act(self.depthwise(x)))
        x = self.act(self.up(self.act(self.down(self.act(x)))))
        x = self.act(self.again(x))
        return self.head(x.mean((2, 3)))


# Every width on some input; the numbers are verified one by one below.
MIXED = {"stem.0": "w8a8", "depthwise.0": "w6a7", "pointwise": "w5a6", "down": "w4a5", "up": "w3a4", "again": "w2a3", "head": "w7a8"}


def zero_points(model):
    return {name: layer.grid.zero_point for name, layer in model.named_modules() if hasattr(layer, "grid")}


@pytest.mark.parametrize(("act", "bits"), [("silu", "w2a2"), *((act, "mixed") for act in ACTIVATIONS)])
def test_onnx_runtime_agrees(act, bits, quantized, tmp_path):
    x = torch.randn(128, 3, 12, 12)
    model, description = quantized(Net(ACTIVATIONS[act]), x, *(("w8a8", MIXED) if bits == "mixed" else (bits, {"head": "w8a8"})))
    done = deploy(model, x[:2], description.producers)
    export_onnx(done.model, x[:2], tmp_path / "model.onnx")
    if bits == "mixed":  # at 2 bits no tail is worth a level
        widths = {name: layer.input_quantizer.bits for name, layer in quantized_layers(model).items()}
        assert sum(0 < point < 2 ** (widths[name] - 1) for name, point in zero_points(done.model).items()) >= 3
    (found,) = onnx_session(tmp_path / "model.onnx", threads=1).run(None, {"input": x.numpy()})
    expected = done.model(x)
    assert float(expected.std(0).min()) > 0
    assert torch.equal(torch.from_numpy(found).argmax(1), expected.argmax(1))
    # The two compute exp() and erf() differently in the last digit, which once in a while puts an activation on the level beside.
    differing = (torch.from_numpy(found) - expected).abs().amax(1) > 1e-5
    assert int(differing.sum()) <= 4


@pytest.fixture
def padded(quantized):
    """A 4-bit convolution with padding whose input lies on the levels -3 .. 12, and its input."""
    x = torch.rand(4, 3, 6, 6) * 1.6 - 0.4
    model, _ = quantized(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), x, "w4a4")
    quantizer = model[0].input_quantizer
    state = {**quantizer.state_dict(), "zero_point_4": torch.tensor([3]), "step_4": torch.tensor([0.1])}
    quantizer.load_state_dict(state)
    return model, x


def test_padding_is_zero_on_an_asymmetric_grid(padded):
    model, x = padded
    layer = deploy(model, x).model[0]
    assert (layer.grid.low, layer.grid.high, layer.grid.zero_point) == (-3, 12, 3)
    levels = torch.round(x / 0.1).clamp(-3, 12)
    sums = F.conv2d(levels.double(), layer.codes.double(), layer.bias_codes.double(), padding=1)
    assert torch.equal(layer(x), sums.float() * layer.output_scale.reshape(-1, 1, 1))
    torch.testing.assert_close(layer(x), model(x), rtol=0, atol=float(layer.output_scale.detach().max()))


def test_the_file_holds_the_zero_point_and_the_range_as_bytes(padded, tmp_path):
    model, x = padded
    done = deploy(model, x)
    export_onnx(done.model, x, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"}
    constants |= {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (quantize,) = (node for node in graph.node if node.op_type == "QuantizeLinear")
    (clip,) = (node for node in graph.node if node.op_type == "Clip")
    assert constants[quantize.input[2]] == 3
    assert [int(constants[name]) for name in clip.input[1:]] == [0, 15]
    (found,) = onnx_session(tmp_path / "model.onnx", threads=1).run(None, {"input": x.numpy()})
    assert torch.equal(torch.from_numpy(found), done.model(x))


def test_a_batch_norm_folds_into_a_layer_with_an_asymmetric_input(quantized):
    x = F.silu(torch.randn(32, 3, 6, 6))
    model, description = quantized(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)), x, "w4a4")
    done = deploy(model, x, description.producers)
    assert done.folded == {"1": "0"}
    assert 0 < done.model[0].grid.zero_point < 8
    torch.testing.assert_close(done.model(x), model(x), rtol=0, atol=float(done.model[0].output_scale.max()))
