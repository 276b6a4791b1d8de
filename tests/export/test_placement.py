"""Activations are quantized where the deployed graph has its tensors: behind what a runtime fuses into a convolution."""

import onnx
import pytest
import torch
from torch import nn

from bitalloc.export import deploy, export_onnx


def graph_of(quantized, path, net, x, bits="w4a4"):
    model, description = quantized(net, x, bits)
    deployed = deploy(model, x, description.producers).model
    export_onnx(deployed, x[:2], path)
    return deployed, onnx.load(path).graph


@pytest.mark.parametrize(("norm", "act", "between"), [(True, nn.ReLU, ["Relu"]), (False, nn.Identity, [])])
def test_nothing_is_quantized_between_a_convolution_and_its_relu(norm, act, between, quantized, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), act(), nn.Conv2d(4, 2, 3))
    deployed, graph = graph_of(quantized, tmp_path / "model.onnx", net, torch.randn(8, 3, 8, 8))
    order = [node.op_type for node in graph.node if node.op_type not in ("DequantizeLinear", "Clip", "Mul", "Constant")]
    assert order == ["QuantizeLinear", "Conv", *between, "QuantizeLinear", "Conv"]
    # The network's input has both signs; what is behind a ReLU has not, and a convolution's own output has.
    assert deployed[0].grid.zero_point == 8
    assert deployed[3].grid.zero_point == (0 if between else 8)


def test_a_linear_layer_keeps_its_gelu_in_front_of_the_next_quantizer(quantized, tmp_path):
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    deployed, graph = graph_of(quantized, tmp_path / "model.onnx", net, torch.randn(256, 16))
    order = [node.op_type for node in graph.node if node.op_type in ("QuantizeLinear", "Gemm", "Gelu", "Erf")]
    assert order[:2] == ["QuantizeLinear", "Gemm"]
    assert order[2] in ("Gelu", "Erf")
    assert order[3:] == ["QuantizeLinear", "Gemm"]
    assert 0 < deployed[2].grid.zero_point < 8
