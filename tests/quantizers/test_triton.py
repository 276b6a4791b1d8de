"""The Triton kernels against the reference: in Triton's interpreter on the CPU, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import fake_quantize, fused, use_fake_quantize

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Shapes of x and step, and strides through a transposition: per tensor, rows, an axis in the middle, innermost channels, many rows.
CASES = (((5000,), (1,), False), ((4, 3, 3, 3), (4, 1, 1, 1), False), ((3, 5, 7), (1, 5, 1), False), ((33, 3), (1, 3), False))
CASES += (((4, 6, 5), (4, 1, 1), True), ((2, 5001), (2, 1), False), ((1,), (1,), False))


def case(shape, steps, transposed, dtype, low, high, device):
    """A tensor with ties, values at and beyond the ends, and numbers that are none; a step; an incoming gradient."""
    generator = torch.Generator().manual_seed(0)
    step = torch.rand(steps, generator=generator) + 0.1
    x = step * torch.randint(2 * low - 4, 2 * high + 5, shape, generator=generator) / 2
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, torch.randn(shape, generator=generator) * step * high, x)
    if x.numel() > 100:  # the others keep a sum that is a number
        x.view(-1)[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1e-3])
    x, grad = x.to(dtype), torch.randn(shape, generator=generator).to(dtype)
    if transposed:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.to(device), step.to(device), grad.to(device)


def assert_equal_to_the_reference(kernels, device):
    from bitalloc.quantizers import reference

    for dtype, low, high in ((torch.float32, -8, 7), (torch.bfloat16, 0, 255)):
        for layout in CASES:
            x, step, grad = case(*layout, dtype, low, high, device)
            out = kernels.values(x, step, low, high)
            assert_same(out, reference.values(x, step, low, high))
            assert out.stride() == x.stride()
            both = (grad, x, step, low, high, 0.3)
            d_x, d_step = reference.gradients(*both, True, True)
            found_x, found_step = kernels.gradients(*both, True, True)
            assert_same(found_x, d_x)
            assert_same(kernels.gradients(*both, True, False)[0], d_x)
            size = 0.3 * max(-low, high) * grad.float().abs().sum().item()
            torch.testing.assert_close(found_step, d_step, rtol=1e-5, atol=1e-6 * size, equal_nan=True)
            # Alone, in the same order of sums: the same bits.
            assert_same(kernels.gradients(*both, False, True)[1], found_step)


def assert_same(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), ~numbers)
    assert torch.equal(found[numbers], expected[numbers])
    assert torch.equal(found[numbers].signbit(), expected[numbers].signbit())


@installed
def test_equal_to_the_reference_in_the_interpreter():
    """In a process of its own, since Triton looks at the variable when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", str(Path(__file__))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


@installed
@pytest.mark.parametrize("element", ["fp32", "bf16"])
def test_the_kernels_compile_for_the_oldest_gpu(element):
    """Without a GPU: the interpreter takes Python that Triton's compiler refuses. Divisions round correctly, nothing is atomic."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from bitalloc.quantizers import triton_kernel as kernels

    def assembly(kernel, names, constants):
        types = {name: f"*{element}" if name in ("grad", "x", "out", "grad_x") else "*fp32" for name in names.split()}
        types |= dict.fromkeys(("low", "high"), "fp32") | dict.fromkeys(constants, "constexpr")
        types |= {name: "i32" for name in kernel.arg_names if name not in types}
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
        return compile(source, target=GPUTarget("cuda", 70, 32)).asm["ptx"]

    forward = assembly(kernels._forward, "x step out", {"block": 1024})
    backward = assembly(kernels._backward, "grad x step grad_x partial", {"wanted_x": True, "wanted_step": True, "block": 4096})
    for text in (forward, backward):
        assert "div.rn.f32" in text
        assert not any(other in text for other in ("div.full", "div.approx", ".ftz", "atom."))


@installed
@gpu
@pytest.mark.gpu
def test_equal_to_the_reference_on_a_gpu():
    from bitalloc.quantizers import triton_kernel

    assert_equal_to_the_reference(triton_kernel, "cuda")


@installed
@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_gpu_in_eager_and_compiled_code(dtype):
    def model(x, step):
        return fake_quantize(x.sin(), step, -8, 7, 0.1).cos()

    results = []
    for mode, function in (("reference", model), ("fused", model), ("fused", torch.compile(model, backend="aot_eager", fullgraph=True))):
        x = torch.linspace(-2, 2, 66, device="cuda", dtype=dtype).requires_grad_()
        step = torch.full((1,), 0.1, device="cuda", requires_grad=True)
        with use_fake_quantize(mode):
            out = function(x, step)
            out.float().sum().backward()
        results.append((out.detach(), x.grad, step.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.fixture
def found_anew():
    fused._cuda.cache_clear()
    yield
    fused._cuda.cache_clear()


def test_a_gpu_without_triton_takes_the_reference_and_fused_says_what_to_install(monkeypatch, found_anew):
    monkeypatch.setitem(sys.modules, "bitalloc.quantizers.triton_kernel", None)
    monkeypatch.delattr("bitalloc.quantizers.triton_kernel", raising=False)  # an import leaves it there
    x = torch.empty(3, device="meta")
    assert fused._kernels(x) is None
    with use_fake_quantize("fused"), pytest.raises(QuantizerError, match="Triton is not installed.*pip install triton"):
        fused._kernels(x)


@installed
@pytest.mark.parametrize(("capability", "works"), [((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_a_gpu_that_triton_does_not_know_takes_the_reference(monkeypatch, found_anew, capability, works):
    from bitalloc.quantizers import triton_kernel

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    x = torch.empty(3, device="meta")
    assert fused._kernels(x) is (triton_kernel if works else None)
    if not works:
        with use_fake_quantize("fused"), pytest.raises(QuantizerError, match="Old GPU has compute capability 6.1.*7.0 or higher"):
            fused._kernels(x)


if __name__ == "__main__":
    from bitalloc.quantizers import triton_kernel

    assert_equal_to_the_reference(triton_kernel, "cpu")
    print("equal")
