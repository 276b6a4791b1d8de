"""Layers that are not simply a layer of PyTorch: each is quantized, or refused by name, with the user's code unchanged."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from bitalloc.errors import PolicyError, QuantizerError
from bitalloc.policy import Bits, Policy
from bitalloc.quantizers import bounds
from bitalloc.wrap import QuantizerSettings, active_bits, calibrate, quantize, quantized_layers, switch


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class StandardisedConv(nn.Conv2d):
    """Standardises its weight in every forward pass, through a batch norm of another shape, as some networks do."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class TransposedLinear(nn.Module):
    """``addmm`` with a weight of shape (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(sample(inputs, outputs, seed=3))
        self.bias = nn.Parameter(sample(outputs, seed=4))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Kernels(nn.Module):
    """Several parameters of one module in several kinds of products."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(sample(5, 4, seed=5))
        self.second = nn.Parameter(sample(3, 5, seed=6))
        self.list = nn.ParameterList([sample(3, 3, seed=7), sample(3, 2, seed=8)])

    def forward(self, x):
        x = F.linear(x, weight=self.first).relu()
        x = x @ self.second.T
        return torch.einsum("nc,cd->nd", torch.matmul(x, self.list[0]), self.list[1])


class Packed(nn.Module):
    """One parameter, used in three parts."""

    def __init__(self):
        super().__init__()
        self.packed = nn.Parameter(sample(12, 4, seed=9))

    def forward(self, x):
        q, k, v = (F.linear(x, part) for part in self.packed.chunk(3))
        return q * k + v


class Projection(nn.Module):
    """Hands the weight of a child to a function: the child itself is never called."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 6)

    def project(self, x):
        return F.linear(x, self.qkv.weight, self.qkv.bias)

    def forward(self, x):
        return self.project(x)


class Mutating(nn.Module):
    """Changes its weight in the forward pass."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(sample(3, 4))

    def forward(self, x):
        with torch.no_grad():
            self.kernel.clamp_(-0.5, 0.5)
        return F.linear(x, self.kernel)


def parametrised():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))


def spectral():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))).eval()


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.Sequential(weight_norm(nn.Conv2d(2, 3, 3)))


def pruned():
    return nn.Sequential(prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.5))


VECTORS, IMAGES = sample(6, 4, seed=1), sample(2, 2, 5, 5, seed=1)
MODELS = {
    "standardised convolution": (lambda: nn.Sequential(StandardisedConv(2, 3, 3)), IMAGES, ["0"]),
    "subclass": (lambda: nn.Sequential(Doubled(4, 3)), VECTORS, ["0"]),
    "transposed linear": (lambda: nn.Sequential(TransposedLinear(4, 3)), sample(2, 3, 4), ["0"]),
    "parameters of a module": (Kernels, VECTORS, ["first", "second", "list.0", "list.1"]),
    "in parts": (Packed, VECTORS, ["packed"]),
    "weight of a child": (Projection, VECTORS, ["qkv"]),
    "parametrised layer": (parametrised, VECTORS, ["0"]),
    "spectral norm": (spectral, VECTORS, ["0"]),
    "old weight norm": (old_weight_norm, IMAGES, ["0"]),
    "pruned": (pruned, VECTORS, ["0"]),
    "weight changed in forward": (Mutating, VECTORS, ["kernel"]),
}
models = pytest.mark.parametrize(("make", "x", "names"), MODELS.values(), ids=list(MODELS))


def weight_of(model, name):
    owner, _, attribute = name.rpartition(".")
    modules = dict(model.named_modules())
    return modules[name].weight if name in modules else getattr(modules[owner], attribute)


def policy_for(model, names, bits="w4a4"):
    return Policy(dict.fromkeys(names, Bits.parse(bits)), {name: tuple(weight_of(model, name).shape) for name in names})


def built(make):
    torch.manual_seed(0)
    return make()


@models
def test_at_32_bits_equal_to_the_float_model_bit_for_bit(make, x, names):
    model = built(make)
    expected = model(x)
    quantized = quantize(model, policy_for(model, names), calibration=[x])
    assert not torch.equal(quantized(x), expected)
    switch(quantized, dict.fromkeys(names, Bits(32, 32)))
    assert torch.equal(quantized(x), expected)
    assert torch.equal(quantize(model, policy_for(model, names, "w32a32"))(x), expected)


@models
def test_gradients_reach_every_parameter_and_step(make, x, names):
    model = built(make)
    quantized = quantize(model, policy_for(model, names), calibration=[x])
    assert active_bits(quantized) == dict.fromkeys(names, Bits(4, 4))
    leaf = x.clone().requires_grad_()
    out = quantized(leaf)
    out.square().sum().backward()
    assert bool(out.isfinite().all())
    for name, parameter in quantized.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert bool(leaf.grad.any())


