"""Grad-CAM equals its closed form, finds the feature map of any classifier, and leaves the network as it was."""

import gc
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.attribution import AttributionLoss, FixedPower, GradCAM, GradientTimesInput, InputGradient, PowerRanking, find_feature_map
from bitalloc.errors import TrainingError
from bitalloc.models import digits_net, mobilenet_v1, resnet18, resnet20


class Functional(nn.Module):
    """Convolution, a ReLU that is no module, global average, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.conv(x)).mean((2, 3)))
        return out


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """A vision transformer with 4 x 4 patches of a 16 x 16 image and a class token, which the head reads alone or not at all."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 8)) if class_token else None
        self.blocks, self.norm = nn.Sequential(Block(8), Block(8), Block(8)), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        x = self.norm(self.blocks(x))
        out: Tensor = self.head(x.mean(1) if self.token is None else x[:, 0])
        return out


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def closed_form(features: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    """With a global average in front of the head, the sum over positions of d y_c / d f_k is the weight of the class."""
    weights = weight[logits.argmax(1)]
    return F.relu((weights[:, :, None, None] * features).sum(1, keepdim=True))


def test_equals_the_closed_form_of_a_functional_network() -> None:
    model, x = Functional(), images(3, 3, 6, 6)
    found = GradCAM().attribute(model, x)
    assert found.maps[0].shape == (3, 1, 4, 4)
    torch.testing.assert_close(found.maps[0], closed_form(F.relu(model.conv(x)), model.head.weight, model(x)))
    torch.testing.assert_close(found.logits, model(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_equals_the_closed_form_of_a_sequential_network(inplace: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    model, x = nn.Sequential(*layers), images(3, 3, 6, 6)
    assert find_feature_map(model, x).module == "1"
    expected = closed_form(F.relu(layers[0](x)), layers[4].weight, model(x))
    torch.testing.assert_close(GradCAM().attribute(model, x).maps[0], expected)
    torch.testing.assert_close(GradCAM().explain(model, x).maps[0], expected)


def test_a_named_layer_is_taken_as_it_was_before_an_operation_in_place() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    model, x = nn.Sequential(*layers), images(3, 3, 6, 6)
    features = layers[0](x).detach()
    slope = layers[4].weight[model(x).argmax(1)][:, :, None, None] * (features > 0) / 16
    expected = F.relu((slope.sum((2, 3), keepdim=True) * features).sum(1, keepdim=True))
    for found in (GradCAM(("0",)).attribute(model, x), GradCAM(("0",)).explain(model, x)):
        torch.testing.assert_close(found.maps[0], expected)


def test_another_class_is_explained_on_request() -> None:
    model, x = Functional(), images(3, 3, 6, 6)
    classes = torch.tensor([4, 0, 2])
    features = F.relu(model.conv(x))
    expected = F.relu((model.head.weight[classes][:, :, None, None] * features).sum(1, keepdim=True))
    torch.testing.assert_close(GradCAM().attribute(model, x, classes).maps[0], expected)


@pytest.mark.parametrize(
    ("model", "shape", "module", "size"),
    [
        (resnet20(), (2, 3, 32, 32), "layer3", (8, 8)),
        (resnet18(10), (2, 3, 64, 64), "layer4", (2, 2)),
        (mobilenet_v1(10), (2, 3, 64, 64), "blocks", (2, 2)),
        (digits_net(), (2, 1, 8, 8), "residual2", (2, 2)),
        (digits_net(), (1, 1, 8, 8), "residual2", (2, 2)),
    ],
)
def test_finds_the_last_feature_map_of_a_convolutional_network(
    model: nn.Module, shape: tuple[int, ...], module: str, size: tuple[int, int]
) -> None:
    x = images(*shape)
    assert find_feature_map(model, x).module == module
    found = GradCAM().explain(model, x)
    assert found.maps[0].shape == (shape[0], 1, *size)
    assert not found.maps[0].requires_grad


def test_tokens_are_positions() -> None:
    model, x = Transformer(class_token=False), images(2, 3, 16, 16)
    assert find_feature_map(model, x).module == "norm"
    tokens = model.norm(model.blocks(model.patches(x).flatten(2).transpose(1, 2)))
    weights = model.head.weight[model(x).argmax(1)]  # the sum over tokens of the mean's gradient
    expected = F.relu(tokens @ weights[:, :, None]).reshape(2, 1, 4, 4)
    torch.testing.assert_close(GradCAM().attribute(model, x).maps[0], expected)


def test_where_the_head_reads_a_class_token_the_last_block_reads_the_map() -> None:
    model, x = Transformer(class_token=True), images(2, 3, 16, 16)
    assert find_feature_map(model, x).module == "blocks.1"
    tokens = []
    model.blocks[1].register_forward_hook(lambda *call: tokens.append(call[2]))
    logits = model(x)
    (slope,) = torch.autograd.grad(logits.gather(1, logits.argmax(1, keepdim=True)).sum(), tokens[0])
    expected = F.relu(tokens[0] @ slope.sum(1)[:, :, None])[:, 1:].reshape(2, 1, 4, 4)
    torch.testing.assert_close(GradCAM().attribute(model, x).maps[0], expected)


def test_calls_on_parameters_alone_are_no_feature_maps() -> None:
    class Biased(Functional):  # a position bias goes through the function that gives the feature map, after it
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(4, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            features = F.relu(self.conv(x))
            bias = F.relu(self.bias.expand(len(x), -1, -1, -1))
            out: Tensor = self.head(features.mean((2, 3)) + bias.mean((2, 3)))
            return out

    model, x = Biased(), images(3, 3, 6, 6)
    point = find_feature_map(model, x)
    assert (point.function, point.from_end) == ("relu", 0)
    expected = closed_form(F.relu(model.conv(x)), model.head.weight, model(x))
    torch.testing.assert_close(GradCAM().attribute(model, x).maps[0], expected)
    torch.testing.assert_close(GradCAM().explain(model, x).maps[0], expected)


def test_maps_of_a_bfloat16_pass_are_summed_in_float32() -> None:
    model, x = Functional(), images(2, 3, 18, 18)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = GradCAM().attribute(model, x).maps
        features, logits = F.relu(model.conv(x)), model(x)
    # The slope of a mean over 16 x 16 positions is the weight over a power of 2, which bfloat16 holds as it holds the weight.
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(found, closed_form(features.float(), model.head.weight.bfloat16().float(), logits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("attribution", [GradCAM(), InputGradient(), GradientTimesInput()])
def test_a_transformer_learns_from_the_term(class_token: bool, attribution: GradCAM | InputGradient | GradientTimesInput) -> None:
    """Fused attention has no second derivative. Against finite differences along one direction of all weights."""
    teacher, student, x = Transformer(class_token).double(), Transformer(class_token).double(), images(2, 3, 16, 16).double()
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in student.parameters()]

    def move(size: float) -> None:
        with torch.no_grad():
            for parameter, direction in zip(student.parameters(), directions, strict=True):
                parameter += size * direction

    move(0.05)
    loss = AttributionLoss(teacher, attribution, PowerRanking())
    loss(student, x)[1].backward()
    assert all(bool(block.attention.in_proj_weight.grad.abs().max() > 0) for block in student.blocks[:2])
    slope = sum(float((p.grad * d).sum()) for p, d in zip(student.parameters(), directions, strict=True) if p.grad is not None)
    move(1e-7)
    above = float(loss(student, x)[1].detach())
    move(-2e-7)
    below = float(loss(student, x)[1].detach())
    assert slope == pytest.approx((above - below) / 2e-7, rel=1e-3, abs=1e-5)


def test_channels_last_are_recognised() -> None:
    class Last(Functional):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(F.gelu(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))
            return out

    model, x = Last(), images(3, 3, 8, 8)
    torch.testing.assert_close(
        GradCAM().attribute(model, x).maps[0], closed_form(F.gelu(model.conv(x)), model.head.weight, model(x)), rtol=1e-4, atol=1e-6
    )


def test_what_was_pooled_and_rearranged_is_no_feature_map() -> None:
    class Pooled(Functional):  # as in ConvNeXt
        def forward(self, x: Tensor) -> Tensor:
            pooled = F.relu(self.conv(x)).mean((2, 3), keepdim=True).permute(0, 2, 3, 1)
            out: Tensor = self.head(F.layer_norm(pooled, (4,)).flatten(1))
            return out

    model, x = Pooled(), images(2, 3, 6, 6)
    assert find_feature_map(model, x).function == "relu"
    assert GradCAM().explain(model, x).maps[0].shape == (2, 1, 4, 4)


def test_a_branch_beside_the_main_path_is_no_feature_map() -> None:
    class Gated(Functional):
        def forward(self, x: Tensor) -> Tensor:
            features = F.relu(self.conv(x))
            gate = torch.sigmoid(features)  # later in the pass, but the features go around it
            out: Tensor = self.head(features.mean((2, 3)) + gate.mean((2, 3)))
            return out

    point = find_feature_map(Gated(), images(2, 3, 6, 6))
    assert (point.function, point.from_end) == ("relu", 0)


def test_several_layers_by_pattern() -> None:
    model, x = resnet20(), images(2, 3, 32, 32)
    found = GradCAM(("layer[12]", "layer3.2")).explain(model, x)
    assert [each.shape[-1] for each in found.maps] == [32, 16, 8]
    torch.testing.assert_close(found.maps[2], GradCAM().explain(model, x).maps[0])


def test_a_pattern_without_a_match_lists_the_candidates() -> None:
    with pytest.raises(TrainingError, match=r"'layer9.\*'; there are: .*residual2\.conv1"):
        GradCAM(("layer9.*",)).explain(digits_net(), images(2, 1, 8, 8))


def test_no_feature_map_names_what_was_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(TrainingError, match=r"no feature map was found.*Seen: no such tensor"):
        GradCAM().explain(model, images(2, 3, 6, 6))
    split = nn.Sequential(_Sum(), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(TrainingError, match=r"Seen: .*0\.left \(2, 4, 4, 4\)"):
        GradCAM().explain(split, images(2, 3, 6, 6))


class _Sum(nn.Module):
    """Two branches that meet after the flattening: no tensor has everything in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).flatten(1) + self.right(x).flatten(1)


@pytest.mark.parametrize("attribution", [GradCAM(), InputGradient(), GradientTimesInput()])
def test_a_network_without_logits_is_an_error(attribution: GradCAM | InputGradient | GradientTimesInput) -> None:
    with pytest.raises(TrainingError, match=r"shape \(2, 4, 4, 4\), expected logits of shape \(2, classes\)"):
        attribution.explain(nn.Conv2d(3, 4, 3), images(2, 3, 6, 6))


def test_an_input_without_a_gradient_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"torch\.int64 of shape \(2, 5\)"):
        GradCAM().explain(nn.Embedding(3, 3), torch.ones(2, 5, dtype=torch.int64))


def test_input_gradients_of_a_linear_network() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(27, 4)), images(2, 3, 3, 3)
    rows = model[1].weight[model(x).argmax(1)].reshape(2, 3, 3, 3)
    torch.testing.assert_close(InputGradient().attribute(model, x).maps[0], rows.abs().amax(1, keepdim=True))
    torch.testing.assert_close(GradientTimesInput().attribute(model, x).maps[0], (rows * x).sum(1, keepdim=True).abs())


@pytest.mark.parametrize("attribution", [GradCAM(), InputGradient(), GradientTimesInput()])
def test_the_explained_network_stays_as_it_was(attribution: GradCAM | InputGradient | GradientTimesInput) -> None:
    model = digits_net().train()
    model.stem.weight.requires_grad_(False)
    model.bn.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attribution.explain(model, images(2, 1, 8, 8))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["stem.weight"]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("attribution", [GradCAM(), GradCAM(("residual2",)), InputGradient(), GradientTimesInput()])
def test_the_explained_network_stays_as_it_was_after_an_exception(attribution: GradCAM | InputGradient | GradientTimesInput) -> None:
    model, x = digits_net().train(), images(2, 1, 8, 8)
    model.bn.eval()
    model.stem.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    fine = attribution.resolved(model, x)
    forward = model.linear.forward

    def failing(x: Tensor) -> Tensor:
        raise ValueError("the head is broken")

    model.linear.forward = failing  # type: ignore[method-assign]
    for call in (attribution.explain, attribution.attribute, fine.explain, fine.attribute):
        with pytest.raises(ValueError, match="the head is broken"):
            call(model, x)
        assert [module.training for module in model.modules()] == modes
        assert all(not module._forward_hooks for module in model.modules())
        assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["stem.weight"]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.overrides._len_torch_function_stack() == 0
    model.linear.forward = forward  # type: ignore[method-assign]
    attribution.explain(model, x)


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attribution", [GradCAM(), GradCAM(("residual2",)), InputGradient()])
def test_maps_are_the_same_where_gradients_are_switched_off(block: type, attribution: GradCAM | InputGradient) -> None:
    model, x = digits_net(), images(2, 1, 8, 8)
    expected = attribution.explain(model, x).maps[0]
    with block():
        assert torch.equal(attribution.explain(model, x.clone()).maps[0], expected)


def test_a_map_that_is_not_finite_is_an_error() -> None:
    model = digits_net()
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        GradCAM(("residual2",)).explain(model, images(2, 1, 8, 8))


def test_memory_does_not_grow_over_200_steps() -> None:
    torch.manual_seed(0)
    teacher, student, x = Functional(), Functional(), images(2, 3, 6, 6)
    loss = AttributionLoss(teacher, GradCAM(), PowerRanking(FixedPower(2.0)))
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    counts = []
    gc.collect()
    gc.disable()  # what only the collector would free is a leak on a GPU
    gc.freeze()  # what was there before, which would take long to go through, is not counted
    try:
        for _ in range(200):
            optimizer.zero_grad()
            logits, term = loss(student, (x, None))
            (logits.square().mean() + term).backward()
            optimizer.step()
            del logits, term
            counts.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
    finally:
        gc.unfreeze()
        gc.enable()
    assert counts[-1] > 0
    assert all(later <= earlier for earlier, later in pairwise(counts[1:]))
    assert all(parameter.grad is None for parameter in teacher.parameters())
