"""Folding batch norms of a float model."""

import copy

import pytest
import torch
from torch import nn

from bitalloc.errors import DescribeError
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import quantize
from bitalloc.wrap.describe import describe
from bitalloc.wrap.fold import fold_batch_norms


def lively(model):
    """Random statistics and factors of both signs, as no fresh batch norm has them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.normal_()
                    module.bias.normal_()
    return model.eval()


def folded(model, x):
    return fold_batch_norms(model, x, describe(model, x).producers)


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


torch.manual_seed(0)  # the weights of the models below: a tolerance must not depend on luck
IMAGES, LINES, ROWS = (4, 3, 8, 8), (4, 3, 9), (4, 12)
GOOD = {
    "conv, batch norm, relu": (nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 3)), IMAGES),
    "with a bias": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), IMAGES),
    "grouped": (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), IMAGES),
    "without factor and shift": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), IMAGES),
    "linear": (nn.Sequential(nn.Linear(12, 7), nn.BatchNorm1d(7), nn.GELU()), ROWS),
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), nn.SiLU()), LINES),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)), IMAGES),
    "circular padding": (nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(5)), IMAGES),
    "double precision": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).double(), IMAGES),
}


class NormThenAct(nn.BatchNorm2d):
    """As timm has it: the activation function is a part of the batch norm."""

    def __init__(self, features):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class ActThenNorm(NormThenAct):
    def forward(self, x):
        return nn.BatchNorm2d.forward(self, self.act(x))


def test_the_activation_function_in_a_batch_norm_stays():
    x = torch.randn(IMAGES)
    model = lively(nn.Sequential(nn.Conv2d(3, 5, 3), NormThenAct(5), nn.Conv2d(5, 2, 1)))
    done = folded(model, x)
    assert done.folded == {"1": "0"}
    assert norms(done.model) == []
    assert [name for name, _ in done.model.named_modules()] == [name for name, _ in model.named_modules()]
    assert_same(done.model(x), model(x))


def test_an_activation_function_in_front_of_the_batch_norm_hinders_folding():
    done = folded(lively(nn.Sequential(nn.Conv2d(3, 5, 3), ActThenNorm(5))), torch.randn(IMAGES))
    assert done.folded == {}
    assert "changes the outputs" in done.kept["1"]


@pytest.mark.parametrize("case", GOOD)
def test_the_folded_model_computes_the_same_without_batch_norms(case):
    model, x = lively(copy.deepcopy(GOOD[case][0])), torch.randn(GOOD[case][1])
    x = x.to(next(model.parameters()).dtype)
    done = folded(model, x)
    assert done.folded == {"1": "0"}
    assert done.kept == {}
    assert norms(done.model) == []
    assert [name for name, _ in done.model.named_modules()] == [name for name, _ in model.named_modules()]
    assert_same(done.model(x), model(x))
    # A bias that is new learns too.
    assert done.model[0].bias.requires_grad
    assert done.model[0].bias.dtype == model[0].weight.dtype


class Block(nn.Module):
    """A batch norm that reads the network's input, and others; ``use`` says what reads what."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


KEPT = {
    "pre-activation": (lambda m, x: m.other(torch.relu(m.norm(x + m.conv(x)))), "changes the outputs"),
    "reads the input": (lambda m, x: m.conv(m.norm(x)), "no layer is in front"),
    "layer called twice": (lambda m, x: m.norm(m.conv(m.conv(x))), "changes the outputs"),
    "layer read twice": (lambda m, x: m.norm(y := m.conv(x)) + torch.sigmoid(y), "changes the outputs"),
    "norm called twice": (lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)), "changes the outputs"),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_batch_norm_that_cannot_be_folded_is_kept_with_the_reason(case):
    use, reason = KEPT[case]
    model, x = lively(Block(use)), torch.randn(IMAGES)
    done = folded(model, x)
    assert done.folded == {}
    assert reason in done.kept["norm"]
    assert torch.equal(done.model(x), model(x))


def test_a_pre_activation_network_keeps_only_the_norms_that_read_a_sum():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x):
            y = self.conv1(torch.relu(self.norm1(x)))
            return x + self.conv2(torch.relu(self.norm2(y)))

    model, x = lively(nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block())), torch.randn(IMAGES)
    done = folded(model, x)
    assert done.folded == {"1.norm2": "1.conv1", "2.norm2": "2.conv1"}
    assert set(done.kept) == {"1.norm1", "2.norm1"}
    assert_same(done.model(x), model(x))


def test_a_layer_shared_by_two_batch_norms_keeps_both():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm1, self.norm2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm2(self.conv(torch.relu(self.norm1(self.conv(x)))))

    model, x = lively(Shared()), torch.randn(IMAGES)
    done = folded(model, x)
    assert done.folded == {}
    assert set(done.kept) == {"norm1", "norm2"}


def test_reasons_of_layers_that_nothing_can_be_folded_into():
    grouped = lively(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)))
    assert "grouped transposed" in folded(grouped, torch.randn(2, 4, 5, 5)).kept["1"]
    unknown = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert "no running statistics" in folded(unknown, torch.randn(IMAGES)).kept["1"]
    weight_norm = lively(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    assert "recomputed" in fold_batch_norms(weight_norm, torch.randn(IMAGES), {"1": "0"}).kept["1"]


def test_the_model_stays_as_it_was_and_the_copy_keeps_modes_and_frozen_weights():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout()))
    model[0].weight.requires_grad_(False)
    model.train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = fold_batch_norms(model, torch.randn(IMAGES), {"1": "0"}).model
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in done] == [True, True, False]
    assert not any(parameter.requires_grad for parameter in done[0].parameters())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"input": x}], ids=["tensor", "tuple", "keywords"])
def test_inputs_are_given_as_to_describe(wrap):
    model, x = lively(GOOD["conv, batch norm, relu"][0]), torch.randn(IMAGES)
    assert fold_batch_norms(model, wrap(x), {"1": "0"}).folded == {"1": "0"}


def test_inputs_that_the_model_does_not_take():
    with pytest.raises(DescribeError, match="Sequential failed on the example inputs"):
        fold_batch_norms(lively(GOOD["linear"][0]), torch.randn(2, 5), {"1": "0"})


def test_a_folded_model_takes_the_policy_of_the_original():
    model, x = lively(GOOD["conv, batch norm, relu"][0]), torch.randn(IMAGES)
    description = describe(model, x)
    quantized = quantize(folded(model, x).model, Policy.uniform(description.layers, Bits(8, 8)), calibration=[x])
    torch.testing.assert_close(quantized(x), model(x), rtol=0, atol=0.05 * float(model(x).detach().abs().max()))
