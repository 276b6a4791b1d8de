from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitalloc.data import digits
from bitalloc.layers import Description
from bitalloc.models import digits_net, mobilenet_v1, resnet18, resnet20, resnet32, resnet50
from bitalloc.wrap.describe import describe


def describe_on_meta(build: Callable[[], nn.Module], size: int) -> Description:
    with torch.device("meta"):
        return describe(build(), torch.empty(1, 3, size, size))


def giga_bitops(found: Description, weight: int, act: int) -> float:
    ends = {*found.first, *found.last}
    return sum(layer.macs * (64 if layer.name in ends else weight * act) for layer in found.layers) / 1e9


# Published with LIMPQ (arXiv 2203.08368): first and last layer at 8 x 8 bits; MiB of the weights alone at 32 bits.
@pytest.mark.parametrize(
    ("build", "layers", "mebibytes", "bitops"),
    [
        (resnet18, 21, "44.55", {(2, 2): "14.368", (3, 3): "22.846", (4, 4): "34.714"}),
        (resnet50, 54, "97.29", {(2, 2): "23.560", (3, 3): "43.406", (4, 4): "71.190", (3, 4): "55.313"}),
        (mobilenet_v1, 28, "16.06", {(2, 2): "2.987", (3, 3): "5.771", (4, 4): "9.669"}),
    ],
)
def test_published_bitops_and_sizes(
    build: Callable[[], nn.Module], layers: int, mebibytes: str, bitops: dict[tuple[int, int], str]
) -> None:
    found = describe_on_meta(build, 224)
    assert len(found.layers) == layers
    assert f"{sum(layer.weight_numel for layer in found.layers) * 4 / 2**20:.2f}" == mebibytes
    assert {widths: f"{giga_bitops(found, *widths):.3f}" for widths in bitops} == bitops
    assert all(entry.type == "BatchNorm2d" for entry in found.not_counted)


@pytest.mark.parametrize(("build", "parameters"), [(resnet18, 11_689_512), (resnet50, 25_557_032)])
def test_parameters_and_names_are_torchvisions(build: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    names = set(model.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.weight"} <= names
    assert not any(name.startswith("layer1.1.downsample") for name in names)


@pytest.mark.parametrize(("build", "layers", "parameters"), [(resnet20, 20, 269_722), (resnet32, 32, 464_154)])
def test_cifar_resnets_have_the_published_depth_and_size(build: Callable[[], nn.Module], layers: int, parameters: int) -> None:
    found = describe_on_meta(build, 32)
    assert len(found.layers) == layers
    assert sum(parameter.numel() for parameter in build().parameters()) == parameters
    assert (found.first, found.last) == (("conv1",), ("linear",))
    assert found.producers["layer3.0.bn2"] == "layer3.0.conv2"


@pytest.mark.parametrize(
    ("build", "changed", "sizes"),
    [
        (resnet20, lambda: resnet20(stem_stride=2), (32, 64)),
        (resnet18, lambda: resnet18(small_images=True), (128, 32)),
    ],
)
def test_for_images_of_another_size_the_weights_are_the_same(
    build: Callable[[], nn.Module], changed: Callable[[], nn.Module], sizes: tuple[int, int]
) -> None:
    """All layers behind the first one see maps of the same size."""
    plain, other = (describe_on_meta(network, size) for network, size in zip((build, changed), sizes, strict=True))
    assert [(layer.name, layer.weight_shape) for layer in plain.layers] == [(layer.name, layer.weight_shape) for layer in other.layers]
    assert [layer.macs for layer in plain.layers[1:]] == [layer.macs for layer in other.layers[1:]]


def test_the_option_a_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = resnet20().layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # the residual branch gives nothing: only the shortcut is left
    x = torch.rand(2, 16, 6, 6)
    out = block(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_digits_net_has_every_kind_of_part() -> None:
    model = digits_net().eval()
    found = describe(model, torch.zeros(1, 1, 8, 8))
    assert len(found.layers) >= 8
    assert any(layer.groups > 1 and layer.weight_shape[:2] == (layer.groups, 1) for layer in found.layers)
    assert found.layers[-1].kind == "linear"
    assert found.last == (found.layers[-1].name,)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert digits_net(4)(torch.zeros(3, 1, 8, 8)).shape == (3, 4)
    residual = model.residual1
    nn.init.zeros_(residual.bn2.weight)
    x = torch.rand(1, 32, 4, 4)
    assert torch.equal(residual(x), x)


def test_digits_net_learns_within_four_epochs() -> None:
    pytest.importorskip("sklearn")
    splits = digits(batch_size=64, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = digits_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4 * len(splits.train))
    for epoch in range(4):
        splits.train.set_epoch(epoch)
        for images, labels in splits.train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in splits.test)
    assert right / 357 > 0.85
