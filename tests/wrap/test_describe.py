import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from bitalloc.errors import DescribeError
from bitalloc.layers import by_name
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import quantize, quantized_layers
from bitalloc.wrap.describe import describe


def reasons(model: nn.Module, example: Any) -> dict[str, str]:
    return {entry.name: entry.reason for entry in describe(model, example).not_counted}


def brute_force_macs(module: nn.Module, example: Tensor) -> int:
    """Products of the naive algorithm: the sum over outputs of an all-ones layer on an all-ones input without border effects."""
    with torch.no_grad():
        ones = [nn.init.ones_(p) if name == "weight" else nn.init.zeros_(p) for name, p in module.named_parameters()]
        assert ones
        return int(module(torch.ones_like(example)).sum())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 11)),
        (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1)), (4, 9, 8)),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 7, 7)),
        (nn.Conv3d(2, 4, 2, groups=2), (2, 4, 5, 3)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 5)),
        (nn.ConvTranspose2d(4, 6, (3, 2), stride=2), (4, 5, 3)),
        (nn.ConvTranspose3d(2, 4, 2, groups=2), (2, 3, 2, 3)),
        (nn.Linear(5, 7), (5,)),
        (nn.Linear(5, 7, bias=False), (3, 5)),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_kind_equals_the_naive_algorithm(layer: nn.Module, shape: tuple[int, ...], batch: int) -> None:
    example = torch.ones(batch, *shape)
    (info,) = describe(nn.Sequential(layer), example).layers
    assert info.macs * batch == brute_force_macs(layer, example)
    assert info.input_numel == math.prod(shape)
    assert info.output_numel * batch == layer(example).numel()
    assert info.weight_numel == layer.weight.numel()
    assert info.bias_numel == (0 if layer.bias is None else layer.bias.numel())
    assert info.groups == getattr(layer, "groups", 1)
    assert (info.name, info.calls) == ("0", 1)
    assert info.kind.replace("_", "") == type(layer).__name__.lower()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(5, 12))
def test_strided_padded_convolution_closed_form(groups: int, kernel: int, stride: int, padding: int, batch: int, size: int) -> None:
    layer = nn.Conv2d(2 * groups, 3 * groups, kernel, stride, padding, groups=groups)
    (info,) = describe(layer, torch.zeros(batch, 2 * groups, size, size)).layers
    side = (size + 2 * padding - kernel) // stride + 1
    assert info.macs == side * side * 3 * groups * 2 * kernel * kernel
    assert info.output_numel == side * side * 3 * groups


def test_a_shared_module_is_one_layer_with_its_calls_added_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 3, padding=1)
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.avg_pool2d(self.one(x), 2))

    (info,) = describe(Twice(), torch.zeros(2, 3, 8, 8)).layers
    assert (info.name, info.calls) == ("one", 2)
    assert info.macs == (64 + 16) * 3 * 27
    assert info.input_numel == info.output_numel == (64 + 16) * 3


def test_layers_come_in_the_order_of_the_calls_not_of_the_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(x))

    found = describe(Backwards(), torch.zeros(1, 4))
    assert list(by_name(found.layers)) == ["b", "a"]
    assert (found.first, found.last) == (("b",), ("a",))


