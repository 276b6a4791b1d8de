"""What test_two_ranks.py runs on two ranks, and on one to compare."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bitalloc import describe, search_space
from bitalloc.attribution import AttributionLoss, CapacityAwarePower, GradCAM, PowerRanking
from bitalloc.costs import Costs
from bitalloc.supernet import SearchSettings, SinglePath, SupernetSettings, expected_bits, supernet_search
from bitalloc.supernet.choice import choices
from bitalloc.training import Engine
from bitalloc.training.ranks import rank

spec = importlib.util.spec_from_file_location("trainings", Path(__file__).parents[1] / "training" / "two_ranks.py")
trainings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trainings)

STEPS = 10  # the eighth batch is a single image, which one of two ranks has to do without
SETTINGS = SearchSettings(learning_rate=0.02, logit_rate=30.0, supernet=SupernetSettings(range_start=None), seed=3)
BUDGETS = {"bitops": "w3a3", "weight_bytes": "w4a4"}


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def search(loss_of, settings=SETTINGS, engine=None, calibration=None, budgets=BUDGETS):
    """A search: losses, trace, log-probabilities, weights with the logits among them, and the shares of every pass."""
    model, shares = network(), []
    description = describe(model, torch.zeros(1, 1, 8, 8))
    space = search_space(description, [6, 4, 2], [4, 3, 2], pins={"0": "w8a8", "8": "w8a8"})
    loss_fn = loss_of(model)

    def loss(supernet, batch):
        shares.append([choice.shares().tolist() for choice in choices(supernet)])
        return loss_fn(supernet, batch)

    result = supernet_search(
        model,
        description,
        space,
        trainings.batches(),
        loss,
        steps=STEPS,
        budgets=Costs(description, space).budgets(budgets),
        calibration=calibration or list(trainings.batches())[:2],
        settings=settings,
        engine=engine,
    )
    return {
        "losses": result.losses,
        "costs": result.trace.costs,
        "prices": result.trace.prices,
        "entropy": result.trace.entropy,
        "expected": result.expected,
        "log_probabilities": {"weight": result.log_probabilities.weight, "act": result.log_probabilities.act},
        "shares": shares,
        "images": result.images,
        "weights": trainings.weights(result.supernet),
    }


def attribution_loss(teacher):
    return AttributionLoss(teacher, GradCAM(), PowerRanking(CapacityAwarePower(lambda supernet: expected_bits(supernet).values())))


def plain(model):
    return trainings.LOSS


def gmpq(engine=None):
    """With the attribution term, from one forward pass."""
    return search(
        lambda teacher: attribution_loss(teacher).with_task(lambda logits, batch: F.cross_entropy(logits, batch[1])), engine=engine
    )


def single_path(engine=None):
    """Draws one candidate a step."""
    settings = replace(SETTINGS, supernet=replace(SETTINGS.supernet, relaxation=SinglePath()))
    return search(plain, settings, engine)


def clipped():
    """The gradient of every logit vector is clipped at every step, and no price is in it: the widest policy keeps the budget."""
    return search(plain, replace(SETTINGS, logit_rate=10.0, logit_clip=1e-3), budgets={"bitops": "w6a4"})


def calibrated():
    """Each rank calibrates on other images: signed ones on rank 1."""
    settings = replace(SETTINGS, supernet=SupernetSettings(pair="lsq"))
    return search(plain, settings, calibration=[next(iter(trainings.batches()))[0] + 3 * (1 - rank())])


def spread():
    """With weights spread over the ranks."""
    engine = Engine(sharding="full")
    return {"gmpq": gmpq(engine), "single_path": single_path(engine)}


JOBS = (gmpq, single_path, clipped, calibrated, spread)

if __name__ == "__main__":
    found = {job.__name__: job() for job in JOBS}
    (Path(sys.argv[1]) / f"{rank()}.json").write_text(json.dumps(found))
