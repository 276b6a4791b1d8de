"""Step sizes and clipping ranges within mixtures are named when a search diverges, and looked at when it is over."""

import math
from dataclasses import replace

import pytest
import torch

from bitalloc.budget import Budget
from bitalloc.supernet import SearchSettings, SinglePath, SupernetSettings, prepare_supernet, supernet_search
from bitalloc.training import DivergenceError
from bitalloc.wrap import broken_step_sizes, calibrate, step_size_report, step_sizes

LSQ = SearchSettings(learning_rate=0.01, supernet=SupernetSettings(pair="lsq"))
PACT = replace(LSQ, supernet=SupernetSettings(pair="pact", range_start=None))


def search(case, settings, loss_fn=None, steps=3):
    widest = {name: candidates.pairs[0] for name, candidates in case.space.candidates.items()}
    return supernet_search(
        case.model,
        case.description,
        case.space,
        case.loader,
        loss_fn or case.loss_fn,
        steps=steps,
        budgets=[Budget("bitops", 0.6 * case.table.total(widest), case.table)],
        calibration=iter(case.loader),
        settings=settings,
    )


def supernet_of(case, settings):
    supernet = prepare_supernet(case.model, case.space, case.description, settings.supernet)
    calibrate(supernet, case.loader)
    return supernet


@pytest.mark.parametrize(
    ("settings", "side", "scale", "words"),
    [
        (LSQ, "weight_quantizer", "step_4", "step sizes out of range: right.weight_quantizer.bank.step_4 is -0.5"),
        (LSQ, "input_quantizer", "step_2", "step sizes out of range: left.input_quantizer.bank.step_2 is -0.5"),
        (PACT, "input_quantizer", "clip_range", "clipping ranges out of range: left.input_quantizer.bank.clip_range is -0.5"),
    ],
)
def test_a_search_that_diverges_names_what_is_out_of_range(case, settings, side, scale, words):
    """`left` and `right` read one tensor, so its quantizer is known by the first of them."""
    calls = []

    def loss_fn(model, batch):
        calls.append(0)
        if len(calls) != 3:  # the dry run and one step
            return case.loss_fn(model, batch)
        torch.nn.init.constant_(getattr(getattr(model.right, side).bank, scale), -0.5)
        return case.loss_fn(model, batch) * math.nan

    with pytest.raises(DivergenceError, match="the loss is nan at step 2") as raised:
        search(case, settings, loss_fn)
    assert words in str(raised.value)


@pytest.mark.parametrize(("value", "words"), [(math.nan, "is not finite"), (0.0, "not above"), (1e9, "all values round to 0")])
def test_a_clipping_range_that_cannot_be_used(case, value, words):
    supernet = supernet_of(case, PACT)
    assert broken_step_sizes(supernet) == ""
    torch.nn.init.constant_(supernet.depthwise.input_quantizer.bank.clip_range, value)
    assert broken_step_sizes(supernet).startswith("clipping ranges out of range: depthwise.input_quantizer.bank.clip_range")
    assert words in broken_step_sizes(supernet)


def test_the_report_sees_every_candidate_of_a_mixture(case):
    supernet = supernet_of(case, LSQ)
    start = step_sizes(supernet)
    assert {name for name in start if name.startswith("right.weight")} == {f"right.weight_quantizer.bank.step_{bits}" for bits in (6, 4, 2)}
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if ".step_" in name:
                parameter.mul_(1.01)
        assert not [one for one in step_size_report(supernet, start, case.loader[:1], layers=case.space.free) if one.problem == "unmoved"]
        supernet.right.weight_quantizer.bank.step_4.mul_(0.01)
        supernet.depthwise.input_quantizer.bank.step_2.mul_(0.1)
    found = step_size_report(supernet, start, case.loader[:1], layers=case.space.free)
    assert {(one.layer, one.side, one.width, one.problem) for one in found} == {
        ("right", "weight", 4, "collapsed"),
        ("depthwise", "act", 2, "saturated"),
    }
    (saturated,) = (one for one in found if one.problem == "saturated")
    with torch.no_grad():
        values = torch.relu(case.model.eval().stem(case.loader[0][0]))
    reach = 3.5 * saturated.end  # levels 0 to 3, and half a step
    assert saturated.clipped == pytest.approx(float((values > reach).float().mean()), abs=0.01)


def test_a_search_of_lsq_tells_which_step_sizes_never_moved(case):
    """With a single path and one step only one candidate of a mixture is trained."""
    assert not [one for one in search(case, LSQ).findings if one.problem == "unmoved"]
    frozen = search(case, replace(LSQ, scale_rate=0.0, learning_rate=1e-9)).findings
    assert {(one.layer, one.side, one.width) for one in frozen if one.problem == "unmoved"} >= {
        ("right", "weight", bits) for bits in (6, 4, 2)
    }
    single = replace(LSQ, supernet=replace(LSQ.supernet, relaxation=SinglePath()))
    found = [one for one in search(case, single, steps=1).findings if one.problem == "unmoved"]
    assert sum((one.layer, one.side) == ("right", "weight") for one in found) == 2
    assert not {one.layer for one in found} & {"stem", "head"}  # they have no choice and run in float


def test_a_search_of_pact_has_nothing_to_tell_of_step_sizes(case):
    assert search(case, PACT).findings == ()
