"""The fused kernel against the reference in plain tensor operations, and what happens where there is no kernel."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import FakeQuantizeMode, bounds, fake_quantize, kernel, use_fake_quantize

compiled = pytest.mark.skipif(isinstance(kernel.load(), kernel.KernelUnavailable), reason=f"no kernel: {kernel.load()}")

GRIDS = [bounds(bits, signed) for bits in range(2, 9) for signed in (True, False)] + [(-3, 12), (-37, 218), (-255, 0)]
SHAPES = [(5,), (3, 7), (2, 3, 4, 5), (4, 16, 3, 3), (1, 1, 1, 1), (0,), (2, 0, 3), (40000,), (6, 40, 50), (700, 33)]
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "expanded")
SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-40, 1e30])


@st.composite
def cases(draw):
    """A tensor in some layout with many values on ties and ends of the grid, a step, an incoming gradient, and the grid."""
    low, high = draw(st.sampled_from(GRIDS))
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layout = draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    steps = (1,) if axis is None else tuple(size if place == axis else 1 for place, size in enumerate(shape))
    step = torch.rand(steps, generator=generator) * 2 ** draw(st.integers(-10, 6)) + 2**-23
    x = torch.randn(shape, generator=generator) * step * draw(st.sampled_from([1, high - low]))
    ties = torch.randint(2 * low - 4, 2 * high + 5, shape, generator=generator) / 2 * step
    x = torch.where(torch.rand(shape, generator=generator) < 0.4, ties, x)
    if draw(st.booleans()):
        places = torch.randint(len(SPECIAL), shape, generator=generator)
        x = torch.where(torch.rand(shape, generator=generator) < 0.1, SPECIAL[places], x)
    return laid_out(x.to(dtype), layout), step, torch.randn(shape, generator=generator).to(dtype), low, high


def laid_out(x, layout):
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided" and x.dim():
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded" and x.dim() > 1 and x.shape[0]:
        return x[:1].expand(x.shape)
    return x


def run(mode: FakeQuantizeMode, x, step, incoming, low, high, wanted=(True, True), scale=0.3):
    x, step = x.detach().requires_grad_(wanted[0]), step.detach().clone().requires_grad_(wanted[1])
    with use_fake_quantize(mode):
        out = fake_quantize(x, step, low, high, scale)
        out.backward(incoming)
    return out.detach(), x.grad, step.grad


def assert_same(found, expected):
    """Bit for bit, NaN equal to NaN, and the sign of a zero too."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[numbers], expected[numbers])
    assert torch.equal(found[numbers].signbit(), expected[numbers].signbit())


def assert_same_sums(found, expected, case, scale=0.3):
    """A sum of n terms, in another order: within what float32 loses on the sum of their magnitudes."""
    _, _, incoming, low, high = case
    size = scale * max(-low, high) * incoming.abs().sum().item()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * size, equal_nan=True)


@compiled
@given(cases())
def test_values_and_gradients_are_those_of_the_reference(case):
    out, d_x, d_step = run("fused", *case)
    expected, expected_x, expected_step = run("reference", *case)
    assert_same(out, expected)
    assert_same(d_x, expected_x)
    assert_same_sums(d_step, expected_step, case)


@compiled
@given(cases())
def test_a_gradient_is_the_same_when_the_other_is_not_wanted(case):
    _, d_x, d_step = run("fused", *case)
    _, only_x, no_step = run("fused", *case, wanted=(True, False))
    _, no_x, only_step = run("fused", *case, wanted=(False, True))
    assert no_x is None
    assert no_step is None
    assert_same(only_x, d_x)
    assert_same_sums(only_step, d_step, case)


