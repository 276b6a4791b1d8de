import logging
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from bitalloc.errors import ExportError, FileError, MissingDependencyError
from bitalloc.export import deploy, export_onnx, onnx_session, verify_onnx
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import quantize


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Small(nn.Module):
    """Residual adds, a depthwise convolution, a strided and grouped one with a bias and no batch norm, pooling, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = Residual(16)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.block(torch.relu(self.norm(self.stem(x))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def written(model, description, x, path):
    done = deploy(model, x[:2], description.producers)
    export_onnx(done.model, x[:2], path)
    return done


@pytest.mark.parametrize(
    ("bits", "pins"),
    [
        ("w8a8", {}),
        ("w4a4", {"stem": "w8a32", "block.conv1": "w2a3", "down": "w5a7", "head": "w8a8"}),
        # Behind a QuantizeLinear the runtime would quantize the float weights of "down" to 8 bits on its own.
        ("w3a2", {"stem": "w8a8", "block.conv2": "w6a32", "down": "w32a6", "head": "w32a32"}),
    ],
)
def test_onnx_runtime_predicts_like_the_deployed_model(bits, pins, quantized, tmp_path):
    x = torch.randn(128, 3, 12, 12)
    model, description = quantized(Small(), x, bits, pins)
    done = written(model, description, x, tmp_path / "model.onnx")
    assert len(done.folded) == 3
    result = verify_onnx(tmp_path / "model.onnx", done.model, [(x[:100], None), (x[100:], None)], threads=1)
    assert result.images == 128
    assert result.agreement == 1.0
    assert result.max_abs_diff <= 1e-5


def test_extreme_8_bit_codes_do_not_saturate_and_only_integer_kernels_run(quantized, tmp_path, capfd):
    """Pairs of products of 255 and 127 do not fit 16 bits, which some integer kernels add in."""
    x = torch.rand(16, 8, 6, 6) + 1
    net = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 16))
    model, description = quantized(net, x, "w8a8")
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.9, 0.1, -0.1))
            layer.weight_quantizer.step_8.fill_(0.1 / 127)
            layer.input_quantizer.step_8.mul_(0.3)
    path = tmp_path / "model.onnx"
    level = logging.getLogger("torch.onnx").level
    done = written(model, description, x, path)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level
    result = verify_onnx(path, done.model, [(x,)], threads=1)
    assert result.max_abs_diff <= 1e-6 * float(done.model(x).abs().max())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert {"QLinearConv", "QGemm"} <= found
    assert not {"Conv", "FusedConv", "Gemm", "DequantizeLinear", "BatchNormalization"} & found


class Zoo(nn.Module):
    """Layers that are no 2-D convolution, one after the other; one of them is used twice."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 8, 3, stride=2, dilation=2)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose2d(1, 6, 3, stride=2, output_padding=1)
        self.up_norm = nn.BatchNorm2d(6)
        self.up_groups = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.solid = nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular")
        self.words = nn.Linear(21, 21)
        self.last = nn.Linear(21, 6, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.line(x))).unsqueeze(1)
        x = self.up_groups(torch.relu(self.up_norm(self.up(x)))).unsqueeze(1)
        x = self.solid(x).mean((1, 2))[..., :21]
        x = torch.nn.functional.gelu(self.words(torch.nn.functional.gelu(self.words(x))))
        return self.last(x)


def test_all_other_kinds_of_layers_agree_too(quantized, tmp_path):
    x = torch.randn(16, 4, 24)
    model, description = quantized(Zoo(), x, "w4a8")
    done = written(model, description, x, tmp_path / "model.onnx")
    assert set(done.folded) == {"norm", "up_norm"}
    session = onnx_session(tmp_path / "model.onnx", threads=1)
    (found,) = session.run(None, {"input": x.numpy()})
    expected = done.model(x).numpy()
    assert found.shape == (16, 20, 6)
    assert np.abs(found - expected).max() <= 1e-5


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A deployed model with 80 000 weights at 3 bits, written once; the tests below only look at it."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 96, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1536, 10)).eval()
    shapes = {name: tuple(net[int(name)].weight.shape) for name in ("0", "2", "5")}
    model = quantize(net, Policy(dict.fromkeys(shapes, Bits(3, 3)), shapes), calibration=[x])
    path = tmp_path_factory.mktemp("wide") / "model.onnx"
    done = deploy(model, x)
    export_onnx(done.model, x[:1], path, {"note": "a text"})
    return done.model, path, x


def test_weights_are_one_byte_each_on_disk(wide):
    model, path, _ = wide
    weights = sum(model[index].codes.numel() for index in (0, 2, 5))
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert weights < path.stat().st_size < weights + 20_000
    for index in (0, 2, 5):
        stored = tensors[f"{index}.codes"]
        assert stored.data_type == TensorProto.INT8
        codes = onnx.numpy_helper.to_array(stored)
        assert np.array_equal(codes, model[index].codes.numpy())
        assert codes.min() >= -4
        assert codes.max() <= 3
        assert tensors[f"{index}.bias_codes"].data_type == TensorProto.INT32


def test_the_format_is_one_that_runtimes_read_and_holds_no_notes_of_the_exporter(wide):
    _, path, _ = wide
    model = onnx.load(path)
    assert model.ir_version == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""] == [("", 21)]
    assert {entry.key: entry.value for entry in model.metadata_props} == {"note": "a text"}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b".py" not in path.read_bytes()


def test_activations_are_bytes_clipped_as_bytes(wide):
    _, path, _ = wide
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    clips = [node for node in graph.node if node.op_type == "Clip"]
    assert len(clips) == 3
    assert all(makers[node.input[0]].op_type == "QuantizeLinear" for node in clips)


def test_any_batch_size_runs(wide):
    model, path, x = wide
    session = onnx_session(path, threads=1)
    for size in (1, 3):
        (found,) = session.run(["output"], {"input": x[:size].numpy()})
        assert np.allclose(found, model(x[:size]).numpy(), atol=1e-5)


def test_a_model_with_quantizers_is_refused(quantized, tmp_path):
    x = torch.randn(4, 6)
    model, _ = quantized(nn.Sequential(nn.Linear(6, 3)), x, "w4a4")
    with pytest.raises(ExportError, match="layer 0 still has quantizers"):
        export_onnx(model, x, tmp_path / "model.onnx")


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


class Fixed(Branching):
    def forward(self, x):
        return self.layer(x.reshape(2, 6))


@pytest.mark.parametrize("kind", [Branching, Fixed])
def test_a_model_that_cannot_be_exported_is_an_error_and_the_old_file_stays(kind, quantized, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    x = torch.randn(2, 6)
    model, _ = quantized(kind(), x, "w4a4")
    with pytest.raises(ExportError, match=f"{kind.__name__} cannot be exported .*batch size"):
        export_onnx(deploy(model, x).model, x, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_a_file_error(quantized, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    x = torch.randn(4, 6)
    model, _ = quantized(nn.Sequential(nn.Linear(6, 3)), x, "w4a4")
    with pytest.raises(FileError, match="cannot write"):
        export_onnx(deploy(model, x).model, x, tmp_path / "taken" / "model.onnx")


def test_missing_onnx_is_a_sentence_that_says_what_to_install(quantized, tmp_path, monkeypatch):
    x = torch.randn(4, 6)
    model, _ = quantized(nn.Sequential(nn.Linear(6, 3)), x, "w4a4")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'bitalloc\[onnx\]'"):
        export_onnx(deploy(model, x).model, x, tmp_path / "model.onnx")