@models
def test_float_checkpoints_load_and_keys_keep_their_names(make, x, names):
    model, other = built(make), built(make)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    quantized = quantize(model, policy_for(model, names), calibration=[x])
    result = quantized.load_state_dict(other.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all("_quantizer" in key for key in result.missing_keys)
    switch(quantized, dict.fromkeys(names, Bits(32, 32)))
    assert torch.equal(quantized(x), other(x))


@models
def test_copies_compute_the_same_and_stand_alone(make, x, names):
    model = built(make)
    with torch.no_grad():  # what a forward pass computes from parameters can then be copied
        model(x)
        quantized = quantize(model, policy_for(model, names), calibration=[x])
        expected = quantized(x)
        twin = copy.deepcopy(quantized)
        assert torch.equal(twin(x), expected)
        switch(twin, dict.fromkeys(names, Bits(32, 32)))
        assert not torch.equal(twin(x), expected)
        assert torch.equal(quantized(x), expected)


@pytest.mark.parametrize("case", ["standardised convolution", "transposed linear", "parameters of a module", "weight of a child"])
def test_pickles(case):
    make, x, names = MODELS[case]
    model = built(make)
    quantized = quantize(model, policy_for(model, names), calibration=[x])
    twin = pickle.loads(pickle.dumps(quantized))
    assert torch.equal(twin(x), quantized(x))
    assert [type(part) for part in twin.modules()] == [type(part) for part in quantized.modules()]
    nn.init.zeros_(next(iter(twin.parameters())))
    assert not torch.equal(twin(x), quantized(x))


@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # from PyTorch's own tracing
@pytest.mark.parametrize("case", ["standardised convolution", "weight of a child", "parametrised layer", "pruned"])
def test_compiled_afterwards(case):
    torch._dynamo.reset()
    make, x, names = MODELS[case]
    quantized = quantize(built(make), policy_for(built(make), names), calibration=[x])
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(quantized, backend="eager")(x), quantized(x))


def on_grid(x, step, bits, signed=True):
    low, high = bounds(bits, signed)
    return torch.clamp(x / step, low, high).round() * step


def quantized_by_hand(layer, x, weight):
    return on_grid(x, layer.input_quantizer.step, 4), on_grid(weight, layer.weight_quantizer.step, 4)


def test_both_operands_of_a_product_are_quantized():
    model = TransposedLinear(4, 3)
    root = nn.Sequential(model)
    x = VECTORS
    quantized = quantize(root, policy_for(root, ["0"]), calibration=[x])
    (layer,) = quantized_layers(quantized).values()
    inputs, weight = quantized_by_hand(layer, x, model.weight)
    torch.testing.assert_close(quantized(x), model.bias + inputs @ weight)
    assert layer.weight_quantizer.step.item() == pytest.approx(
        max((model.weight.mean() + sign * 3 * model.weight.std(correction=0)).abs().item() for sign in (1, -1)) / 8, rel=1e-5
    )