class Everything(nn.Module):
    """Every kind of module and operation that is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.counted = nn.Linear(8, 8)
        self.subclass = type("MyLinear", (nn.Linear,), {})(8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(8, 8)
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=0.5)
        self.parametrized = parametrize.register_parametrization(nn.Linear(8, 8, bias=False), "weight", nn.Identity())
        self.functional = Functional()
        self.scale = nn.Parameter(torch.ones(8))
        self.extra = nn.ParameterList([nn.Parameter(torch.ones(8))])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.subclass(self.counted(self.embedding(tokens)))) * self.scale
        x = self.attention(x, x, x)[0] + self.extra[0]
        x = self.parametrized(self.pruned(x))
        x = F.scaled_dot_product_attention(x, x, x)
        return self.functional(x)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x @ x.transpose(1, 2), torch.ones(2, 5, 1))


def test_what_is_a_layer_and_what_is_not_with_its_reason() -> None:
    model = Everything()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    layers = by_name(describe(model, tokens).layers)
    assert list(layers) == [
        "embedding",
        "counted",
        "subclass",
        "attention.in_proj_weight",
        "attention.out_proj",
        "pruned",
        "parametrized",
    ]
    assert (layers["embedding"].kind, layers["embedding"].macs, layers["embedding"].site) == ("embedding", 0, "")
    assert all(layers[name].kind == "linear" for name in list(layers)[1:])
    assert {layer.macs for layer in layers.values()} == {0, 5 * 64, 5 * 192}
    assert [layer.bias_numel for layer in layers.values()] == [0, 8, 8, 24, 8, 8, 0]
    found = reasons(model, tokens)
    assert found.keys() == {"", "norm", "attention", "unused", "functional", "extra"}
    assert "normalisation" in found["norm"]
    assert found["unused"] == "never called on the example input"
    assert found["attention"] == "computes outside of a counted layer: matrix product of two activations"
    assert found["functional"] == (
        "computes outside of a counted layer: convolution, the weight is not a parameter; matrix product of two activations"
    )
    assert found[""].startswith("holds parameters (scale) that are no layer's weight")
    assert "attention, products of two activations" in found[""]
    assert "holds parameters (0)" in found["extra"]


@pytest.mark.parametrize("name", ["linear", "einsum", "bmm", "conv_transpose2d", "lstm"])
def test_arithmetic_outside_of_layers_is_noticed(name: str) -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.lstm = nn.LSTM(4, 4) if name == "lstm" else nn.Identity()

        def forward(self, x: Tensor) -> Any:
            x = self.layer(x)
            if name == "linear":
                return F.linear(x, torch.ones(2, 4))
            if name == "einsum":
                return torch.einsum("nij,nkj->nik", x, x)
            if name == "bmm":
                return torch.bmm(x, x)
            if name == "conv_transpose2d":
                return F.conv_transpose2d(x[:, None], torch.ones(1, 1, 2, 2))
            return self.lstm(x)

    found = reasons(Outside(), torch.zeros(1, 4, 4))
    assert "computes outside of a counted layer" in found["lstm" if name == "lstm" else ""]


def test_operations_within_a_counted_layer_are_not_listed() -> None:
    assert reasons(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)), torch.zeros(1, 1, 3, 3)) == {}


def test_batch_norm_producers() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early = nn.BatchNorm2d(1)
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
            self.left_norm, self.right_norm, self.after = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.early(x)
            left, right = self.left(x), self.right(x)
            return self.after(self.left_norm(left) + self.right_norm(right))

    found = describe(Norms(), torch.zeros(1, 1, 3, 3)).producers
    assert found == {"left_norm": "left", "right_norm": "right", "after": "right"}


class TwoHeads(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
        self.body, self.head1, self.head2 = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 3)
        self.wrap = wrap

    def forward(self, x: Tensor, y: Tensor) -> Any:
        x = self.body(self.a(x) + self.b(y))
        return self.wrap(self.head1(x), self.head2(x))


@dataclass
class Output:
    scores: Tensor
    extra: dict[str, Tensor]


WRAPS = [
    lambda one, two: (one, two),
    lambda one, two: {"one": one, "more": [two]},
    lambda one, two: Output(one, {"two": two}),
    lambda one, two: (one.flatten(), two.view(-1)),
]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("as_keywords", [False, True])
def test_first_and_last_with_several_inputs_and_outputs(wrap: Any, as_keywords: bool) -> None:
    x, y = torch.zeros(1, 4), torch.zeros(1, 4)
    found = describe(TwoHeads(wrap), {"x": x, "y": y} if as_keywords else [x, y])
    assert found.first == ("a", "b")
    assert found.last == ("head1", "head2")


def test_first_and_last_fall_back_to_the_order_of_calls() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Softmax(1))
    found = describe(model, torch.zeros(1, 2, 2))
    assert (found.first, found.last) == (("1",), ("3",))


def test_the_model_is_left_as_it_was() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.drop = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=True), nn.Dropout()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("nothing", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.nothing = torch.ones(1)
            return self.drop(self.norm(self.conv(x)))

    model = Counts().train()
    model.norm.eval()
    calls = model.calls
    flags = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    describe(model, torch.ones(2, 1, 3, 3))
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert model.calls is calls
    assert model.nothing is None
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_failing_forward_names_the_shapes_and_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).train()
    with pytest.raises(DescribeError, match=r"\(2, 5\).*mat1 and mat2"):
        describe(model, torch.zeros(2, 5))
    assert model.training
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_fails_and_is_caught_by_the_model_is_not_counted() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Linear(9, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return torch.mm(self.right(x), torch.ones(3, 3))

    found = describe(Tries(), torch.zeros(1, 4))
    assert list(by_name(found.layers)) == ["right"]
    assert {"", "wrong"} == {entry.name for entry in found.not_counted}


class Whole(nn.Module):
    """Treats the batch as one image, so that its counts do not depend on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sum((0, 1))[None])


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.zeros(1, 2), "no quantizable layer"),
        (nn.PReLU(), torch.zeros(1, 2), "no quantizable layer"),
        (nn.Linear(2, 2), 3, "is a int, expected a tensor"),
        (nn.Linear(2, 2), [3], "holds no tensor"),
        (nn.Linear(2, 2), torch.tensor(1.0), "at least one sample"),
        (nn.Linear(2, 2), torch.zeros(0, 2), "at least one sample"),
        (Whole(), torch.zeros(2, 4, 3), "batch of one"),
        (nn.Conv2d(2, 2, 1), torch.zeros(2, 4, 4), "batch dimension"),
        (nn.LazyLinear(2), torch.zeros(1, 4), "not initialised"),
    ],
)
def test_bad_input_is_one_clear_sentence(model: nn.Module, example: Any, message: str) -> None:
    with pytest.raises(DescribeError, match=message):
        describe(model, example)


