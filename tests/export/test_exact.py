"""Residual networks of few bits predict in ONNX Runtime what they predict in PyTorch, bit for bit."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitalloc.export import deploy, export_onnx, onnx_session


class Residual(nn.Module):
    """Its second convolutions feed an addition, the others are quantized again."""

    def __init__(self, blocks=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(blocks))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for first, norm, second in zip(self.first, self.norms, self.second, strict=True):
            x = F.relu(x + second(F.relu(norm(first(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def exported(quantized, tmp_path):
    def export(bits):
        x = torch.randn(128, 3, 12, 12)
        model, description = quantized(Residual(), x, bits, {"head": "w8a8"})
        deployed = deploy(model, x[:2], description.producers).model
        export_onnx(deployed, x[:2], tmp_path / "model.onnx")
        with torch.no_grad():
            return tmp_path / "model.onnx", x, deployed(x)

    return export


@pytest.mark.parametrize("bits", ["w2a2", "w3a3", "w4a6", "w8a8"])
def test_not_one_activation_is_on_another_level(bits, exported):
    path, x, expected = exported(bits)
    found = torch.from_numpy(onnx_session(path, threads=1).run(None, {"input": x.numpy()})[0])
    assert torch.equal(found.argmax(1), expected.argmax(1))
    # Levels are coarse: a single one that differed would show far above the rounding of the last layer's float arithmetic.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_without_optimisations_too(exported):
    path, x, expected = exported("w3a3")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), expected, rtol=1e-5, atol=1e-5)


def test_only_convolutions_whose_output_is_not_quantized_are_scaled_afterwards(exported):
    graph = onnx.load(exported("w3a3")[0]).graph
    makers = {name: node for node in graph.node for name in node.output}
    scaled = [node for node in graph.node if node.op_type == "Mul" and makers[node.input[0]].op_type == "Conv"]
    # The stem and the blocks' second convolutions feed an addition; the blocks' first ones are quantized again.
    assert len(scaled) == 5
    assert Counter(node.op_type for node in graph.node)["Conv"] == 9
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert all(read & set(node.output) for node in graph.node)
    assert all(tensor.name in read for tensor in graph.initializer)


def test_the_sums_of_a_convolution_have_no_rounding(quantized, tmp_path):
    """Sums of 576 products of dequantized numbers would differ from PyTorch's in the last digits; those of codes do not."""
    x = torch.rand(4, 64, 8, 8)
    model, description = quantized(nn.Sequential(nn.Conv2d(64, 8, 3)), x, "w4a4")
    deployed = deploy(model, x[:2], description.producers).model
    export_onnx(deployed, x[:2], tmp_path / "model.onnx")
    found = onnx_session(tmp_path / "model.onnx", threads=1).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(found), deployed(x))