def test_a_standardised_weight_is_quantized_after_it_is_standardised():
    model = nn.Sequential(StandardisedConv(2, 3, 3))
    for settings in (QuantizerSettings(), QuantizerSettings(per_channel=True)):
        quantized = quantize(model, policy_for(model, ["0"]), calibration=[IMAGES], settings=settings)
        (layer,) = quantized_layers(quantized).values()
        seen = []
        layer.weight_quantizer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        quantized(IMAGES)
        rows = seen[0].flatten(1)
        assert seen[0].shape == model[0].weight.shape
        torch.testing.assert_close(rows.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(rows.std(1, correction=0), torch.ones(3), atol=1e-2, rtol=0)
        assert layer.weight_quantizer.step.numel() == (3 if settings.per_channel else 1)


def test_the_parts_of_a_parameter_have_one_step_and_one_gradient_scale():
    model = Packed()
    x = VECTORS
    quantized = quantize(model, policy_for(model, ["packed"], "w4a32"), calibration=[x])
    (layer,) = quantized_layers(quantized).values()
    calls = []
    layer.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    parts = on_grid(model.packed, layer.weight_quantizer.step, 4).chunk(3)
    torch.testing.assert_close(quantized(x), (x @ parts[0].T) * (x @ parts[1].T) + x @ parts[2].T)
    assert len(calls) == 1


def test_hooks_and_the_signature_stay():
    model = nn.Sequential(TransposedLinear(4, 3))
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    quantized = quantize(model, policy_for(model, ["0"]), calibration=[VECTORS])
    bare = quantize(nn.Sequential(TransposedLinear(4, 3)), policy_for(model, ["0"]), calibration=[VECTORS])
    torch.testing.assert_close(quantized(VECTORS), bare(VECTORS) + 1)
    assert isinstance(quantized[0], TransposedLinear)
    assert type(quantized[0]).__name__ == "TransposedLinear"


def test_a_layer_that_asks_only_for_the_type_of_a_weight_is_not_watched():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(x.to(self.inner.weight.dtype))

    model = Asking()
    quantized = quantize(model, policy_for(model, ["inner"]), calibration=[VECTORS])
    assert type(quantized) is Asking


def test_a_product_that_is_never_reached_is_named():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(sample(4, 4))

        def forward(self, x):
            return x @ (self.kernel @ self.kernel[:, :2])

    model = Hidden()
    with pytest.raises(QuantizerError, match="the input of layer kernel was not reached"):
        quantize(model, policy_for(model, ["kernel"]), calibration=[VECTORS])


def test_what_cannot_be_quantized_is_named():
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(PolicyError, match="layer 0 is not initialised yet: run the model once"):
        quantize(lazy, Policy({"0": Bits(4, 4)}, {"0": (3, 4)}))
    lazy(VECTORS)
    quantize(lazy, policy_for(lazy, ["0"]), calibration=[VECTORS])
    recurrent = nn.ModuleDict({"rnn": nn.LSTM(4, 3)})
    with pytest.raises(PolicyError, match=r"layer rnn.weight_ih_l0 belongs to a LSTM, which cannot be quantized"):
        quantize(recurrent, policy_for(recurrent, ["rnn.weight_ih_l0"]))
    replaced = nn.Sequential(nn.Linear(4, 3))
    replaced[0].forward = lambda x: x
    with pytest.raises(PolicyError, match="layer 0 cannot be quantized: 0 has a forward function set on the object"):
        quantize(replaced, policy_for(replaced, ["0"]))
    norm = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(PolicyError, match="layer 0 has a weight of type torch.float32 and shape"):
        quantize(norm, policy_for(norm, ["0"]))


def test_layers_that_a_policy_may_leave_out_stay_in_floating_point():
    model = nn.ModuleDict({"own": TransposedLinear(4, 3), "table": nn.Embedding(5, 4), "plain": nn.Linear(4, 3), "sub": Doubled(4, 3)})
    quantized = quantize(model, policy_for(model, ["plain"]))
    assert set(quantized_layers(quantized)) == {"plain"}
    assert type(quantized["own"]) is TransposedLinear


def test_a_quantized_parameter_is_not_quantized_again():
    model = Kernels()
    policy = policy_for(model, ["first", "second", "list.0", "list.1"])
    with pytest.raises(PolicyError, match=r"quantizable layers named: first, list.0, list.1, second"):
        quantize(quantize(model, policy), policy)


def test_a_shared_module_with_own_code_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = TransposedLinear(4, 4)
            self.again = self.block

        def forward(self, x):
            return self.again(self.block(x).relu())

    model = Twice()
    quantized = quantize(model, policy_for(model, ["block"]), calibration=[VECTORS])
    assert quantized.again is quantized.block
    (layer,) = quantized_layers(quantized).values()
    hidden = model.block(VECTORS).relu()
    step = 2 * torch.cat([VECTORS, hidden]).abs().mean() / math.sqrt(7)
    assert layer.input_quantizer.step.item() == pytest.approx(step.item(), rel=1e-5)


def test_calibration_observes_products_at_32_bits():
    model = Kernels()
    names = ["first", "second", "list.0", "list.1"]
    quantized = quantize(model, policy_for(model, names))
    switch(quantized, dict.fromkeys(names, Bits(32, 32)))
    calibrate(quantized, [VECTORS])
    switch(quantized, dict.fromkeys(names, Bits(4, 4)))
    assert torch.equal(quantized(VECTORS), quantize(model, policy_for(model, names), calibration=[VECTORS])(VECTORS))


def test_a_parametrised_kernel_of_a_module():
    class Kernel(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(sample(3, 4))

        def forward(self, x):
            return F.linear(x, self.kernel)

    model = Kernel()
    parametrizations.weight_norm(model, "kernel")
    assert parametrize.is_parametrized(model, "kernel")
    quantized = quantize(model, policy_for(model, ["kernel"]), calibration=[VECTORS])
    (layer,) = quantized_layers(quantized).values()
    inputs, weight = quantized_by_hand(layer, VECTORS, model.kernel)
    torch.testing.assert_close(quantized(VECTORS), inputs @ weight.T)
