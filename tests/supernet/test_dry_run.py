"""What a search cannot do is told before it begins: operations without a second derivative, and numbers that are not finite."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitalloc import Costs, describe, search_space
from bitalloc.attribution import AttributionLoss, GradCAM, InputGradient, PowerRanking
from bitalloc.errors import TrainingError
from bitalloc.supernet import SearchSettings, SupernetSettings, prepare_supernet, supernet_search
from bitalloc.supernet.dry_run import dry_run
from bitalloc.training import Engine
from bitalloc.wrap import calibrate


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


def rehearse(case, loss_fn, change=lambda supernet: None, **options):
    supernet = prepare_supernet(case.model, case.space, case.description, SupernetSettings(range_start=None))
    calibrate(supernet, case.loader)
    change(supernet)
    dry_run(supernet, case.loader, loss_fn, None, Engine(), **options)
    return supernet


def gmpq(model, attribution=GradCAM()):  # noqa: B008 (it never changes)
    return AttributionLoss(model, attribution, PowerRanking()).with_task(lambda logits, batch: F.cross_entropy(logits, batch[1]))


def test_an_operation_without_a_second_derivative(case):
    class Net(case.Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(_Once.apply(x))

    case.model = Net()
    rehearse(case, case.loss_fn)
    rehearse(case, gmpq(case.model))  # from the last feature map on all can be differentiated
    with pytest.raises(TrainingError, match=r"the loss cannot be differentiated: .*once_differentiable.*another attribution.*edmips"):
        rehearse(case, gmpq(case.model, InputGradient()))


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory: of a derivative", "mat1 and mat2 cannot be multiplied"])
def test_other_errors_are_what_they_are(case, text):
    def failing(model, batch):
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        rehearse(case, failing)


def test_untrained_weights_need_give_no_finite_numbers(case):
    def nan(model, batch):
        return case.loss_fn(model, batch) * torch.nan

    with pytest.raises(TrainingError, match="the loss is nan before the search begins"):
        rehearse(case, nan)
    supernet = rehearse(case, nan, trained=False)
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_a_map_that_is_not_finite_is_not_called_the_loss(case):
    def broken(supernet):
        with torch.no_grad():
            supernet.head.weight.fill_(torch.nan)

    with pytest.raises(TrainingError, match="the student: the attribution map at call -1 of function relu is not finite"):
        rehearse(case, gmpq(copy.deepcopy(case.model)), broken)


class Transformer(nn.Module):
    """16 patches of an 8 x 8 image and a class token, which the head reads alone, so the gradient goes through the last attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat((self.token.expand(len(x), -1, -1), tokens), 1))[:, 0])


def test_a_transformer_is_searched():
    torch.manual_seed(0)
    model, loader = Transformer(), [(torch.randn(6, 1, 8, 8), torch.arange(6) % 3)] * 2
    description = describe(model, loader[0][0][:1])
    space = search_space(description, (4, 2), pins={"patches": "w8a8", "head": "w8a8"})
    found = supernet_search(
        model,
        description,
        space,
        loader,
        gmpq(model),
        steps=3,
        budgets=Costs(description, space).budgets({"bitops": "w3a3"}),
        calibration=loader,
        method="gmpq",
        settings=SearchSettings(learning_rate=0.01, supernet=SupernetSettings(range_start=None)),
    )
    assert len(found.losses) == 3
    assert any(abs(row[4] - row[2]) > 1e-6 for row in found.log_probabilities.weight.values())
