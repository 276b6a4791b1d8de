"""The rank-preserving loss: its published form, its gradients, soft ranks against a solver, and the powers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc import calibrate, describe, search_space
from bitalloc.attribution import (
    AttributionLoss,
    CapacityAwarePower,
    FixedPower,
    GradCAM,
    GradientTimesInput,
    InputGradient,
    Point,
    PowerRanking,
    Ranking,
    SoftSpearman,
    soft_rank,
)
from bitalloc.attribution.distance import ranks
from bitalloc.errors import TrainingError
from bitalloc.models import digits_net, resnet20
from bitalloc.quantizers import use_fake_quantize
from bitalloc.wrap import prepare_joint
from bitalloc.wrap.fold import fold_batch_norms

RANKINGS = [PowerRanking(), PowerRanking(FixedPower(1.0)), SoftSpearman(), SoftSpearman(20.0)]


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_published_formula() -> None:
    teacher, student = maps(3, 1, 4, 4), maps(3, 1, 4, 4, seed=1)
    found = PowerRanking(FixedPower(2.5)).distance(teacher, student)
    for index in range(3):
        a, b = teacher[index] ** 2.5, student[index]
        expected = ((a / a.norm() - b / b.norm()) ** 2).mean()
        torch.testing.assert_close(found[index], expected)


@pytest.mark.parametrize("ranking", [PowerRanking(FixedPower(1.0)), SoftSpearman(1e-6)])
def test_the_same_map_at_any_scale_has_distance_zero(ranking: Ranking) -> None:
    teacher = maps(3, 1, 4, 4)
    torch.testing.assert_close(ranking.distance(teacher, 7 * teacher), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_small_map_to_a_high_power_keeps_its_digits() -> None:
    teacher = maps(2, 1, 4, 4).float()
    ranking = PowerRanking(FixedPower(6.0))
    torch.testing.assert_close(ranking.distance(1e-4 * teacher, teacher), ranking.distance(teacher, teacher))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_all_zero_maps_have_finite_distances_and_derivatives(ranking: Ranking) -> None:
    teacher = torch.stack([torch.zeros(6), torch.rand(6), torch.zeros(6), torch.ones(6)])
    student = torch.stack([torch.rand(6), torch.zeros(6), torch.zeros(6), torch.ones(6)]).requires_grad_()
    found = ranking.distance(teacher, student)
    (first,) = torch.autograd.grad(found.sum(), student, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), student, allow_unused=True)
    assert found.isfinite().all()
    assert first.isfinite().all()
    assert second is None or second.isfinite().all()


def test_the_size_of_a_map_with_one_position_has_no_gradient() -> None:
    student = torch.tensor([[0.0, 3.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(PowerRanking(FixedPower(1)).distance(torch.tensor([[1.0, 1, 1, 1]]), student).sum(), student)
    # d N_j / d v_i = ((i == j) - N_i N_j) / ||v||, the distance's slope is 2 (N_S - N_T) / 4, and N_T is 1/2 everywhere.
    torch.testing.assert_close(gradient, torch.tensor([[-1 / 12, 0, -1 / 12, -1 / 12]]))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_two_derivatives_are_right(ranking: Ranking) -> None:
    teacher, student = maps(2, 9), maps(2, 9, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ranking.distance(teacher, x), student)
    assert torch.autograd.gradgradcheck(lambda x: ranking.distance(teacher, x), student)


class Smooth(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm, self.last, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.last(torch.tanh(self.norm(self.conv(x)))))
        out: Tensor = self.head(x.square().mean((2, 3)))
        return out


@pytest.mark.parametrize("ranking", [PowerRanking(FixedPower(1.5)), SoftSpearman(0.5)])
@pytest.mark.parametrize("attribution", [GradCAM(), InputGradient(), GradientTimesInput()])
def test_gradients_with_respect_to_the_weights_equal_finite_differences(
    ranking: Ranking, attribution: GradCAM | InputGradient | GradientTimesInput
) -> None:
    teacher, student, x = Smooth(0).double(), Smooth(1).double(), maps(2, 2, 7, 7, seed=2)
    loss = AttributionLoss(teacher, attribution, ranking)
    parameters = list(student.parameters())
    _, term = loss(student, x)
    assert term > 0
    gradients = torch.autograd.grad(term, parameters, materialize_grads=True)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in gradients)
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(float(loss(student, x)[1].detach()))
            with torch.no_grad():
                parameter -= sign * step * direction
        difference = (values[0] - values[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-4, abs=1e-6)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.sampled_from([0.1, 1.0, 5.0]))
def test_soft_ranks_are_the_projection_onto_the_permutahedron(values: list[float], strength: float) -> None:
    """The optimality condition of the projection p of z: no vertex v has (z - p) . (v - p) > 0, and p is in the hull."""
    found = soft_rank(torch.tensor([values], dtype=torch.float64), strength)[0].numpy()
    count = len(values)
    ascending = np.sort(found)
    assert found.sum() == pytest.approx(count * (count + 1) / 2)
    assert all(ascending[:k].sum() >= k * (k + 1) / 2 - 1e-9 for k in range(1, count + 1))
    residual = np.array(values) / strength - found
    best = residual[np.argsort(residual)] @ np.arange(1, count + 1)  # the vertex of the largest product
    assert best <= residual @ found + 1e-7 * max(1, abs(best))


def test_soft_ranks_become_exact_with_a_small_strength() -> None:
    values = torch.tensor([[0.3, -1.0, 2.0, 0.3], [4.0, 3.0, 2.0, 1.0]])
    torch.testing.assert_close(soft_rank(values, 1e-4), torch.tensor([[2.5, 1.0, 4.0, 2.5], [4.0, 3.0, 2.0, 1.0]]))
    torch.testing.assert_close(soft_rank(values, 1e6), torch.full((2, 4), 2.5), rtol=1e-4, atol=1e-4)


def test_soft_ranks_of_many_samples_are_those_of_each() -> None:
    values = maps(5, 12)
    torch.testing.assert_close(soft_rank(values, 0.2), torch.cat([soft_rank(row[None], 0.2) for row in values]))


def test_training_with_the_soft_rank_brings_the_order_about() -> None:
    teacher, student = maps(1, 8), maps(1, 8, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([student], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        SoftSpearman().distance(teacher, F.softplus(student)).sum().backward()
        optimizer.step()
    assert torch.equal(ranks(student), ranks(teacher))


def test_the_capacity_aware_power_sharpens_narrow_networks() -> None:
    weight, act = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([3.0, 2.0])
    value = CapacityAwarePower(lambda network: zip(weight, act, strict=True)).value(nn.Identity())
    assert float(value) == pytest.approx(24 * (1 / 6 + 1 / 8) / 2)
    assert not value.requires_grad


def test_the_power_is_asked_for_at_every_step() -> None:
    widths = [torch.tensor(4.0), torch.tensor(4.0)]
    network = nn.Identity()
    ranking = PowerRanking(CapacityAwarePower({network: [widths]}.__getitem__))
    teacher, student = maps(2, 6), maps(2, 6, seed=1)
    torch.testing.assert_close(ranking.distance(teacher, student, network), PowerRanking(FixedPower(1.5)).distance(teacher, student))
    widths[0] = torch.tensor(2.0)
    torch.testing.assert_close(ranking.distance(teacher, student, network), PowerRanking(FixedPower(3.0)).distance(teacher, student))
    with pytest.raises(TrainingError, match="needs the student network"):
        ranking.distance(teacher, student)


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(TrainingError, match="power of the attribution map is 0"):
        FixedPower(0.0)
    with pytest.raises(TrainingError, match="strength of soft ranks is -1"):
        SoftSpearman(-1.0)
    with pytest.raises(TrainingError, match="weight of the attribution loss is nan"):
        AttributionLoss(digits_net(), GradCAM(), PowerRanking(), math.nan)
    with pytest.raises(TrainingError, match="no layer has an expected width"):
        CapacityAwarePower(lambda network: []).value(nn.Identity())
    with pytest.raises(TrainingError, match="finite values"):
        soft_rank(torch.tensor([[math.nan, 1.0]]))


def test_teacher_and_student_of_different_layers_are_an_error() -> None:
    loss = AttributionLoss(digits_net(), GradCAM(), PowerRanking())
    lacking = r"different layers: stem\.weight \(teacher \(16, 1, 3, 3\), student has none\), .* and 7 more"
    with pytest.raises(TrainingError, match=lacking):
        loss(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)), maps(2, 1, 8, 8).float())
    deep, shallow = (nn.Sequential(*_convolutions(count), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for count in (5, 2))
    with pytest.raises(TrainingError, match=r"2\.weight \(teacher \(4, 4, 3, 3\), student has none\)"):
        AttributionLoss(deep, GradCAM(("1",)), PowerRanking())(shallow, maps(2, 4, 8, 8).float())
    with pytest.raises(TrainingError, match="the network has no module residual2"):
        GradCAM(points=(Point("residual2"),)).explain(shallow, maps(2, 4, 8, 8).float())
    wider = resnet20()
    wider.layer3[0].stride = 1
    wider.layer3[0].conv1.stride = (1, 1)
    with pytest.raises(TrainingError, match=r"module layer3: .* shape \(2, 1, 8, 8\), the student's \(2, 1, 16, 16\)"):
        AttributionLoss(resnet20(), GradCAM(), PowerRanking())(wider, maps(2, 3, 32, 32).float())


def _convolutions(count: int) -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3, padding=1) for _ in range(count)]


def test_a_student_may_have_other_batch_norms() -> None:
    """Of the joint training each width has its own; folding leaves none."""
    model, x = digits_net(), maps(2, 1, 8, 8).float()
    description = describe(model, x[:1])
    joint = prepare_joint(model, search_space(description.layers, (4, 2)), description)
    calibrate(joint, [x])
    for student in (joint, fold_batch_norms(model, x[:1], description.producers).model):
        _, term = AttributionLoss(model, GradCAM(), PowerRanking())(student.eval(), x)
        assert term.isfinite()


@pytest.mark.parametrize("who", ["float model", "student"])
def test_a_map_that_is_not_finite_is_told_by_network_and_layer(who: str) -> None:
    teacher, student, x = digits_net(), digits_net(), maps(2, 1, 8, 8).float()
    loss = AttributionLoss(teacher, GradCAM(), PowerRanking()).with_task(lambda logits, batch: logits.nan_to_num().mean())
    broken = teacher if who == "float model" else student
    with torch.no_grad():
        broken.linear.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=rf"the {who}: the attribution map at module residual2 is not finite"):
        loss(student, x)


def test_a_student_that_breaks_later_gives_a_term_that_is_not_finite() -> None:
    """So that the training can go back to its last checkpoint."""
    loss, student, x = AttributionLoss(digits_net(), GradCAM(), PowerRanking()), digits_net(), maps(2, 1, 8, 8).float()
    assert loss(student, x)[1].isfinite()
    with torch.no_grad():
        student.linear.weight.fill_(math.nan)
    assert loss(student, x)[1].isnan()


def test_a_term_that_is_not_finite_is_not_blamed_on_the_loss() -> None:
    class Broken(Ranking):
        def _distance(self, teacher: Tensor, student: Tensor, network: nn.Module | None) -> Tensor:
            return student.sum(1) * math.nan

    with pytest.raises(TrainingError, match="the attribution term is nan, although the maps at module residual2 are finite"):
        AttributionLoss(digits_net(), GradCAM(), Broken())(digits_net(), maps(2, 1, 8, 8).float())


def test_inputs_without_a_gradient_are_an_error() -> None:
    network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    with pytest.raises(TrainingError, match=r"the float model: the input is torch\.int64 of shape \(2, 5\)"):
        AttributionLoss(network, GradCAM(), PowerRanking())(network, torch.ones(2, 5, dtype=torch.int64))


def test_one_forward_pass_of_the_student_gives_logits_and_term() -> None:
    teacher, student, x = digits_net(), digits_net(), maps(4, 1, 8, 8).float()
    calls = []
    student.register_forward_hook(lambda *call: calls.append(call[2]))
    logits, term = AttributionLoss(teacher.train(), GradCAM(), PowerRanking(), weight=10.0)(student, (x, torch.zeros(4)))
    assert len(calls) == 1
    assert logits is calls[0]
    with torch.no_grad():
        teacher_map = GradCAM().explain(teacher, x).maps[0]
        student_map = GradCAM().attribute(student, x).maps[0]
        torch.testing.assert_close(term, 10 * PowerRanking().distance(teacher_map, student_map).mean())
    (logits.mean() + term).backward()
    joined = AttributionLoss(teacher, GradCAM(), PowerRanking(), weight=10.0).with_task(lambda logits, batch: logits.mean())
    torch.testing.assert_close(joined(student, x), logits.mean() + term)
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training


def test_a_quantized_student_learns_from_the_term() -> None:
    """Through the fused kernel and the plain operations alike, although the kernel itself has no second derivative."""
    torch.manual_seed(0)
    model, x = digits_net(), torch.randn(4, 1, 8, 8)
    description = describe(model, x[:1])
    joint = prepare_joint(model, search_space(description.layers, (4, 2)), description)
    calibrate(joint, [x])
    gradients = []
    for mode in ("auto", "reference"):
        with use_fake_quantize(mode):
            _, term = AttributionLoss(model, GradCAM(), PowerRanking())(joint.eval(), x)
            gradients.append(torch.autograd.grad(term, [joint.stem.weight, joint.stem.weight_quantizer.step_4]))
    assert all(bool(gradient.abs().max() > 0) for gradient in gradients[0])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