@compiled
@pytest.mark.parametrize("steps", [(1,), (1, 16)])
@pytest.mark.parametrize("low", [-128, 0])
def test_every_bfloat16_number(low, steps):
    """All 65,536 of them, with a step that makes ties, subnormal results and results between two bfloat16 numbers."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).reshape(-1, 16)
    incoming = x.flip(0)
    for size in (0.25, 0.1, 2.0**-23):
        case = (x, torch.full(steps, size), incoming, low, low + 255)
        for found, expected in zip(run("fused", *case)[:2], run("reference", *case)[:2], strict=True):
            assert found.dtype == torch.bfloat16
            assert_same(found, expected)


@compiled
def test_a_result_of_many_pages_is_that_of_the_reference():
    """Above 32 MB the kernel asks for the memory of its result ahead; three rows, so that no row begins on a page."""
    x = torch.linspace(-3, 3, 3 * (3 * 2**20 + 1)).reshape(3, -1)
    case = (x, torch.tensor([[0.1], [0.2], [0.3]]), x.flip(0), -8, 7)
    assert x.nbytes > 32 * 2**20
    for found, expected in zip(run("fused", *case)[:2], run("reference", *case)[:2], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [(), (1,)])
def test_the_level_of_a_half_precision_input_is_found_in_float32_under_autocast(mode, dtype, steps):
    """70.5 is 100.71 steps of 0.7, level 101; in bfloat16 the quotient is 100.5, and would make level 100."""
    x = torch.tensor([70.5, -2.5, 1.75, 210.0]).to(dtype)
    step = torch.full(steps, 0.7)
    x.requires_grad_()
    step.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), use_fake_quantize(mode):
        out = fake_quantize(x, step, -128, 127, 1.0)
        out.sum().backward()
    ratio = x.detach().float() / step.detach()
    assert torch.equal(out.detach(), (ratio.clamp(-128, 127).round() * step.detach()).to(dtype))
    assert (out.float() / 0.7).round()[0] == 101
    assert (out.dtype, x.grad.dtype, step.grad.dtype) == (dtype, dtype, torch.float32)
    assert x.grad.tolist() == [1, 1, 1, 0]
    expected = (ratio.clamp(-128, 127).round() - ratio * (ratio.abs() < 127)).sum()
    torch.testing.assert_close(step.grad.sum(), expected)


@compiled
def test_float32_weights_stay_float32_under_autocast():
    weight, step = torch.randn(8, 4, requires_grad=True), torch.full((8, 1), 0.1, requires_grad=True)
    incoming = torch.randn(8, 4)
    expected = run("fused", weight, step, incoming, -8, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = run("fused", weight, step, incoming, -8, 7)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@compiled
@pytest.mark.parametrize(("shape", "axis"), [((3, 50000), None), ((3, 50000), 0), ((50000, 3), 1)])
def test_the_number_of_threads_changes_no_bit(shape, axis):
    generator = torch.Generator().manual_seed(0)
    x, incoming = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    step = torch.full((1,), 0.1) if axis is None else torch.full([3 if place == axis else 1 for place in range(2)], 0.1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run("fused", x, step, incoming, -8, 7))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_a_sum_over_many_elements_is_exact_to_float_precision():
    """A running float32 sum of 2^22 terms of 1/3 is off in the fourth digit; the sum over blocks is not."""
    x, step = torch.full((2**22,), 10.0), torch.tensor([1.0])
    _, _, d_step = run("fused", x, step, torch.full_like(x, 1 / 3), -8, 7, scale=1.0)
    assert d_step.item() == pytest.approx(7 * 2**22 / 3, rel=1e-6)


@compiled
def test_the_result_keeps_the_strides_of_a_dense_input():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    out, d_x, _ = run("fused", x, torch.tensor([0.1]), torch.randn(2, 3, 4, 5), -8, 7)
    assert out.stride() == d_x.stride() == x.stride()


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_of_new_tensors_changes_nothing(dtype):
    x, step, incoming = torch.randn(8, 5), torch.full((8, 1), 0.1), torch.randn(8, 5)
    expected = run("fused", x, step, incoming, -8, 7)
    torch.set_default_dtype(dtype)
    try:
        found = run("fused", x, step, incoming, -8, 7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@compiled
def test_gradients_add_up_when_used_twice():
    results = []
    for mode in ("fused", "reference"):
        x, step = torch.linspace(-2, 2, 41).requires_grad_(), torch.tensor([0.2], requires_grad=True)
        with use_fake_quantize(mode):
            (fake_quantize(x, step, -4, 3, 0.5) * fake_quantize(x.sin(), step, 0, 15, 0.25)).sum().backward()
        results.append((x.grad, step.grad))
    torch.testing.assert_close(*results)


@compiled
def test_a_gradient_of_the_gradient():
    results = []
    for mode in ("fused", "reference"):
        x, step = torch.linspace(-2, 2, 41).requires_grad_(), torch.tensor([0.2])
        with use_fake_quantize(mode):
            (first,) = torch.autograd.grad(fake_quantize(x, step, -4, 3, 0.5).square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert results[0].abs().sum() > 0
    assert torch.equal(*results)


@compiled
@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_without_gradients(block):
    x, step = torch.randn(100), torch.tensor([0.2], requires_grad=True)
    with block(), use_fake_quantize("fused"):
        out = fake_quantize(x, step, -4, 3, 0.5)
    assert not out.requires_grad
    assert torch.equal(out, run("reference", x, step, x, -4, 3)[0])


@compiled
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("steps", [(1,), (6, 1)])
def test_in_a_compiled_model(backend, dynamic, steps):
    torch.compiler.reset()

    def model(x, step):
        return fake_quantize(x.sin(), step, -8, 7, 0.1).cos()

    results = []
    for function in (model, torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)):
        x = torch.linspace(-2, 2, 66).reshape(6, 11).requires_grad_()
        step = torch.full(steps, 0.1, requires_grad=True)
        with use_fake_quantize("fused"):
            out = function(x, step)
        out.sum().backward()
        results.append((out.detach(), x.grad, step.grad))
    torch.testing.assert_close(*results)


def test_an_export_has_plain_operations():
    class Model(torch.nn.Module):
        def forward(self, x):
            return fake_quantize(x, torch.tensor([0.1]), -8, 7, 0.1)

    with use_fake_quantize("auto"):
        names = {str(node.target) for node in torch.export.export(Model(), (torch.randn(3, 4),)).graph.nodes}
    assert "aten.div.Tensor" in names
    assert not any("bitalloc" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_take_the_reference(dtype):
    x, step, incoming = torch.randn(50).to(dtype), torch.tensor([0.2]), torch.randn(50).to(dtype)
    for found, expected in zip(run("auto", x, step, incoming, -8, 7), run("reference", x, step, incoming, -8, 7), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_mode_that_does_not_exist():
    with pytest.raises(QuantizerError, match="'fast'; use auto, fused or reference"), use_fake_quantize("fast"):
        pass


def test_the_mode_before_comes_back_after_an_error(no_kernel):
    with pytest.raises(RuntimeError), use_fake_quantize("fused"):
        raise RuntimeError
    fake_quantize(torch.ones(3), torch.tensor([0.5]), -8, 7, 1.0)  # not fused, or it would be an error here


@pytest.fixture
def no_kernel(monkeypatch, tmp_path):
    """A machine without a compiler and with an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    kernel.load.cache_clear()
    yield
    kernel.load.cache_clear()


