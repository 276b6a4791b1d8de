"""The search with the real attribution loss: what `gmpq` is."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bitalloc.attribution import AttributionLoss, CapacityAwarePower, GradCAM, PowerRanking
from bitalloc.budget import Budget
from bitalloc.search import Problem, solve
from bitalloc.supernet import GumbelSoftmax, SearchSettings, SupernetSettings, expected_bits, prepare_supernet, supernet_search
from bitalloc.training import Engine
from bitalloc.wrap import calibrate

SETTINGS = SearchSettings(learning_rate=0.01, logit_rate=1.0, supernet=SupernetSettings(range_start=None))
RANKING = PowerRanking(CapacityAwarePower(lambda supernet: expected_bits(supernet).values()))
ETA = 40.0


def attribution_loss(case):
    return AttributionLoss(case.model, GradCAM(), RANKING, ETA)


def search(case, loss_fn, budgets=(), steps=4, settings=SETTINGS, **options):
    return supernet_search(
        case.model,
        case.description,
        case.space,
        case.loader,
        loss_fn,
        steps=steps,
        budgets=budgets,
        calibration=case.loader,
        settings=settings,
        **options,
    )


def task(logits, batch):
    return F.cross_entropy(logits, batch[1])


def gmpq(case, **options):
    return search(case, attribution_loss(case).with_task(task), method="gmpq", **options)


def cam(model, x):
    """Grad-CAM in closed form: behind a global average the weights of the channels are those of the head. And the logits."""
    taken = []
    handle = model.head.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    maps = []
    left, right = (part.register_forward_hook(lambda *call: maps.append(call[2])) for part in (model.left, model.right))
    logits = model(x)
    for hook in (handle, left, right):
        hook.remove()
    features = F.relu(maps[0] + maps[1])
    torch.testing.assert_close(features.mean((2, 3)), taken[0])
    return F.relu((model.head.weight[logits.argmax(1)][:, :, None, None] * features).sum(1)).flatten(1), logits


def test_the_first_loss_is_that_of_the_paper(case):
    x, y = case.loader[0]
    supernet = prepare_supernet(case.model, case.space, case.description, SETTINGS.supernet)
    calibrate(supernet, case.loader)
    with torch.no_grad():
        wanted, _ = cam(case.model.eval(), x)
        found, logits = cam(supernet.train(), x)
    power = 24 / (4 * 4)  # even shares of 6, 4 and 2 bits
    distance = (F.normalize(wanted**power, dim=1) - F.normalize(found, dim=1)).square().mean()
    expected = float(F.cross_entropy(logits, y) + ETA * distance)
    assert float(ETA * distance) > 0.01
    assert gmpq(case).losses[0] == pytest.approx(expected, rel=1e-4)


def test_the_term_changes_what_is_learned_and_nothing_of_the_teacher(case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    found, plain = gmpq(case), search(case, case.loss_fn)
    assert (found.log_probabilities.provenance["method"], plain.log_probabilities.provenance["method"]) == ("gmpq", "edmips")
    assert found.log_probabilities.act != plain.log_probabilities.act
    assert case.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in case.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def test_as_a_term_of_its_own_it_gives_the_same_losses(case):
    loss = attribution_loss(case)
    apart = search(case, case.loss_fn, attribution=lambda supernet, batch: loss(supernet, batch)[1], steps=1)
    assert apart.log_probabilities.provenance["method"] == "gmpq"
    assert apart.losses == pytest.approx(gmpq(case, steps=1).losses, rel=1e-5)


@pytest.mark.parametrize(
    ("pair", "engine"), [("pact", Engine()), ("lsq", Engine(precision="bfloat16")), ("pact", Engine(channels_last=True, accumulate=3))]
)
def test_a_budget_is_kept_with_any_engine(case, pair, engine):
    widest = {name: candidates.pairs[0] for name, candidates in case.space.candidates.items()}
    budget = Budget("bitops", 0.6 * case.table.total(widest), case.table)
    supernet = replace(SETTINGS.supernet, pair=pair, relaxation=GumbelSoftmax())
    result = gmpq(case, budgets=[budget], steps=24, settings=replace(SETTINGS, logit_rate=0.01, supernet=supernet), engine=engine)
    assert result.expected[0] == pytest.approx(budget.limit, rel=0.03)
    policy = solve(Problem(case.space, result.log_probabilities.scores(case.space), (budget,))).bits
    assert budget.table.total(policy) <= budget.limit
