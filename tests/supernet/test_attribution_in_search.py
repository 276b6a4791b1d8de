"""The attribution loss within a supernet: its gradient against finite differences, and no memory that stays behind."""

import gc

import pytest
import torch
from torch.nn import functional as F

from bitalloc.attribution import AttributionLoss, CapacityAwarePower, GradCAM, PowerRanking, SoftSpearman
from bitalloc.budget import Budget
from bitalloc.choices import search_space
from bitalloc.costs import BitOps
from bitalloc.supernet import DualAscent, SearchSettings, SupernetSettings, expected_bits, is_architecture_logit, prepare_supernet
from bitalloc.supernet.search import _optimizer
from bitalloc.supernet.step import SearchStep
from bitalloc.wrap import calibrate

PINNED = {"stem": "w8a8", "head": "w8a8"}


def supernet_of(case, space, pair):
    supernet = prepare_supernet(case.model, space, case.description, SupernetSettings(pair=pair, range_start=None))
    calibrate(supernet, case.loader)
    return supernet.train()


@pytest.mark.parametrize("pair", ["pact", "lsq"])
@pytest.mark.parametrize("layers", [(), ("norm",)], ids=["last feature map", "map before the mixtures"])
@pytest.mark.parametrize("ranking", ["power", "spearman"])
def test_the_gradient_of_the_logits_equals_finite_differences(case, pair, layers, ranking):
    """In float64. Only the last two convolutions have a choice, so no value that a logit moves is rounded afterwards: a rounding passes
    its gradient straight through, which finite differences do not. With the map before them the gradient is that of a gradient. The power
    has none, so it stays that of the start.
    """
    space = search_space(case.description, (6, 4, 2), pins={**PINNED, "depthwise": "w8a8"})
    supernet = supernet_of(case, space, pair).double()
    logits = [parameter for name, parameter in supernet.named_parameters() if is_architecture_logit(name, parameter)]
    assert [len(each) for each in logits] == [3] * 3  # two weights, and the activation that both read
    generator = torch.Generator().manual_seed(1)
    for each in logits:
        torch.nn.init.normal_(each, generator=generator)
    bits = [tuple(width.detach() for width in pair) for pair in expected_bits(supernet).values()]
    found = {"power": PowerRanking(CapacityAwarePower(lambda student: bits)), "spearman": SoftSpearman()}[ranking]
    loss = AttributionLoss(case.model.double(), GradCAM(layers), found, weight=40.0)
    batch = case.loader[0][0].double()

    def term():
        return loss(supernet, batch)[1]

    gradients = torch.autograd.grad(term(), logits)
    # Behind the map the slope of PACT is the same at every width, so its activation's logits have no gradient.
    assert sum(bool(gradient.abs().max() > 1e-3) for gradient in gradients) >= (2 if pair == "pact" and layers else 3)
    for each, gradient in zip(logits, gradients, strict=True):
        for index in range(3):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    each[index] += sign * 1e-6
                ends.append(term().item())
                with torch.no_grad():
                    each[index] -= sign * 1e-6
            assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


def live():
    """How many tensors are alive, and how many bytes they hold; those that share memory count once."""
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]  # none of an exporter's fakes
    return len(tensors), sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def allocated(run):
    """Bytes that are allocated and not freed again while ``run`` runs; also those that only a graph of operations holds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return sum(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


def test_memory_does_not_grow_over_200_steps_with_the_attribution_term(case):
    space = search_space(case.description, (4, 2), pins=PINNED)
    supernet, table = supernet_of(case, space, "pact"), BitOps().table(case.description.layers, space)
    widest = {name: candidates.pairs[0] for name, candidates in space.candidates.items()}
    ranking = PowerRanking(CapacityAwarePower(lambda student: expected_bits(student).values()))
    objective = AttributionLoss(case.model, GradCAM(), ranking).with_task(lambda logits, batch: F.cross_entropy(logits, batch[1]))
    step = SearchStep(supernet, [Budget("bitops", 0.6 * table.total(widest), table)], objective, DualAscent(), 300, 1.0)
    optimizer = _optimizer(supernet, SearchSettings(learning_rate=0.01))
    optimizer.register_step_pre_hook(step.steer)
    batch = tuple(part[:2] for part in case.loader[0])

    def run(count):
        for _ in range(count):
            step(supernet, batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    run(2)
    gc.collect()
    gc.disable()  # what only a collection would free would be a leak on a GPU
    try:
        tensors, size = live()
        run(200)
        now = live()
        kept = allocated(lambda: run(5))
    finally:
        gc.enable()
    assert now[0] <= tensors + 2
    assert now[1] <= size + 64
    assert kept == 0
