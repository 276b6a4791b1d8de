import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.errors import TrainingError
from bitalloc.training import Progress, Top1, cross_entropy_loss, distillation_loss, evaluate, predict


class Given(nn.Module):
    """Gives its input as logits; counts calls in which it was training."""

    def __init__(self):
        super().__init__()
        self.calls_in_training = 0
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        self.calls_in_training += self.training
        return inputs * self.scale


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [1.0, 0.0, 5.0], [9.0, 0.0, 5.0]])
LABELS = torch.tensor([0, 1, 2, 2, 0])


def pairs(batch_size=2):
    return DataLoader(TensorDataset(LOGITS, LABELS), batch_size=batch_size)


def test_top1_is_counted_over_uneven_batches():
    calls = []

    class Recorder(Progress):
        def start(self, name, total, completed=0):
            calls.append((name, total))

        def advance(self, n=1, **metrics):
            calls.append(n)

        def finish(self):
            calls.append("end")

    result = evaluate(Given(), pairs(), Recorder())
    assert result == Top1(correct=4, total=5)
    assert result.accuracy == 0.8
    assert calls == [("evaluate", 5), 2, 2, 1, "end"]


def test_predict_gives_all_logits_in_order_without_gradient():
    logits = predict(Given(), pairs())
    assert torch.equal(logits, LOGITS)
    assert not logits.requires_grad
    assert torch.equal(predict(Given(), [LOGITS[:2], LOGITS[2:]]), LOGITS)


@pytest.mark.parametrize("function", [evaluate, predict])
def test_evaluation_mode_inside_and_modes_put_back(function):
    model = nn.Sequential(Given(), nn.Dropout(0.5), Given())
    model[2].eval()
    function(model, pairs())
    assert model[0].calls_in_training == 0
    assert [module.training for module in model] == [True, True, False]


@pytest.mark.parametrize("function", [evaluate, predict])
def test_bad_data(function):
    with pytest.raises(TrainingError, match="the loader is empty"):
        function(Given(), [])
    with pytest.raises(TrainingError, match=r"shape \(N, classes\)"):
        function(Given(), [(torch.ones(2), torch.ones(2))])
    with pytest.raises(TrainingError, match="a batch is a dict"):
        function(Given(), [{"image": LOGITS}])


def test_bad_labels_and_nan_are_errors_not_accuracies():
    with pytest.raises(TrainingError, match="labels have shape"):
        evaluate(Given(), [(LOGITS, torch.nn.functional.one_hot(LABELS))])
    with pytest.raises(TrainingError, match="NaN"):
        evaluate(Given(), [(LOGITS * math.nan, LABELS)])


@given(smoothing=st.floats(0, 0.99))
def test_label_smoothing_closed_form(smoothing):
    loss = cross_entropy_loss(smoothing)(Given(), (LOGITS, LABELS))
    target = torch.full((5, 3), smoothing / 3)
    target[torch.arange(5), LABELS] += 1 - smoothing
    expected = -(target * LOGITS.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_default_smoothing_is_a_tenth():
    pair = (LOGITS, LABELS)
    assert cross_entropy_loss()(Given(), pair).item() == cross_entropy_loss(0.1)(Given(), pair).item()


@given(temperature=st.floats(0.5, 8), weight=st.floats(0, 1))
def test_distillation_closed_form(temperature, weight):
    teacher, student = Given(), Given()
    nn.init.constant_(teacher.scale, -0.7)
    loss = distillation_loss(teacher, temperature=temperature, weight=weight)(student, (LOGITS, LABELS))
    p, q = (-0.7 * LOGITS.double() / temperature).softmax(1), (LOGITS.double() / temperature).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean()
    hard = -LOGITS.double().log_softmax(1)[torch.arange(5), LABELS].mean()
    expected = (1 - weight) * hard + weight * temperature**2 * soft
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_teacher_is_in_evaluation_mode_without_gradient_and_unchanged():
    teacher, student = nn.Sequential(Given(), nn.Dropout(0.9)), Given()
    distillation_loss(teacher, weight=1.0)(student, (LOGITS * 0.3, LABELS)).backward()
    assert teacher[0].calls_in_training == 0
    assert teacher[0].scale.grad is None
    assert teacher.training
    assert teacher[1].training
    # the student equals the teacher without dropout: nothing to learn
    assert student.scale.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"weight": 1.5}, {"label_smoothing": 1.0}])
def test_bad_distillation_options(options):
    with pytest.raises(TrainingError, match="expected"):
        distillation_loss(Given(), **options)


def test_bad_smoothing_and_bad_batch():
    with pytest.raises(TrainingError, match="label_smoothing is 1"):
        cross_entropy_loss(1.0)
    with pytest.raises(TrainingError, match="expected a pair"):
        cross_entropy_loss()(Given(), LOGITS)
