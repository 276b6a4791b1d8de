"""Multi-head attention: as PyTorch computes it, with quantized projections, and never around them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitalloc.policy import Bits, Policy
from bitalloc.wrap import quantize, quantized_layers, switch

BATCH, LENGTH, KEYS, WIDTH, HEADS = 2, 3, 5, 8, 2


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def policy_for(model, bits="w4a4", kinds=(nn.Linear,)):
    """Every projection of every attention, and all other linear layers."""
    shapes = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, name) is not None:
                    shapes[f"{path}.{name}".removeprefix(".")] = tuple(getattr(module, name).shape)
        elif isinstance(module, kinds):
            shapes[path] = tuple(module.weight.shape)
    return Policy(dict.fromkeys(shapes, Bits.parse(bits)), shapes)


def build(**arguments):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(WIDTH, HEADS, **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def inputs(model, same):
    q = sample(BATCH, LENGTH, WIDTH)
    if same:
        k = v = q
    else:
        k, v = sample(BATCH, KEYS, model.kdim, seed=1), sample(BATCH, KEYS, model.vdim, seed=2)
    if model.batch_first:
        return q, k, v
    return (q.transpose(0, 1),) * 3 if same else tuple(x.transpose(0, 1) for x in (q, k, v))


ARGUMENTS = {
    "packed": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False, "batch_first": True},
    "other key and value widths": {"kdim": 6, "vdim": 7},
    "bias of keys and values": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "batch_first": True},
}
HIDDEN = torch.tensor([[False, False, True], [False, True, True]])
CALLS = {
    "plain": {},
    "without weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": "padding"},
    "additive padding, without weights": {"key_padding_mask": "float padding", "need_weights": False},
    "mask": {"attn_mask": "mask"},
    "mask of every head and padding": {"attn_mask": "heads", "key_padding_mask": "padding", "need_weights": False},
    "additive mask": {"attn_mask": "float mask"},
}


def call(model, x, arguments):
    keys = x[1].shape[1 if model.batch_first else 0]
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[1, -1] = True
    mask = torch.ones(LENGTH, keys, dtype=torch.bool).triu(1)
    masks = {
        "padding": padding,
        "float padding": torch.zeros(BATCH, keys).masked_fill(padding, -torch.inf),
        "mask": mask,
        "float mask": sample(LENGTH, keys, seed=5),
        "heads": mask.expand(BATCH * HEADS, -1, -1),
    }
    return model(*x, **{key: masks.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()})


def transparent(quantized):
    """Replaces all rounding by nothing while the quantizers stay active."""
    for layer in quantized_layers(quantized).values():
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            quantizer._fake_quantize = lambda x: x
    return quantized


CASES = [(name, same) for name, options in ARGUMENTS.items() for same in (True, False) if not (same and "kdim" in options)]


@pytest.mark.parametrize("arguments", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize(("options", "same"), CASES, ids=[f"{name}, {'self' if same else 'cross'}" for name, same in CASES])
def test_the_arithmetic_is_that_of_pytorch(options, arguments, same):
    model = build(**ARGUMENTS[options])
    x = inputs(model, same)
    expected = call(model, x, arguments)
    quantized = quantize(model, policy_for(model), calibration=[x], forward=lambda model, batch: model(*batch))
    found = call(transparent(quantized), x, arguments)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_without_a_batch():
    model = build(batch_first=True)
    x = sample(LENGTH, WIDTH)
    quantized = transparent(quantize(model, policy_for(model), calibration=[x], forward=lambda model, batch: model(batch, batch, batch)))
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for arguments in ({}, {"need_weights": False}, {"key_padding_mask": HIDDEN[0]}, {"attn_mask": mask, "is_causal": True}):
        for one, other in zip(quantized(x, x, x, **arguments), model(x, x, x, **arguments), strict=True):
            assert (one is None and other is None) or torch.allclose(one, other, atol=1e-5)


def test_a_causal_hint():
    model = build(batch_first=True)
    x = (sample(BATCH, LENGTH, WIDTH),) * 3
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    quantized = transparent(quantize(model, policy_for(model), calibration=[x], forward=lambda model, batch: model(*batch)))
    for need_weights in (True, False):
        arguments = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        torch.testing.assert_close(quantized(*x, **arguments)[0], model(*x, **arguments)[0])
    with pytest.raises(RuntimeError, match="attn_mask"):
        quantized(*x, is_causal=True)


def on_grid(layer, x, weight):
    return layer.input_quantizer(x), layer.weight_quantizer(weight)


def test_all_projections_multiply_quantized_operands():
    model = build(batch_first=True)
    x = sample(BATCH, LENGTH, WIDTH)
    quantized = quantize(model, policy_for(model), calibration=[x], forward=lambda model, batch: model(batch, batch, batch))
    layers = quantized_layers(quantized)
    assert set(layers) == {"in_proj_weight", "out_proj"}
    seen = []
    layers["out_proj"].input_quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = quantized(x, x, x, need_weights=False)[0]
    q, k, v = F.linear(*on_grid(layers["in_proj_weight"], x, model.in_proj_weight), model.in_proj_bias).chunk(3, -1)
    heads = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    context = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(seen[0].transpose(0, 1), context)
    torch.testing.assert_close(out, F.linear(*on_grid(layers["out_proj"], context, model.out_proj.weight), model.out_proj.bias))


@pytest.mark.parametrize("options", ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_at_32_bits_equal_and_at_4_bits_trainable(options):
    model = build(**options).eval()
    x = inputs(model, same=False)
    quantized = quantize(model, policy_for(model), calibration=[x], forward=lambda model, batch: model(*batch))
    quantized(*x)[0].square().sum().backward()
    for name, parameter in quantized.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    result = quantized.load_state_dict(model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all("quantizer" in key for key in result.missing_keys)
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(twin(*x)[0], quantized(*x)[0])
    switch(quantized, dict.fromkeys(quantized_layers(quantized), Bits(32, 32)))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(quantized(*x)[0], model(*x)[0])


class OwnAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def test_a_subclass_with_a_forward_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(OwnAttention(WIDTH, HEADS, batch_first=True)).eval()
    x = sample(BATCH, LENGTH, WIDTH)
    with torch.no_grad():
        expected = model(x)
        quantized = quantize(model, policy_for(model), calibration=[x])
        assert set(quantized_layers(quantized)) == {"0.in_proj_weight", "0.out_proj"}
        assert not torch.equal(quantized(x), expected)
        torch.testing.assert_close(transparent(quantized)(x), expected)


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which the float model makes
def test_the_shortcuts_of_transformer_layers_are_not_taken():
    """In evaluation mode without gradients PyTorch would run a whole layer as one operation on the float weights."""
    model = encoder().eval()
    x = sample(BATCH, LENGTH, WIDTH)
    quantized = quantize(model, policy_for(model), calibration=[x])
    assert len(quantized_layers(quantized)) == 8
    expected = quantized.train()(x).detach()
    with torch.no_grad():
        assert not torch.equal(model(x), expected)
        assert torch.equal(quantized.eval()(x), expected)
        # Padded positions, which the shortcut would take out as a nested tensor.
        hidden = quantized.train()(x, src_key_padding_mask=HIDDEN)
        torch.testing.assert_close(quantized.eval()(x, src_key_padding_mask=HIDDEN), hidden)
        switch(quantized, dict.fromkeys(quantized_layers(quantized), Bits(32, 32)))
        assert torch.equal(quantized(x), model(x))
        assert torch.equal(quantized(x, src_key_padding_mask=HIDDEN), model(x, src_key_padding_mask=HIDDEN))


def test_one_quantized_layer_is_enough_to_close_the_shortcut():
    model = encoder().eval()
    x = sample(BATCH, LENGTH, WIDTH)
    policy = policy_for(model, "w32a32")
    policy = Policy({**policy.bits, "layers.1.linear2": Bits(2, 2)}, policy.weight_shapes)
    quantized = quantize(model, policy, calibration=[x])
    assert set(quantized_layers(quantized)) == {"layers.1.linear2"}
    with torch.no_grad():
        expected = quantized.eval()(x)
        torch.testing.assert_close(expected, quantized.train()(x))  # the other layer may take its shortcut
        quantized.eval()
        for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
            assert torch.equal(twin(x), expected)


def test_a_whole_transformer():
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, HEADS, 1, 1, 12, dropout=0.0, batch_first=True).eval()
    batch = {"src": sample(BATCH, KEYS, WIDTH), "tgt": sample(BATCH, LENGTH, WIDTH, seed=1)}
    quantized = quantize(model, policy_for(model), calibration=[batch])
    assert len(quantized_layers(quantized)) == 10
    with torch.no_grad():
        out = quantized(**batch)
        assert torch.equal(quantized.train()(**batch), out)
        torch.testing.assert_close(transparent(quantized)(**batch), model.train()(**batch))
