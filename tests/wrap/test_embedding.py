"""Embeddings: only weights, only the rows that are looked up."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.policy import Bits, Policy
from bitalloc.quantizers import WeightLSQ
from bitalloc.wrap import QuantizerSettings, active_bits, quantize, quantized_layers, switch

IDS = torch.tensor([[1, 2, 2], [0, 5, 1]])


def table(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4, **options))


def policy(bits="w4a32", shape=(6, 4)):
    return Policy({"0": Bits.parse(bits)}, {"0": shape})


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("padding", [None, 2])
def test_values_and_gradients_are_those_of_quantizing_the_whole_table(per_channel, padding):
    model = table()
    model[0].padding_idx = padding  # with a row that is not zero
    quantized = quantize(model, policy(), settings=QuantizerSettings(per_channel=per_channel))
    whole = WeightLSQ("table", (4,), model[0].weight, 0 if per_channel else None)
    weight = model[0].weight.detach().clone().requires_grad_()
    expected = F.embedding(IDS, whole(weight), padding)
    scale = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * scale).sum().backward()
    out = quantized(IDS)
    (out * scale).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(quantized[0].weight.grad, weight.grad)
    torch.testing.assert_close(quantized[0].weight_quantizer.step_4.grad, whole.step_4.grad)


def test_calibration_needs_no_activation():
    model = table()
    quantized = quantize(model, policy(), calibration=[IDS])
    assert active_bits(quantized) == {"0": Bits(4, 32)}
    assert list(quantized.state_dict()) == ["0.weight", "0.weight_quantizer.step_4"]
    switch(quantized, {"0": Bits(32, 32)})
    assert torch.equal(quantized(IDS), model(IDS))
    with pytest.raises(PolicyError, match="layer 0 is a table look-up and reads no activation"):
        quantize(model, policy("w4a4"))


def test_sparse_gradients_stay_sparse():
    quantized = quantize(table(sparse=True), policy())
    quantized(IDS).sum().backward()
    assert quantized[0].weight.grad.is_sparse
    assert set(quantized[0].weight.grad.coalesce().indices()[0].tolist()) == {0, 1, 2, 5}


def test_a_largest_norm():
    model = table(max_norm=0.5)
    quantized = quantize(model, policy("w8a32"))
    rows = quantized(IDS).detach()
    assert float(rows.norm(dim=-1).max()) < 0.55
    torch.testing.assert_close(rows, model(IDS), atol=0.02, rtol=0)


def test_copies_and_pickles():
    quantized = quantize(table(), policy())
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(twin(IDS), quantized(IDS))


class Scaled(nn.Embedding):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_subclass_with_a_forward_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(6, 4))
    quantized = quantize(model, policy(), calibration=[IDS])
    (layer,) = quantized_layers(quantized).values()
    torch.testing.assert_close(quantized(IDS), 2 * layer.weight_quantizer(model[0].weight)[IDS])


def test_a_table_whose_weights_are_multiplied_elsewhere():
    """A language model that has no layer for its output, only the product with the table."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4)

        def forward(self, ids):
            return self.table(ids) @ self.table.weight.t()

    torch.manual_seed(0)
    model = Tied()
    quantized = quantize(model, Policy({"table": Bits(4, 4)}, {"table": (6, 4)}), calibration=[IDS])
    (layer,) = quantized_layers(quantized).values()
    weight = layer.weight_quantizer(model.table.weight)
    torch.testing.assert_close(quantized(IDS), layer.input_quantizer(weight[IDS]) @ weight.t())
    with torch.no_grad():
        switch(quantized, {"table": Bits(32, 32)})
        assert torch.equal(quantized(IDS), model(IDS))