def test_without_a_compiler_auto_takes_the_reference(no_kernel):
    x, step, incoming = torch.randn(4, 50), torch.rand(4, 1) + 0.1, torch.randn(4, 50)
    for found, expected in zip(run("auto", x, step, incoming, -8, 7), run("reference", x, step, incoming, -8, 7), strict=True):
        assert torch.equal(found, expected)


def test_without_a_compiler_fused_is_an_error_that_names_it(no_kernel):
    with pytest.raises(QuantizerError, match="no C compiler .cc, gcc or clang. on the path"):
        run("fused", torch.randn(3), torch.tensor([0.1]), torch.randn(3), -8, 7)


@pytest.mark.parametrize("script", ["exit 1", "echo broken >&2; exit 1", 'for last; do :; done; echo half > "$last"', "kill -9 $$"])
def test_a_compiler_that_fails_leaves_nothing_behind(script, monkeypatch, tmp_path):
    """Also one that says it succeeded and wrote something that is no library, and one that is killed."""
    broken, cache = tmp_path / "broken-cc", tmp_path / "cache"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    kernel.load.cache_clear()
    try:
        x = torch.randn(20)
        assert torch.equal(fake_quantize(x, torch.tensor([0.1]), -8, 7, 1.0), run("reference", x, torch.tensor([0.1]), x, -8, 7)[0])
        with pytest.raises(QuantizerError, match="broken-cc"):
            run("fused", x, torch.tensor([0.1]), x, -8, 7)
        assert not list(cache.rglob("*"))[1:]
    finally:
        kernel.load.cache_clear()


@compiled
def test_a_truncated_kernel_in_the_cache_is_made_again(monkeypatch, tmp_path):
    x, step = torch.randn(20), torch.tensor([0.1])
    caches = [tmp_path / "sound" / "bitalloc", tmp_path / "truncated" / "bitalloc"]
    sizes = []
    try:
        for cache in caches:
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
            kernel.load.cache_clear()
            assert torch.equal(run("fused", x, step, x, -8, 7)[0], run("reference", x, step, x, -8, 7)[0])
            (library,) = cache.iterdir()
            sizes.append(library.stat().st_size)
            caches[1].mkdir(parents=True, exist_ok=True)
            if cache is caches[0]:
                (caches[1] / library.name).write_bytes(library.read_bytes()[:1000])
    finally:
        kernel.load.cache_clear()
    assert sizes[0] == sizes[1] > 1000


@compiled
def test_processes_that_start_together_share_one_kernel(tmp_path):
    code = (
        "import torch; from bitalloc.quantizers import *\n"
        "print(fake_quantize(torch.tensor([0.34]), torch.tensor([0.1]), -8, 7, 1.0).item())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "BITALLOC_FAKE_QUANTIZE": "fused"}
    commands = [sys.executable, "-c", code]
    processes = [subprocess.Popen(commands, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [float(output) for output in outputs] == [pytest.approx(0.3)] * 2
    assert [path.suffix for path in (tmp_path / "bitalloc").iterdir()] == [".so"]


def test_a_mode_in_the_environment_that_does_not_exist(monkeypatch):
    monkeypatch.setattr("bitalloc.quantizers.choice._mode", "quick")  # what the variable held at import
    with pytest.raises(QuantizerError, match="BITALLOC_FAKE_QUANTIZE=quick in the environment is none of auto, fused, reference"):
        fake_quantize(torch.ones(1), torch.ones(1), 0, 3, 1.0)
