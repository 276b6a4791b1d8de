"""A search that diverges goes back with its controller, which steers at the lower rate."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bitalloc.attribution import AttributionLoss, GradCAM, PowerRanking, SoftSpearman
from bitalloc.budget import Budget
from bitalloc.supernet import DualAscent, GumbelSoftmax, SearchSettings, SupernetSettings, supernet_search
from bitalloc.training import CheckpointConfig, Engine

SETTINGS = SearchSettings(learning_rate=0.01, supernet=SupernetSettings(range_start=None, relaxation=GumbelSoftmax()))
FAILS = 8
STEPS = 24


def search(case, *, settings=SETTINGS, fails=True, objective=None, **options):
    """The weights break before step 8, the first time. The loss is computed once before the training, too."""
    widest = {name: candidates.pairs[0] for name, candidates in case.space.candidates.items()}
    objective, calls = objective or case.loss_fn, [0]

    def loss_fn(model, batch):
        calls[0] += 1
        if fails and calls[0] == FAILS + 1:
            torch.nn.init.constant_(model.left.weight, math.nan)
        return objective(model, batch)

    return supernet_search(
        case.model,
        case.description,
        case.space,
        case.loader,
        loss_fn,
        steps=STEPS,
        budgets=[Budget("bitops", 0.6 * case.table.total(widest), case.table)],
        calibration=case.loader,
        settings=settings,
        **options,
    )


def test_back_at_the_start_it_is_the_search_of_the_lower_rate(case):
    found = search(case, engine=Engine(retries=1))
    assert [(retry.step, retry.back_to) for retry in found.retries] == [(FAILS, 0)]
    slower = replace(SETTINGS, **{name: getattr(SETTINGS, name) / 2 for name in ("learning_rate", "logit_rate", "scale_rate")})
    expected = search(case, settings=slower, fails=False)
    assert found.losses == expected.losses
    assert found.trace == expected.trace
    state = expected.supernet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.supernet.state_dict().items())


def test_back_at_a_checkpoint_the_multipliers_are_those_of_then(case, tmp_path, monkeypatch):
    prices, seen = DualAscent.prices, []

    def watched(controller, reading):
        seen.append((controller.state_dict(), reading))
        return prices(controller, reading)

    monkeypatch.setattr(DualAscent, "prices", watched)
    config = CheckpointConfig(tmp_path / "search", "run", steps=3)
    found = search(case, engine=Engine(retries=1, retry_rate=0.5), checkpoint=config)
    assert found.retries[0].back_to == 6
    # Steps 1 to 7, then 7 to 24: the eighth was never priced.
    assert len(seen) == 7 + STEPS - 6
    (first, then), (again, now) = seen[6], seen[7]
    assert first["multipliers"][0] != seen[5][0]["multipliers"][0] != 0
    assert again == first
    assert now == replace(then, rate=then.rate / 2)
    assert len(found.trace.costs) == len(found.losses) == STEPS
    limit = found.trace.limits[0]
    assert [cost / limit - 1 for (cost,) in found.trace.costs] == pytest.approx([reading.excess[0] for _, reading in seen[:6] + seen[7:]])


def test_the_budget_is_met_at_a_tenth_of_the_rate(case):
    found = search(case, engine=Engine(retries=1, retry_rate=0.1))
    assert found.retries[0].rate == 0.1
    assert found.expected[0] == pytest.approx(found.trace.limits[0], rel=0.02)


@pytest.mark.parametrize("ranking", [PowerRanking(), SoftSpearman()])
def test_an_attribution_that_breaks_is_retried_too(case, ranking):
    objective = AttributionLoss(case.model, GradCAM(), ranking).with_task(lambda logits, batch: F.cross_entropy(logits, batch[1]))
    (retry,) = search(case, objective=objective, engine=Engine(retries=1)).retries
    assert retry.step == FAILS
    assert "the loss is nan at step 8 (the first output that is not finite is that of layer left" in retry.reason
