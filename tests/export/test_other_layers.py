"""What is no plain layer: embeddings, inputs shared by layers, parameters that the model's own code multiplies with."""

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.nn import functional as F

from bitalloc.errors import ExportError
from bitalloc.export import deploy, export_onnx, onnx_session, verify_onnx
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import QuantizerSettings, quantize


def quantized(model, x, bits, shared=(), per_channel=False):
    shapes = {}
    for name in bits:
        owner, _, attribute = name.rpartition(".")
        modules = dict(model.named_modules())
        weight = modules[name].weight if name in modules else getattr(modules[owner], attribute)
        shapes[name] = tuple(weight.shape)
    policy = Policy({name: Bits.parse(text) for name, text in bits.items()}, shapes, shared_inputs=shared)
    return quantize(model.eval(), policy, calibration=[x], settings=QuantizerSettings(per_channel=per_channel))


def run(model, x, path):
    export_onnx(model, x[:2], path)
    (found,) = onnx_session(path, threads=1).run(None, {"input": x.numpy()})
    return torch.from_numpy(found)


def stored(path):
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16, padding_idx=0), nn.Linear(16, 50)

    def forward(self, ids):
        return self.head(F.gelu(self.table(ids).mean(1)))


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_embedding_is_a_table_of_integers(per_channel, tmp_path):
    ids = torch.randint(0, 50, (64, 7))
    model = quantized(Words(), ids, {"table": "w4a32", "head": "w8a8"}, per_channel=per_channel)
    deployed = deploy(model, ids).model
    assert torch.equal(deployed.table(ids), model.table(ids))
    found = run(deployed, ids, tmp_path / "model.onnx")
    torch.testing.assert_close(found, deployed(ids), rtol=0, atol=1e-5)
    codes = stored(tmp_path / "model.onnx")["table.codes"]
    assert codes.data_type == TensorProto.INT8
    values = numpy_helper.to_array(codes)
    assert (values.shape, values.min() >= -8, values.max() <= 7) == ((50, 16), True, True)


def test_an_embedding_that_renormalises_its_weights_is_refused_by_name():
    net = nn.Sequential(nn.Embedding(10, 4, max_norm=1.0), nn.Linear(4, 2))
    ids = torch.randint(0, 10, (8, 3))
    with pytest.raises(ExportError, match="layer 0 is an embedding with max_norm"):
        deploy(quantized(net, ids, {"0": "w4a32", "1": "w8a8"}), ids)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = F.silu(self.stem(x))
        return (self.left(x) + self.right(x)).mean((2, 3))


def test_layers_that_share_an_input_quantizer_are_exported_each(tmp_path):
    x = torch.randn(16, 3, 8, 8)
    bits = {"stem": "w8a8", "left": "w4a4", "right": "w3a4"}
    model = quantized(Branches(), x, bits, shared=(("left", "right"),))
    assert model.left.input_quantizer is model.right.input_quantizer
    deployed = deploy(model, x).model
    assert deployed.left.grid.zero_point == deployed.right.grid.zero_point
    assert torch.equal(deployed.left.input_scale, deployed.right.input_scale)
    atol = float(deployed.left.output_scale.max() + deployed.right.output_scale.max() + deployed.stem.output_scale.max())
    torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=atol)
    torch.testing.assert_close(run(deployed, x, tmp_path / "model.onnx"), deployed(x), rtol=0, atol=1e-5)


class Own(nn.Module):
    """A parameter that is used as it is, and one that is standardised first."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(12, 8) / 3)
        self.filters = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        filters = self.filters - self.filters.mean((1, 2, 3), keepdim=True)
        x = torch.relu(F.conv2d(x, filters, padding=1)).mean((2, 3))
        x = torch.cat([x, -x], 1)
        return self.head(F.gelu(F.linear(x, self.kernel)))


@pytest.mark.parametrize("kernel", ["w4a4", "w4a32", "w32a6"])
def test_parameters_of_own_code_are_fake_quantized_in_the_file(kernel, tmp_path):
    x = torch.randn(32, 3, 6, 6)
    model = quantized(Own(), x, {"kernel": kernel, "filters": "w5a8", "head": "w8a8"})
    deployed = deploy(model, x).model
    torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=float(deployed.head.output_scale.max()))
    found = run(deployed, x, tmp_path / "model.onnx")
    torch.testing.assert_close(found, deployed(x), rtol=0, atol=1e-3)
    codes = [
        tensor for name, tensor in stored(tmp_path / "model.onnx").items() if "kernel" in name and tensor.data_type == TensorProto.INT8
    ]
    assert any(list(tensor.dims) == [12, 8] for tensor in codes) == (kernel != "w32a6")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_attention_is_exported_with_its_projections_quantized(tmp_path):
    x = torch.randn(16, 6, 16)
    bits = {"attention.in_proj_weight": "w4a6", "attention.out_proj": "w4a5", "head": "w8a8"}
    model = quantized(Attention(), x, bits)
    deployed = deploy(model, x).model
    torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=float(deployed.head.output_scale.max()))
    found = run(deployed, x, tmp_path / "model.onnx")
    torch.testing.assert_close(found, deployed(x), rtol=0, atol=1e-3)
    shapes = [list(tensor.dims) for tensor in stored(tmp_path / "model.onnx").values() if tensor.data_type == TensorProto.INT8]
    assert [48, 16] in shapes
    assert [16, 16] in shapes


class Right(nn.Module):
    """A parameter of shape (in, out), multiplied with from the right."""

    def __init__(self):
        super().__init__()
        self.stem, self.kernel = nn.Linear(6, 16), nn.Parameter(torch.randn(16, 5) / 4)

    def forward(self, x):
        return torch.relu(self.stem(x)) @ self.kernel


def test_a_parameter_multiplied_from_the_right_runs_as_integers(tmp_path):
    x = torch.randn(32, 6)
    deployed = deploy(quantized(Right(), x, {"stem": "w8a8", "kernel": "w4a8"}), x).model
    torch.testing.assert_close(run(deployed, x, tmp_path / "model.onnx"), deployed(x), rtol=0, atol=1e-5)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.picture, self.norm = nn.Embedding(20, 8), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, *, ids, image):
        return {"logits": self.head(self.words(ids).mean(1) + torch.relu(self.norm(self.picture(image))).mean((2, 3)))}


def test_a_model_of_keyword_arguments_from_deployment_to_verification(tmp_path):
    batch = {"ids": torch.randint(0, 20, (16, 4)), "image": torch.randn(16, 3, 6, 6)}
    model = quantized(Keywords(), batch, {"words": "w8a32", "picture": "w8a8", "head": "w8a8"})
    made = deploy(model, batch, {"norm": "picture"})
    assert made.folded == {"norm": "picture"}
    one = {name: value[:1] for name, value in batch.items()}
    export_onnx(made.model, one, tmp_path / "model.onnx")
    found = verify_onnx(tmp_path / "model.onnx", made.model, [{**batch, "labels": torch.zeros(16)}])
    assert (found.images, found.agreement) == (16, 1.0)
    assert found.max_abs_diff < 1e-4
    with pytest.raises(ExportError, match="reads ids, image, and the batch has only ids: add image"):
        verify_onnx(tmp_path / "model.onnx", made.model, [{"ids": batch["ids"]}])
