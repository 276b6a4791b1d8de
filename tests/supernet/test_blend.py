import gc

import pytest
import torch

from bitalloc.quantizers import InputLSQ, InputPACT, WeightLSQ, WeightPACT, use_fake_quantize
from bitalloc.supernet import SinglePath, Softmax, WidthChoice
from bitalloc.supernet.blend import blend, composed
from bitalloc.supernet.mixture import WeightMixture

WIDTHS = (32, 4, 2)


def observed(quantizer, x):
    quantizer.observe()
    quantizer(x)
    quantizer.initialise()
    quantizer.forget()
    return quantizer


BANKS = {
    "step size of activations": lambda x: observed(InputLSQ("x", WIDTHS), x),
    "clipping range": lambda x: observed(InputPACT("x", WIDTHS, start=1.5), x),
    "step size of weights": lambda x: WeightLSQ("w", WIDTHS, x, 1),
    "largest weight": lambda x: WeightPACT("w", WIDTHS),
}
banks = pytest.mark.parametrize("bank", BANKS.values(), ids=list(BANKS))


def parts(bank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator).abs().to(dtype).requires_grad_()
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=dtype, requires_grad=True)
    incoming = torch.randn(5, 4, generator=generator).to(dtype)
    quantizer = bank(x.detach().float()).to(dtype)

    def branch(x, bits):
        quantizer.switch(bits)
        return quantizer(x)

    return x, logits, incoming, branch, list(quantizer.parameters())


def results(function, bank, dtype=torch.float64):
    x, logits, incoming, branch, parameters = parts(bank, dtype)
    shares = logits.softmax(0)
    out = blend(x, shares, branch, WIDTHS, parameters) if function is blend else composed(x, shares, branch, WIDTHS)
    gradients = torch.autograd.grad(out, [x, logits, *parameters], incoming, allow_unused=True)
    return [out, *gradients]


@banks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_plain_formula(bank, dtype):
    for own, plain in zip(results(blend, bank, dtype), results(composed, bank, dtype), strict=True):
        assert (own is None) == (plain is None)
        if own is not None:
            torch.testing.assert_close(own, plain)


def test_gradients_are_the_closed_forms():
    x = torch.tensor([-1.0, 0.2, 0.9, 3.0], requires_grad=True)
    bank = observed(InputPACT("x", (4, 2), "unsigned", start=2.0), x.detach())
    logits = torch.tensor([0.0, 1.0], requires_grad=True)
    shares = logits.softmax(0)

    def branch(x, bits):
        bank.switch(bits)
        return bank(x)

    incoming = torch.tensor([1.0, 2.0, 3.0, 4.0])
    blend(x, shares, branch, (4, 2), [bank.clip_range]).backward(incoming)
    p = shares.tolist()
    inner = [float((incoming * branch(x, bits)).sum().detach()) for bits in (4, 2)]
    mean = p[0] * inner[0] + p[1] * inner[1]
    assert x.grad.tolist() == pytest.approx([0, 2, 3, 0])
    assert bank.clip_range.grad.item() == pytest.approx(4)  # the shares add up to 1
    assert logits.grad.tolist() == pytest.approx([p[0] * (inner[0] - mean), p[1] * (inner[1] - mean)], rel=1e-5)


@banks
def test_second_derivatives_are_those_of_the_plain_formula(bank):
    def second(function):
        x, logits, incoming, branch, parameters = parts(bank)
        incoming.requires_grad_()
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        shares = logits.softmax(0)
        out = blend(x * scale, shares, branch, WIDTHS, parameters) if function is blend else composed(x * scale, shares, branch, WIDTHS)
        inputs = [x, logits, *parameters]
        first = torch.autograd.grad((out**2 * incoming).sum(), inputs, create_graph=True, allow_unused=True)
        total = sum((gradient**2).sum() for gradient in first if gradient is not None)
        return torch.autograd.grad(total, [*inputs, scale, incoming], allow_unused=True)

    for own, plain in zip(second(blend), second(composed), strict=True):
        assert (own is None) == (plain is None)
        if own is not None:
            torch.testing.assert_close(own, plain)


@banks
def test_a_quantizer_that_is_called_twice_in_a_pass_counts_each_call_once(bank):
    def derivatives(function):
        x, logits, _, branch, parameters = parts(bank)

        def mixed(x):
            shares = logits.softmax(0)
            return blend(x, shares, branch, WIDTHS, parameters) if function is blend else composed(x, shares, branch, WIDTHS)

        inputs = [x, logits, *parameters]
        first = torch.autograd.grad((mixed(mixed(x) ** 2) ** 2).sum(), inputs, create_graph=True, allow_unused=True)
        total = sum((gradient**2).sum() for gradient in first if gradient is not None)
        return [*first, *torch.autograd.grad(total, inputs, allow_unused=True)]

    for own, plain in zip(derivatives(blend), derivatives(composed), strict=True):
        assert (own is None) == (plain is None)
        if own is not None:
            torch.testing.assert_close(own, plain)


