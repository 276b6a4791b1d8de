import pytest
import torch
from torch import nn

from bitalloc.export import deploy


class Block(nn.Module):
    """One convolution, one batch norm; ``use`` says what reads what."""

    def __init__(self, use):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


WRONG = {
    "output used twice": lambda m, x: torch.relu(m.norm(y := m.conv(x))) + y,
    "something in between": lambda m, x: m.norm(torch.relu(m.conv(x))),
    "norm of another tensor": lambda m, x: m.norm(x) + m.conv(x),
    "norm called twice": lambda m, x: m.norm(m.norm(m.conv(x))),
    "layer called twice": lambda m, x: m.norm(m.conv(m.conv(x))),
}


def close(one, other):
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_norm_that_does_not_read_just_its_layer_is_kept(case, quantized):
    x = torch.randn(8, 3, 6, 6)
    model, _ = quantized(Block(WRONG[case]), x, "w4a32")
    done = deploy(model, x, {"norm": "conv"})
    assert done.folded == {}
    assert "changes the outputs" in done.kept["norm"]
    assert close(done.model(x), model(x))


def test_a_wrong_pair_is_found_even_where_the_trained_statistics_hide_it(quantized):
    x = torch.randn(8, 3, 6, 6)
    model, _ = quantized(Block(WRONG["output used twice"]), x, "w4a32")
    with torch.no_grad():
        model.norm.weight.fill_(0.0)
        model.norm.bias.fill_(0.0)
    assert deploy(model, x, {"norm": "conv"}).folded == {}


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 5, 3, groups=1, bias=False), nn.BatchNorm2d(5)),
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)),
        nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)),
        nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.BatchNorm1d(7)),
    ],
    ids=["conv", "grouped", "transposed", "linear"],
)
@pytest.mark.parametrize("bits", ["w8a32", "w3a32", "w8a8", "w3a3"])
def test_folding_is_exact(net, bits, quantized):
    x = torch.randn(8, 3, 6, 6)
    model, description = quantized(net, x, bits)
    done = deploy(model, x, description.producers)
    assert list(done.folded) == list(description.producers)
    assert done.kept == {}
    expected, found = model(x), done.model(x)
    step = next((module.output_scale.max() for module in done.model.modules() if hasattr(module, "output_scale")), torch.tensor(0.0))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() + step / 2


def test_factors_of_zero_and_below_are_folded(quantized):
    x = torch.randn(8, 3, 6, 6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    model, description = quantized(net, x, "w4a8")
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.5, 0.0, 2.0, -1e-30]))
        model[0].weight[0, 0, 0, 0] = -100.0  # the code -8, whose opposite is beyond the 4-bit levels
    done = deploy(model, x, description.producers)
    assert done.folded == {"1": "0"}
    layer = done.model[0]
    assert int(layer.codes[0].max()) == 8
    assert bool((layer.codes[1] == 0).all())
    assert bool((layer.scale > 0).all())
    assert torch.allclose(done.model(x), model(x), atol=float(layer.output_scale.max()))
    assert torch.allclose(done.model(x)[:, 1], model(x)[:, 1])
    assert torch.allclose(done.model(x)[:, 3], model(x)[:, 3])


@pytest.mark.parametrize("factor", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12, 1e-30, 1e-44])
def test_vanishing_factors_keep_the_bias_within_32_bits(factor, quantized):
    x = torch.randn(8, 3, 6, 6)
    model, description = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x, "w8a8")
    with torch.no_grad():
        model[1].weight.fill_(factor)
        model[1].bias.fill_(1.0)
    done = deploy(model, x, description.producers)
    assert done.folded == {"1": "0"}
    assert int(done.model[0].bias_codes.abs().max()) <= 2**30
    assert bool((done.model[0].scale > 0).all())
    assert torch.allclose(done.model(x), model(x), atol=1e-5)


def test_a_negative_factor_over_the_code_minus_128_keeps_the_batch_norm(quantized):
    x = torch.randn(8, 3, 6, 6)
    model, description = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x, "w8a32")
    with torch.no_grad():
        model[1].weight.fill_(-1.0)
        model[0].weight[2, 0, 0, 0] = -100.0
    done = deploy(model, x, description.producers)
    assert done.folded == {}
    assert "-128" in done.kept["1"]
    assert close(done.model(x), model(x))


def test_the_reason_of_every_kept_batch_norm_is_given(quantized):
    net = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ConvTranspose2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
    )
    x = torch.randn(8, 3, 6, 6)
    model, description = quantized(net, x, "w4a4", {"5": "w32a32"})
    kept = deploy(model, x, description.producers).kept
    assert set(kept) == {"0", "2", "4", "6"}
    assert "no layer is in front" in kept["0"]
    assert "running statistics" in kept["2"]
    assert "grouped transposed" in kept["4"]
    assert "not quantized" in kept["6"]


class NormThenAct(nn.BatchNorm2d):
    """As timm has it: the activation function is a part of the batch norm."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_the_activation_function_in_a_batch_norm_stays(quantized):
    x = torch.randn(8, 3, 6, 6)
    model, description = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), NormThenAct(4), nn.Conv2d(4, 2, 1)), x, "w4a32")
    done = deploy(model, x, description.producers)
    assert done.folded == {"1": "0"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in done.model.modules())
    assert close(done.model(x), model(x))