def test_the_batch_size_does_not_change_the_description() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    one, five = (describe(model, torch.zeros(batch, 1, 8, 8)) for batch in (1, 5))
    assert one == five


def test_meta_tensors_give_the_same_description() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    real = describe(model, torch.zeros(2, 1, 8, 8))
    assert describe(model.to("meta"), torch.zeros(2, 1, 8, 8, device="meta")) == real
    assert dataclasses.asdict(real)["producers"] == {"1": "0"}


class StandardisedConv(nn.Conv2d):
    """Weight standardisation with a learned gain, as in networks without norms."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormalisedConv(nn.Conv2d):
    """Weight standardisation by a batch norm over the reshaped weight, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, flat.reshape_as(self.weight), self.bias)


class InputByOutput(nn.Module):
    """The layer of GPT-2, whose weight has shape (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 4), self.weight).view(*x.shape[:-1], 6)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,edk->nek", x, self.kernel)


@pytest.mark.parametrize(
    ("module", "shape", "name", "kind", "weight_shape", "macs"),
    [
        (StandardisedConv(2, 4, 3, groups=2), (2, 5, 5), "0", "conv2d", (4, 1, 3, 3), 9 * 4 * 9),
        (NormalisedConv(2, 4, 3), (2, 5, 5), "0", "conv2d", (4, 2, 3, 3), 9 * 4 * 18),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), (2, 5), "0", "conv1d", (4, 2, 3), 3 * 4 * 6),
        (InputByOutput(), (3, 4), "0", "matmul", (4, 6), 3 * 24),
        (Experts(), (4,), "0.kernel", "matmul", (3, 4, 5), 60),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_weights_in_every_form(
    module: nn.Module, shape: tuple[int, ...], name: str, kind: str, weight_shape: tuple[int, ...], macs: int, batch: int
) -> None:
    found = describe(nn.Sequential(module), torch.zeros(batch, *shape))
    (layer,) = found.layers
    assert (layer.name, layer.kind, layer.weight_shape, layer.macs, layer.site) == (name, kind, weight_shape, macs, "input")
    assert layer.bias_numel == (6 if kind in ("linear", "matmul") and name == "0" else 4 if "conv" in kind else 0)
    assert found.not_counted == ()


@pytest.mark.parametrize("batch", [1, 2])
def test_products_that_compute_a_weight_are_not_those_of_the_layer(batch: int) -> None:
    found = describe(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), torch.zeros(batch, 4))
    assert [(layer.name, layer.weight_shape, layer.macs) for layer in found.layers] == [("", (6, 4), 24)]
    (entry,) = found.not_counted
    assert (entry.type, entry.macs) == ("_SpectralNorm", 6 * 4 + 6)
    assert "of constants alone" in entry.reason


def test_the_older_spectral_norm_is_no_call_of_the_layer() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    found = describe(model, torch.zeros(2, 4))
    assert [(layer.name, layer.calls, layer.macs) for layer in found.layers] == [("0", 1, 24), ("1", 1, 12)]
    assert [(entry.name, entry.macs) for entry in found.not_counted] == [("", 6 * 4 + 6)]


def test_an_embedding_bag_is_left_out_so_that_the_rest_can_be_quantized() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(10, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.bag(ids))
            return out

    model, ids = Bag(), torch.zeros(2, 3, dtype=torch.long)
    found = describe(model, ids)
    assert [layer.name for layer in found.layers] == ["head"]
    assert "embedding bag" in reasons(model, ids)["bag"]
    quantized = quantize(model, Policy.uniform(found.layers, Bits(4, 4)), calibration=[ids])
    assert list(quantized_layers(quantized)) == ["head"]


def test_projections_of_queries_and_keys_of_other_sizes() -> None:
    model = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)
    found = describe(model, [torch.zeros(1, 3, 8), torch.zeros(1, 5, 4), torch.zeros(1, 5, 6)])
    assert {layer.name: layer.macs for layer in found.layers} == {
        "q_proj_weight": 3 * 64,
        "k_proj_weight": 5 * 32,
        "v_proj_weight": 5 * 48,
        "out_proj": 3 * 64,
    }
    assert [layer.site for layer in found.layers][:3] == ["input.query", "input.key", "input.value"]


def test_a_weight_made_of_several_parameters_is_left_out_by_name() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.layer = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.layer(x), self.a * self.b)

    (entry,) = describe(Mixed(), torch.zeros(2, 4)).not_counted
    assert "computed from several parameters (a, b)" in entry.reason
    assert entry.macs == 16


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_are_left_out_with_their_products(kind: type[nn.RNNBase], gates: int, device: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)).to(device)
    found = describe(model, torch.zeros(2, 7, 3))
    (entry,) = found.not_counted
    assert (entry.name, entry.macs) == ("1", 7 * 2 * gates * 5 * (4 + 5 + 10 + 5))
    assert "recurrent" in entry.reason
    assert [layer.name for layer in found.layers] == ["0"]


@pytest.mark.parametrize("name", ["transformer", "language", "convolutions"])
def test_counted_and_not_counted_are_what_torch_counts(networks: Any, name: str) -> None:
    model, example = {
        "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8)),
        "language": (networks.Language(True), torch.zeros(2, 5, dtype=torch.long)),
        "convolutions": (networks.Concatenated(), torch.zeros(2, 2, 6, 6)),
    }[name]
    found = describe(model, example)
    counter = FlopCounterMode(display=False)
    # With gradients the layer takes no fused path, and the counter knows the products of the plain attention only.
    with sdpa_kernel(SDPBackend.MATH), counter:
        model.eval()(example)
    counted = sum(layer.macs for layer in found.layers) + sum(entry.macs for entry in found.not_counted)
    assert 2 * 2 * counted == counter.get_total_flops()


def test_weights_that_the_forward_pass_changes_are_restored() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.other = nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                self.layer.weight.data[:2] *= 2.0
                self.other.weight.div_(self.other.weight.norm())
            return self.other(self.layer(self.table(tokens)))

    model = Changes()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = describe(model, torch.ones(1, 3, dtype=torch.long))
    assert [layer.name for layer in found.layers] == ["table", "layer", "other"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["half", "channels last", "lazy", "keywords and a dataclass"])
def test_models_as_users_have_them(change: str) -> None:
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    example: Any = torch.zeros(2, 2, 4, 4)
    expected = describe(plain, example)
    model: nn.Module = plain
    if change == "half":
        model, example = plain.to(torch.bfloat16), example.to(torch.bfloat16)
    elif change == "channels last":
        model, example = plain.to(memory_format=torch.channels_last), example.to(memory_format=torch.channels_last)
    elif change == "lazy":
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        model(example)
    else:

        class Keywords(nn.Sequential):
            def forward(self, *, batch: Output) -> Output:
                return Output(super().forward(batch.scores), {})

        model, example = Keywords(*plain), {"batch": Output(example, {})}
    found = describe(model, example)
    if change == "keywords and a dataclass":
        assert found.sites[0].name == "input"
    assert found == expected


def test_images_in_a_list_are_a_batch() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.layer(torch.stack(images))

    (layer,) = describe(Detector(), ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)],)).layers
    assert layer.macs == 16 * 6


def test_a_layer_that_reads_a_table_of_constants() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.ones(5, 2))
            self.bias, self.layer = nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.bias(self.positions)

    found = describe(Biased(), torch.zeros(2, 5, 4))
    assert {layer.name: layer.site for layer in found.layers} == {"layer": "input", "bias": "constant.positions"}
    assert {layer.name: layer.macs for layer in found.layers} == {"layer": 80, "bias": 40}  # whatever the batch
    assert found.meetings == ()
