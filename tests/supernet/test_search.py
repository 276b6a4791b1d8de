import copy
import gc
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from bitalloc.budget import Budget
from bitalloc.choices import search_space
from bitalloc.costs import BitOps
from bitalloc.errors import InfeasibleError, SpaceError, TrainingError
from bitalloc.search import Problem, solve
from bitalloc.space import Table
from bitalloc.supernet import (
    Controller,
    DualAscent,
    FixedLambda,
    GumbelSoftmax,
    SearchSettings,
    SinglePath,
    SupernetSettings,
    draw,
    expected_cost,
    fillings,
    is_architecture_logit,
    prepare_supernet,
    supernet_search,
)
from bitalloc.supernet.choice import choices
from bitalloc.supernet.search import _optimizer
from bitalloc.supernet.step import SearchStep
from bitalloc.training import CheckpointConfig, DivergenceError, Engine, StepDecay
from bitalloc.training.accumulate import Accumulation
from bitalloc.training.device import rank_weighted
from bitalloc.wrap import calibrate, quantized_layers

SETTINGS = SearchSettings(learning_rate=0.01, supernet=SupernetSettings(range_start=None))


def search(case, budgets, steps=24, **options):
    options.setdefault("settings", SETTINGS)
    options.setdefault("loss_fn", case.loss_fn)
    loss_fn, loader = options.pop("loss_fn"), options.pop("loader", case.loader)
    return supernet_search(
        case.model, case.description, case.space, loader, loss_fn, steps=steps, budgets=budgets, calibration=case.loader, **options
    )


def in_between(case, share):
    """A BitOps budget between the smallest and the widest policy."""
    ends = [sum(pick(case.table.values[n][b] for b in c.pairs) for n, c in case.space.candidates.items()) for pick in (min, max)]
    return Budget("bitops", ends[0] + share * (ends[1] - ends[0]), case.table)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_cost_ends_within_two_percent_and_the_policy_within_the_budget(case, share, seed):
    budget = in_between(case, share)
    result = search(case, [budget], steps=40, settings=replace(SETTINGS, seed=seed))
    assert result.expected[0] == pytest.approx(budget.limit, rel=0.02)
    score = result.log_probabilities.scores(case.space)
    solutions = [solve(Problem(case.space, table, (budget,))) for table in fillings(score, case.space, [budget])]
    assert all(budget.table.total(solution.bits) <= budget.limit for solution in solutions)


@pytest.mark.parametrize("relaxation", [GumbelSoftmax(), SinglePath()])
@pytest.mark.parametrize("pair", ["pact", "lsq"])
def test_every_relaxation_and_pair_reaches_several_budgets(case, relaxation, pair):
    budgets = case.costs.budgets({"bitops": "w4a4", "weight_bytes": "w3a3"})
    settings = replace(SETTINGS, supernet=SupernetSettings(pair=pair, relaxation=relaxation, range_start=None))
    result = search(case, budgets, steps=40, settings=settings)
    assert max(cost / budget.limit for cost, budget in zip(result.expected, budgets, strict=True)) == pytest.approx(1, abs=0.02)


def test_without_a_budget_the_policy_is_the_argmax(case):
    result = search(case, [], settings=replace(SETTINGS, logit_rate=1.0))
    found = solve(Problem(case.space, result.log_probabilities.scores(case.space), ())).bits
    layers = quantized_layers(result.supernet)
    for name in case.space.free:
        choice = layers[name].weight_quantizer.choice
        assert found[name].weight == choice.widths[int(choice.architecture_logits.argmax())]
    assert len({tuple(row.values()) for row in result.log_probabilities.weight.values()}) == len(case.space.free)


def test_what_a_result_tells(case, tmp_path):
    budget = in_between(case, 0.3)
    before = copy.deepcopy(case.model.state_dict())
    result = search(case, [budget], steps=10)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    trace = result.trace
    assert (len(trace.costs), len(trace.prices), len(trace.entropy), len(result.losses)) == (10, 10, 10, 10)
    assert trace.entropy[0] == pytest.approx(1)
    even = prepare_supernet(case.model, case.space, case.description)
    assert trace.costs[0][0] == pytest.approx(expected_cost(even, case.table).item())
    assert result.images == 120
    found = result.log_probabilities
    assert found.provenance["method"] == "edmips"
    assert found.heads == ("head",)
    json.dumps(found.to_json(), allow_nan=False)
    found.save(tmp_path / "found.json")
    assert type(found).load(tmp_path / "found.json").scores(case.space) == found.scores(case.space)


