"""Half precision, memory formats, compilation, export, and the wrappers of distributed training."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from bitalloc.policy import Bits, Policy
from bitalloc.wrap import active_bits, quantize, quantized_layers, switch


class Net(nn.Module):
    """A convolution, a layer with code of its own, a plain layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        x = F.linear(x, self.kernel)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


SHAPES = {"stem": (4, 3, 3, 3), "kernel": (4, 4), "attention.in_proj_weight": (12, 4), "attention.out_proj": (4, 4), "head": (2, 4)}
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def policy(bits="w4a4"):
    return Policy(dict.fromkeys(SHAPES, Bits.parse(bits)), SHAPES)


def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(dtype):
    model = net().to(dtype)
    x = X.to(dtype)
    quantized = quantize(model, policy("w8a8"), calibration=[x])
    assert {p.dtype for name, p in quantized.named_parameters() if "step_" in name} == {torch.float32}
    out = quantized(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, model(x), atol=0.1, rtol=0.1)
    out.float().square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in quantized.parameters())
    switch(quantized, dict.fromkeys(SHAPES, Bits(32, 32)))
    assert torch.equal(quantized(x), model(x))


def test_channels_last_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    shapes = {"0": (4, 3, 3, 3), "1": (4, 4, 1, 1)}
    quantized = quantize(model, Policy(dict.fromkeys(shapes, Bits(4, 4)), shapes), calibration=[x])
    assert quantized[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert quantized[0](x).is_contiguous(memory_format=torch.channels_last)
    assert quantized(x).stride() == model(x).stride()


def test_on_the_meta_device():
    quantized = quantize(net(), policy())
    moved = quantized.to("meta")
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert moved.head.input_quantizer is quantized_layers(moved)["head"].input_quantizer


@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # from PyTorch's own tracing
def test_compiled_training():
    torch._dynamo.reset()
    models = [quantize(net(), policy(), calibration=[X]) for _ in range(2)]
    compiled = torch.compile(models[1], backend="aot_eager")
    for model in (models[0], compiled):
        model(X).square().sum().backward()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    torch.testing.assert_close(compiled(X), models[0](X))
    for model in models:
        switch(model, dict.fromkeys(SHAPES, Bits(32, 32)))
    torch.testing.assert_close(compiled(X), models[0](X))


def test_exported_afterwards():
    quantized = quantize(net(), policy(), calibration=[X]).eval().requires_grad_(False)
    program = torch.export.export(quantized, (X,))
    torch.testing.assert_close(program.module()(X), quantized(X))


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_under_distributed_data_parallel():
    plain, quantized = (quantize(net(), policy(), calibration=[X]) for _ in range(2))
    wrapped = nn.parallel.DistributedDataParallel(quantized)
    for model in (plain, wrapped):
        model(X).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), quantized.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert set(active_bits(wrapped.module)) == set(SHAPES)


@pytest.mark.usefixtures("process_group")
def test_fully_sharded():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    plain, quantized = (quantize(net(), policy(), calibration=[X]) for _ in range(2))
    fully_shard(quantized.head, mesh=mesh)
    fully_shard(quantized, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in quantized.parameters())
    outputs = []
    for model in (plain, quantized):
        outputs.append(model(X))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    gathered = dict(quantized.named_parameters())
    for name, parameter in plain.named_parameters():
        assert gathered[name].grad is not None, name
        torch.testing.assert_close(parameter.grad, gathered[name].grad.full_tensor(), msg=name)
