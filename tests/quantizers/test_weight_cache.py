"""Quantized weights kept over the batches of an evaluation: seen when they change, released when they are not needed."""

import copy
import gc
import pickle
import weakref
from unittest import mock

import pytest
import torch
from torch import nn

from bitalloc.quantizers import WeightLSQ, cached_weights, lsq
from bitalloc.wrap.layers import QuantizedConv2d

WIDTHS = (8, 4)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    conv.weight_quantizer = WeightLSQ("the weight of conv", WIDTHS, conv.weight, 0)
    conv.input_quantizer = nn.Identity()
    conv.__class__ = QuantizedConv2d
    return conv


@pytest.fixture
def calls(monkeypatch):
    """Counts how often a weight is really quantized."""
    counter = mock.Mock(side_effect=lsq.fake_quantize)
    monkeypatch.setattr(lsq, "fake_quantize", counter)
    return counter


def quantized(layer):
    return layer.weight_quantizer(layer.weight)


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_quantizes_a_weight_once_and_not_once_a_batch(layer, calls, block):
    x = torch.randn(2, 3, 5, 5)
    with block():
        expected = layer(x)
        calls.reset_mock()
        with cached_weights():
            outputs = [layer(x) for _ in range(5)]
    assert calls.call_count == 1
    assert all(torch.equal(out, expected) for out in outputs)


def test_layers_that_share_a_quantizer_or_a_weight_do_not_mix(calls):
    first, second = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))
    quantizer, other = WeightLSQ("w", WIDTHS, first), WeightLSQ("v", WIDTHS, 3 * first.detach())
    with torch.no_grad(), cached_weights():
        for _ in range(2):
            assert torch.equal(quantizer(first), quantizer._computed(first))
            assert torch.equal(quantizer(second), quantizer._computed(second))
            assert torch.equal(other(first), other._computed(first))


def by_optimizer(layer):
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], lr=0.5).step()


def by_loading(layer):
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def by_parameter(layer):
    layer.weight = nn.Parameter(2 * layer.weight)


def by_step(layer):
    layer.weight_quantizer.raw_step(8).mul_(3)


def by_data(layer):
    layer.weight.data = 2 * layer.weight.data


def by_data_twice(layer):
    """The second tensor could get the memory of the first."""
    for _ in range(2):
        layer.weight.data = 2 * layer.weight.data


CHANGES = {
    "optimizer": by_optimizer,
    "copy_": lambda layer: layer.weight.copy_(2 * layer.weight),
    "one element": lambda layer: layer.weight[0, 0, 0, 0].add_(1),
    "load_state_dict": by_loading,
    ".data assigned": by_data,
    ".data assigned twice": by_data_twice,
    "another parameter": by_parameter,
    "step": by_step,
    "step's .data": lambda layer: setattr(layer.weight_quantizer.raw_step(8), "data", torch.full((4,), 0.3)),
    "width": lambda layer: layer.weight_quantizer.switch(4),
    "type": lambda layer: layer.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen(layer, change):
    with torch.no_grad(), cached_weights():
        before = quantized(layer).clone()
        for _ in range(2):
            change(layer)
            after = quantized(layer)
            assert torch.equal(after, layer.weight_quantizer._computed(layer.weight))
    assert after.dtype != before.dtype or not torch.equal(after, before)


def test_a_result_that_its_user_changed_is_made_again(layer):
    with torch.no_grad(), cached_weights():
        quantized(layer).zero_()
        assert torch.equal(quantized(layer), layer.weight_quantizer._computed(layer.weight))


def test_a_change_in_place_under_data_between_two_blocks_is_seen(layer):
    """It leaves no trace in PyTorch, so nothing may outlive a block."""
    with torch.no_grad():
        with cached_weights():
            quantized(layer)
        layer.weight.data.mul_(2)
        with cached_weights():
            assert torch.equal(quantized(layer), layer.weight_quantizer._computed(layer.weight))


def test_nothing_is_kept_without_a_block(layer, calls):
    with torch.no_grad():
        quantized(layer), quantized(layer)
    assert calls.call_count == 2


@pytest.mark.parametrize("error", [False, True])
def test_memory_is_released_at_the_end_of_the_outer_block(layer, error):
    try:
        with torch.no_grad(), cached_weights():
            with cached_weights():
                kept = weakref.ref(quantized(layer))
            gc.collect()
            assert kept() is not None
            if error:
                raise RuntimeError
    except RuntimeError:
        pass
    gc.collect()
    assert kept() is None


def test_training_within_the_block_has_gradients_and_releases_what_was_kept(layer):
    with cached_weights():
        with torch.no_grad():
            kept = weakref.ref(quantized(layer))
        out = quantized(layer)
        out.sum().backward()
        gc.collect()
        assert kept() is None
    assert layer.weight.grad is not None
    assert layer.weight_quantizer.raw_step(8).grad is not None


def test_copies_and_checkpoints_know_nothing_of_it(layer):
    names = set(layer.state_dict())
    with torch.no_grad(), cached_weights():
        quantized(layer)
        assert set(layer.state_dict()) == names
        size = len(pickle.dumps(layer.weight_quantizer))
        twin = copy.deepcopy(layer)
        twin.weight.mul_(2)
        assert torch.equal(quantized(twin), twin.weight_quantizer._computed(twin.weight))
    assert len(pickle.dumps(layer.weight_quantizer)) == size


@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # from PyTorch's own tracing
def test_an_export_and_a_compiled_model_compute_the_weight(layer):
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad(), cached_weights():
        expected = layer(x)
        programme = torch.export.export(layer, (x,))
        torch.compiler.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        layer.weight.mul_(2)
        torch.testing.assert_close(compiled(x), layer(x))
    assert "aten.div.Tensor" in {str(node.target) for node in programme.graph.nodes}