def test_fixed_lambda_moves_the_logits_as_the_published_term(case):
    macs = case.description.layers[0].macs
    supernet = prepare_supernet(case.model, case.space, case.description, SETTINGS.supernet)
    calibrate(supernet, case.loader)
    budget = in_between(case, 0.3)
    step = SearchStep(supernet, [budget], case.loss_fn, FixedLambda(0.05, macs), 10, clip=1.0)
    step(supernet, case.loader[0])
    step.steer(_optimizer(supernet, SETTINGS))
    logits = {name: p for name, p in supernet.named_parameters() if name.endswith("logits")}
    own = {name: p.grad.clone() for name, p in logits.items()}
    supernet.zero_grad()
    (case.loss_fn(supernet, case.loader[0]) + 0.05 * expected_cost(supernet, case.table) / macs).backward()
    for name, parameter in logits.items():
        torch.testing.assert_close(own[name], parameter.grad)


def attribution(model, batch):
    """A gradient of the network's own output within the loss, as attribution maps are."""
    x = batch[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).amax(1).sum(), x, create_graph=True)
    return gradient.square().mean()


@pytest.mark.parametrize("pair", ["pact", "lsq"])
def test_an_attribution_term_changes_what_is_learned(case, pair):
    settings = replace(SETTINGS, logit_rate=1.0, supernet=SupernetSettings(pair=pair, range_start=None))
    plain = search(case, [], settings=settings, steps=6)
    term = search(case, [], settings=settings, steps=6, attribution=lambda model, batch: 100 * attribution(model, batch))
    assert term.log_probabilities.provenance["method"] == "gmpq"
    assert term.log_probabilities.act != plain.log_probabilities.act


def test_memory_does_not_grow_over_sixty_steps(case):
    case.space = search_space(case.description, (4, 2), pins={"stem": "w8a8", "head": "w8a8"})
    case.table = BitOps().table(case.description.layers, case.space)
    supernet = prepare_supernet(case.model, case.space, case.description, SupernetSettings(pair="lsq"))
    calibrate(supernet, case.loader)
    budget = in_between(case, 0.3)
    step = SearchStep(supernet, [budget], case.loss_fn, DualAscent(), 200, 1.0, attribution)
    optimizer = _optimizer(supernet, SETTINGS)
    optimizer.register_step_pre_hook(step.steer)

    def run(count):
        for index in range(count):
            optimizer.zero_grad(set_to_none=True)
            step(supernet, tuple(part[:2] for part in case.loader[index % 3]))
            optimizer.step()

    def alive():
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    run(2)
    gc.collect()
    gc.disable()  # what only a collection would free would be a leak on a GPU
    try:
        before = alive()
        run(60)
        assert alive() <= before + 2
    finally:
        gc.enable()


@pytest.mark.parametrize("relaxation", [GumbelSoftmax(), SinglePath()])
def test_killed_and_resumed_it_ends_in_the_same_bits(case, tmp_path, relaxation):
    settings = replace(SETTINGS, supernet=replace(SETTINGS.supernet, relaxation=relaxation))
    budget = in_between(case, 0.3)
    whole = search(case, [budget], settings=settings, steps=12)

    class Killed(Exception):
        pass

    calls = []

    def dying(model, batch):
        calls.append(0)
        if len(calls) > 8:
            raise Killed
        return case.loss_fn(model, batch)

    config = CheckpointConfig(tmp_path / "search.safetensors", "run", steps=3)
    with pytest.raises(Killed):
        search(case, [budget], settings=settings, steps=12, checkpoint=config, loss_fn=dying)
    resumed = search(case, [budget], settings=settings, steps=12, checkpoint=config)
    assert resumed.losses == whole.losses
    assert resumed.trace == whole.trace
    state = whole.supernet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.supernet.state_dict().items())


SINGLE_PATH = replace(SETTINGS, supernet=replace(SETTINGS.supernet, relaxation=SinglePath()))


def drawing(case, fails_at=None):
    """A loss that notes the draw and the images of each of its calls; the call of a number finds the memory full, the first is number 0."""
    drawn = []

    def loss_fn(model, batch):
        drawn.append((tuple(choice.shares().argmax().item() for choice in choices(model)), len(batch[0])))
        if len(drawn) == fails_at:
            raise torch.OutOfMemoryError("full")
        return case.loss_fn(model, batch)

    return loss_fn, drawn


