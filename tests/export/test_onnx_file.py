import logging
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from bitalloc.errors import ExportError, FileError, MissingDependencyError
from bitalloc.export import deploy, export_onnx, onnx_session, verify_onnx
from bitalloc.policy import Bits


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


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("bits", "stem"),
    [("w8a8", "w8a8"), ("w4a4", "w8a8"), ("w2a3", "w8a32"), ("w5a7", "w5a7"), ("w3a2", "w8a8"), ("w6a32", "w6a32")],
)
def test_onnx_runtime_predicts_like_the_deployed_model(bits, stem, quantized, tmp_path):
    x = torch.randn(128, 3, 12, 12)
    model, description = quantized(Small(), x, bits, {"stem": stem})
    done = written(model, description, x, tmp_path / "model.onnx")
    assert len(done.folded) == 3
    result = verify_onnx(tmp_path / "model.onnx", done.model, [(x[:100], None), (x[100:], None)], threads=1)
    assert result.images == 128
    assert result.agreement == 1.0
    assert result.max_abs_diff <= 1e-5


def test_extreme_8_bit_codes_do_not_saturate(quantized, tmp_path):
    """Pairs of products of 255 and 127 do not fit 16 bits, which some integer kernels add in."""
    x = torch.rand(16, 8, 6, 6) + 1
    model, description = quantized(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)), x, "w8a8")
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.9, 0.1, -0.1))
            layer.weight_quantizer.step_8.fill_(0.1 / 127)
            layer.input_quantizer.step_8.mul_(0.3)
    done = written(model, description, x, tmp_path / "model.onnx")
    result = verify_onnx(tmp_path / "model.onnx", done.model, [(x,)], threads=1)
    assert result.max_abs_diff <= 1e-6 * float(done.model(x).abs().max())


OTHERS = {
    "conv1d": (nn.Sequential(nn.Conv1d(4, 8, 3, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 5, 3, dilation=2)), (16, 4, 24)),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(4, 8, 3, stride=2, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, groups=2)
        ),
        (16, 4, 5, 5),
    ),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 2, padding=1, padding_mode="circular")), (4, 2, 4, 4, 4)),
    "sequences": (nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 6, bias=False)), (16, 5, 16)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_agree_too(name, quantized, tmp_path):
    net, shape = OTHERS[name]
    x = torch.randn(shape)
    model, description = quantized(net, x, "w4a8")
    done = written(model, description, x, tmp_path / "model.onnx")
    session = onnx_session(tmp_path / "model.onnx", threads=1)
    (found,) = session.run(None, {"input": x.numpy()})
    assert np.abs(found - done.model(x).numpy()).max() <= 1e-5


def test_float_weights_stay_float_in_the_runtime(quantized, tmp_path):
    """Behind a QuantizeLinear the runtime would quantize them to 8 bits on its own."""
    x = torch.randn(16, 4, 8, 8)
    model, description = quantized(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), x, "w32a4")
    done = written(model, description, x, tmp_path / "model.onnx")
    result = verify_onnx(tmp_path / "model.onnx", done.model, [(x, None)], threads=1)
    assert result.max_abs_diff <= 1e-5


def test_the_runtime_makes_integer_kernels_of_the_file(quantized, tmp_path):
    import onnxruntime

    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    model, description = quantized(net, x, "w4a8")
    written(model, description, x, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = kinds(tmp_path / "optimised.onnx")
    assert "QLinearConv" in found
    assert "QGemm" in found
    assert "Conv" not in found
    assert "DequantizeLinear" not in found


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A deployed model with 80 000 weights at 3 bits, written once; the tests below only look at it."""
    from bitalloc.policy import Policy
    from bitalloc.wrap import quantize

    torch.manual_seed(0)
    x = torch.rand(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 96, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)).eval()
    net(x)
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


def test_nothing_is_printed_and_logging_is_as_before(quantized, tmp_path, capfd):
    x = torch.randn(4, 6)
    level = logging.getLogger("torch.onnx").level
    model, description = quantized(nn.Sequential(nn.Linear(6, 3)), x, "w4a4")
    written(model, description, x, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level


def test_a_model_with_quantizers_is_refused(quantized, tmp_path):
    x = torch.randn(4, 6)
    model, _ = quantized(nn.Sequential(nn.Linear(6, 3)), x, "w4a4")
    with pytest.raises(ExportError, match="layer 0 still has quantizers"):
        export_onnx(model, x, tmp_path / "model.onnx")


def test_a_model_that_cannot_be_traced_is_an_error_and_the_old_file_stays(quantized, tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)

    path = tmp_path / "model.onnx"
    path.write_text("old")
    x = torch.randn(4, 6)
    model, _ = quantized(Branching(), x, "w4a4")
    with pytest.raises(ExportError, match="Branching cannot be exported"):
        export_onnx(deploy(model, x).model, x, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_fixed_batch_size_is_an_error(quantized, tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x.reshape(4, 6))

    x = torch.randn(4, 6)
    model, _ = quantized(Fixed(), x, "w4a4")
    with pytest.raises(ExportError, match="batch size"):
        export_onnx(deploy(model, x).model, x, tmp_path / "model.onnx")


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


def test_the_package_is_imported_without_onnx():
    code = """
        import sys
        import bitalloc.export
        loaded = [name for name in ("onnx", "onnxscript", "onnxruntime", "onnx_ir") if name in sys.modules]
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