def one_path(logits):
    """Shares of which the second is 1 and the others are 0, with the gradient of the softmax."""
    shares = SinglePath().shares(logits, torch.tensor([0.5, 1 - 1e-6, 0.5], dtype=logits.dtype), 0.0)
    assert shares.tolist() == [0, 1, 0]
    return shares


@banks
def test_one_drawn_branch_has_the_derivatives_of_the_whole_sum(bank):
    def derivatives(mixed):
        x, logits, incoming, branch, parameters = parts(bank)
        out = mixed(x, one_path(logits), branch, parameters)
        inputs = [x, logits, *parameters]
        first = torch.autograd.grad((out**2 * incoming).sum(), inputs, create_graph=True, allow_unused=True)
        total = sum((gradient**2).sum() for gradient in first if gradient is not None)
        return [out, *first, *torch.autograd.grad(total, inputs, allow_unused=True)]

    def whole(x, shares, branch, parameters):
        return composed(x, shares, branch, WIDTHS)

    def mixture(sparse):
        return lambda x, shares, branch, parameters: blend(x, shares, branch, WIDTHS, parameters, sparse=sparse)

    for own, dense, plain in zip(*map(derivatives, (mixture(True), mixture(False), whole)), strict=True):
        assert (own is None) == (dense is None) == (plain is None)
        if own is not None:
            assert torch.equal(own, dense)
            torch.testing.assert_close(own, plain)


def test_branches_without_a_share_are_computed_for_the_slope_of_the_share_only():
    x, logits, incoming, branch, parameters = parts(BANKS["step size of activations"])
    calls = []

    def noted(x, bits):
        calls.append((bits, torch.is_grad_enabled()))
        return branch(x, bits)

    out = blend(x, one_path(logits), noted, WIDTHS, parameters, sparse=True)
    assert [bits for bits, _ in calls] == [4]
    calls.clear()
    out.backward(incoming)
    assert calls == [(32, False), (4, True), (2, False)]
    calls.clear()
    blend(x, one_path(logits.detach()), noted, WIDTHS, parameters, sparse=True).backward(incoming)
    assert [bits for bits, _ in calls] == [4, 4]


@pytest.mark.parametrize(("relaxation", "computed"), [(Softmax(), [32, 4, 2]), (SinglePath(), [4])])
def test_a_mixture_with_one_path_quantizes_at_the_drawn_width_only(relaxation, computed):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    bank = WeightLSQ("w", WIDTHS, x)
    mixture = WeightMixture(bank, WidthChoice(WIDTHS, relaxation), owner=True)
    with torch.no_grad():
        mixture.choice.architecture_logits.copy_(torch.tensor([-50.0, 50.0, -50.0]))
    mixture.choice.draw(0.5)
    calls = []
    bank.register_forward_hook(lambda bank, *_: calls.append(bank.bits))
    out = mixture(x)
    assert calls == computed
    bank.switch(4)
    torch.testing.assert_close(out, bank(x))


def test_second_derivative_of_the_shares_equals_finite_differences():
    # The values are smooth in the logits, and so is the gradient with respect to x, which a student's attribution map is made of.
    x, logits, incoming, branch, parameters = parts(BANKS["step size of activations"])

    def slope(logits):
        leaf = x.detach().requires_grad_()
        out = blend(leaf, logits.softmax(0), branch, WIDTHS, parameters)
        (gradient,) = torch.autograd.grad((out**3 * incoming).sum(), leaf, create_graph=True)
        return (gradient**2).sum()

    assert torch.autograd.gradcheck(slope, [logits])


def test_only_the_input_is_kept_for_the_backward_pass():
    x, _, _, branch, parameters = parts(BANKS["step size of activations"], torch.float32)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), use_fake_quantize("reference"):
        blend(x, torch.full((3,), 1 / 3), branch, WIDTHS, parameters)
    assert sizes.count(x.numel()) == 1


def test_nothing_stays_alive_after_second_derivatives():
    x, logits, _, branch, parameters = parts(BANKS["clipping range"], torch.float32)

    def run():
        out = blend(x * 2, logits.softmax(0), branch, WIDTHS, parameters)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), logits)

    def alive():
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    run()
    gc.disable()  # reference cycles would be leaks between two collections
    try:
        before = alive()
        for _ in range(20):
            run()
        assert alive() <= before + 2
    finally:
        gc.enable()