def assert_one_draw_a_batch(drawn, parts):
    batches = [drawn[start : start + parts] for start in range(0, len(drawn), parts)]
    assert {images for _, images in drawn} == {12 // parts}
    assert all(len({draw for draw, _ in batch}) == 1 for batch in batches)
    assert all(first[0] != second[0] for first, second in pairwise(batches))


def test_a_batch_in_parts_has_one_draw_and_one_price(case):
    loss_fn, drawn = drawing(case)
    result = search(case, [in_between(case, 0.3)], settings=SINGLE_PATH, steps=5, engine=Engine(accumulate=3), loss_fn=loss_fn)
    assert len(result.trace.costs) == 5
    assert result.parts == 3
    assert len(drawn) == 1 + 5 * 3  # the first call is the dry run's
    assert_one_draw_a_batch(drawn[1:], 3)


def test_a_batch_that_is_split_anew_keeps_its_draw(case):
    """The second of two parts finds the memory full: the batch begins again in four, with the draw that it had."""
    loss_fn, drawn = drawing(case, fails_at=3)
    engine = Engine(accumulate=2, split_on_memory=True)
    result = search(case, [in_between(case, 0.3)], settings=SINGLE_PATH, steps=3, engine=engine, loss_fn=loss_fn)
    assert result.parts == 4
    assert len(result.trace.costs) == 3
    assert len(drawn) == 1 + 2 + 3 * 4
    assert drawn[1][0] == drawn[2][0] == drawn[3][0]
    assert_one_draw_a_batch(drawn[3:], 4)
    planned = search(case, [in_between(case, 0.3)], settings=SINGLE_PATH, steps=3, engine=Engine(accumulate=4))
    assert (result.losses, result.trace) == (planned.losses, planned.trace)


class Broken(Controller):
    """Its second price is no number."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def prices(self, reading):
        self.calls += 1
        return (1.0, self.value if self.calls == 2 else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_price_that_is_not_finite_never_reaches_the_logits(case, value):
    budgets = [in_between(case, 0.3), replace(in_between(case, 0.5), name="energy")]
    with pytest.raises(DivergenceError, match=f"the price of the budget 'energy' is {value} at step 2.*Broken.prices must give a finite"):
        search(case, budgets, steps=4, controller=Broken(value))


def stepped(case, clip=1.0, budgets=1):
    """A calibrated supernet and its step, at a price that is far above what a gradient of the loss may have."""
    supernet = prepare_supernet(case.model, case.space, case.description, SETTINGS.supernet)
    calibrate(supernet, case.loader)
    controller = FixedLambda(100.0, case.table.total({name: c.pairs[0] for name, c in case.space.candidates.items()}))
    return supernet, SearchStep(supernet, [in_between(case, 0.3)] * budgets, case.loss_fn, controller, 10, clip)


def logit_gradients(supernet):
    return {name: p.grad for name, p in supernet.named_parameters() if is_architecture_logit(name, p)}


def test_the_gradient_that_is_clipped_is_that_of_the_whole_batch(case):
    case.model.eval()  # batch norms see a part at a time
    order = case.loader[0][1].argsort()  # so parts have other gradients than the whole
    found = []
    for parts in (1, 3):
        supernet, step = stepped(case, clip=1e-5, budgets=0)
        Accumulation(Engine(accumulate=parts)).gradients(supernet, step, tuple(part[order] for part in case.loader[0]), 1)
        step.steer(_optimizer(supernet, SETTINGS))
        found.append(logit_gradients(supernet))
    for name, gradient in found[0].items():
        assert gradient.norm() == pytest.approx(1e-5, rel=0.1)
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-9)


def test_prices_are_not_clipped_with_the_gradient_of_the_loss(case):
    supernet, step = stepped(case, clip=1e-9)
    step(supernet, case.loader[0])
    step.steer(_optimizer(supernet, SETTINGS))
    assert max(gradient.norm() for gradient in logit_gradients(supernet).values()) > 1


def test_a_rank_with_more_images_than_others_draws_at_every_batch(case):
    supernet = prepare_supernet(case.model, case.space, case.description, replace(SETTINGS.supernet, relaxation=SinglePath()))
    calibrate(supernet, case.loader)
    step, drawn = SearchStep(supernet, [], case.loss_fn, DualAscent(), 10, 1.0), []
    with rank_weighted(8 / 7):
        for index in range(8):
            step(supernet, case.loader[index % 3])
            drawn.append(tuple(choice.shares().argmax().item() for choice in choices(supernet)))
    assert len(set(drawn)) > 4


def test_a_step_prices_the_logits_of_the_model_that_trains(case):
    supernet, step = stepped(case)
    twin = copy.deepcopy(supernet)  # as for parameters that are spread over ranks
    step(twin, case.loader[0])
    step.steer(_optimizer(twin, SETTINGS))
    assert all(gradient is None for gradient in logit_gradients(supernet).values())
    own, alone = stepped(case)
    alone(own, case.loader[0])
    alone.steer(_optimizer(own, SETTINGS))
    for name, gradient in logit_gradients(own).items():
        torch.testing.assert_close(logit_gradients(twin)[name], gradient)


def test_a_drawn_mixture_goes_where_its_logits_go_and_is_not_saved(case):
    settings = replace(SETTINGS.supernet, relaxation=GumbelSoftmax())
    supernet = prepare_supernet(case.model, case.space, case.description, settings)
    names = set(supernet.state_dict())
    draw(supernet, 0.5)
    assert set(supernet.state_dict()) == names
    assert all(choice.shares().device.type == "meta" for choice in choices(supernet.to("meta")))


def test_in_bfloat16(case):
    result = search(case, [in_between(case, 0.3)], steps=4, engine=Engine(precision="bfloat16"), attribution=attribution)
    assert all(loss == loss for loss in result.losses)


def test_logits_have_a_rate_of_their_own_and_no_decay(case):
    supernet = prepare_supernet(case.model, case.space, case.description)
    for settings in (SETTINGS, replace(SETTINGS, scale_rate=0.0)):
        groups = _optimizer(supernet, settings).param_groups
        own = {id(p) for name, p in supernet.named_parameters() if is_architecture_logit(name, p)}
        (group,) = [group for group in groups if own & {id(p) for p in group["params"]}]
        assert {id(p) for p in group["params"]} == own
        assert (group["lr"], group["weight_decay"]) == (settings.logit_rate, 0)
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in supernet.parameters())


def test_the_rates_fall_as_published():
    schedule = StepDecay(10)
    assert [schedule.factor(step) for step in (0, 9, 10, 19, 20, 24)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(TrainingError):
        StepDecay(0)


def test_the_dry_run_changes_nothing(case):
    class Shuffled:
        def __iter__(self):
            return iter([case.loader[int(index)] for index in torch.randperm(3)])

    first = search(case, [in_between(case, 0.3)], loader=Shuffled(), steps=4)
    torch.manual_seed(123)
    second = search(case, [in_between(case, 0.3)], loader=Shuffled(), steps=4)
    assert first.losses == second.losses


def never(model, batch):
    raise AssertionError("the training began")


def test_bad_input_ends_before_the_training(case):
    smallest = in_between(case, 0.0)
    with pytest.raises(InfeasibleError, match=f"smallest policy of the search space costs {smallest.limit:.6g}"):
        search(case, [replace(smallest, limit=0.9 * smallest.limit)], loss_fn=never)
    rows = {name: row for name, row in case.table.values.items() if name != "head"}
    with pytest.raises(SpaceError, match="no layer head"):
        search(case, [Budget("bitops", smallest.limit * 2, Table(rows, "bitops"))], loss_fn=never)
    with pytest.raises(TrainingError, match="the loader is empty"):
        search(case, [], loader=[])
    with pytest.raises(TrainingError, match="the loss gave a float"):
        search(case, [], loss_fn=lambda model, batch: 1.0)
    with pytest.raises(TrainingError, match="the loss is nan before the search begins"):
        search(case, [], loss_fn=lambda model, batch: case.loss_fn(model, batch) * float("nan"))
    with pytest.raises(TrainingError, match="0 steps"):
        search(case, [], steps=0)
    case.space = search_space(case.description, (4,))
    with pytest.raises(SpaceError, match="nothing to search"):
        search(case, [], loss_fn=never)


def test_nan_in_the_double_backward_is_told_before_the_training(case):
    def zero_map(model, batch):
        x = batch[0].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (gradient * 0).square().sum().sqrt()  # the norm of a map that is zero

    with pytest.raises(TrainingError, match="the attribution term is finite, but its gradient is not, before the search begins"):
        search(case, [], attribution=zero_map)


def test_a_wrapped_module_keeps_its_own_class(case):
    supernet = prepare_supernet(case.model, case.space, case.description)
    assert isinstance(supernet, case.Net)
    assert isinstance(copy.deepcopy(supernet), nn.Module)
