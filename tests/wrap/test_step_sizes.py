"""Step sizes that collapsed, saturate, leave one level or never moved are named."""

import math

import pytest
import torch
from torch import nn

from bitalloc import Bits, Policy
from bitalloc.errors import QuantizerError
from bitalloc.quantizers import is_step_size
from bitalloc.quantizers.rounding import MIN_STEP
from bitalloc.training import DivergenceError, fit, loss_step, sgd, sgd_with_scales
from bitalloc.wrap import QuantizerSettings, broken_step_sizes, quantize, quantized_layers, step_size_report, step_sizes
from bitalloc.wrap.describe import describe

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(bits="w4a4", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    policy = Policy.uniform(describe(model, IMAGES[:1]).layers, Bits.parse(bits))
    return quantize(model, policy, calibration=[IMAGES], settings=QuantizerSettings(**settings))


def step_of(model, layer, side, bits=4):
    found = quantized_layers(model)[layer]
    return (found.weight_quantizer if side == "weight" else found.input_quantizer).raw_step(bits)


def report(model, start, **options):
    """Layer, side and problem of what is found, and the findings by layer and side."""
    found = step_size_report(model, start, [IMAGES], **options)
    return [(one.layer, one.side, one.problem) for one in found], {(one.layer, one.side): one for one in found}


def moved(model, factor=1.01):
    """A model whose step sizes are all a little away from their start, and the start."""
    start = step_sizes(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_step_size(name, parameter):
                parameter.mul_(factor)
    return start


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a2"])
@pytest.mark.parametrize("factor", [0.7, 1.01, 1.5])
def test_nothing_to_say_of_a_training_that_went_well(bits, factor):
    model = network(bits)
    assert report(model, moved(model, factor))[0] == []


def test_step_sizes_that_never_moved():
    model = network()
    start = step_sizes(model)
    assert report(model, start)[0] == [(layer, side, "unmoved") for layer in ("0", "3") for side in ("weight", "act")]
    with torch.no_grad():
        step_of(model, "3", "act").mul_(1.001)
    found, by_place = report(model, start)
    assert ("3", "act", "unmoved") not in found
    assert len(found) == 3
    assert "step_size_rate" in by_place["0", "act"].advice
    assert report(model, start, layers=["3"])[0] == [("3", "weight", "unmoved")]


def test_step_sizes_that_are_not_trained_need_not_move():
    model = network()
    step_of(model, "0", "act").requires_grad_(False)
    assert ("0", "act", "unmoved") not in report(model, step_sizes(model))[0]


@pytest.mark.parametrize(("value", "collapsed"), [(1 / 15, False), (1 / 17, True), (0.0, True), (-1.0, True)])
def test_step_sizes_that_collapsed(value, collapsed):
    """Four octaves are the limit; at the smallest step in use there is nothing left."""
    model = network("w8a8")
    start = moved(model)
    with torch.no_grad():
        step_of(model, "3", "act", 8).copy_(value * torch.tensor(start["3.input_quantizer.step_8"]))
    found, by_place = report(model, start)
    assert (("3", "act", "collapsed") in found) is collapsed
    if collapsed:
        one = by_place["3", "act"]
        assert (one.width, one.start) == (8, start["3.input_quantizer.step_8"][0])
        assert one.end == pytest.approx(max(value * one.start, MIN_STEP))


def test_step_sizes_that_saturate_by_hand():
    """4 bits at step 1: levels -8 to 7. 108 weights of 7.6, one of -9 and one of -8.6 lie half a step beyond; -8.4 and 7.4 do not."""
    model = network()
    start = moved(model)
    layer = quantized_layers(model)["3"]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight.view(-1)[:108] = 7.6  # a quarter of 432
        step_of(model, "3", "weight").fill_(1.0)
        start["3.weight_quantizer.step_4"] = (1.1,)
        assert report(model, start)[0] == []
        layer.weight.view(-1)[108:112] = torch.tensor([-9.0, -8.6, -8.4, 7.4])
    found, by_place = report(model, start)
    assert found == [("3", "weight", "saturated")]
    assert by_place["3", "weight"].clipped == pytest.approx(110 / 432)


def test_activations_that_saturate_are_seen_with_data_only():
    model = network()
    start = moved(model)
    with torch.no_grad():
        step_of(model, "0", "act").fill_(1 / 31)  # levels 0 to 15: all pixels from a half up lie beyond
    start["0.input_quantizer.step_4"] = (1 / 30,)
    found, by_place = report(model, start)
    assert found == [("0", "act", "saturated")]
    assert by_place["0", "act"].clipped == pytest.approx(float((IMAGES > 0.5).float().mean()))
    assert step_size_report(model, start) == ()


def test_all_channels_of_a_large_activation_are_looked_at():
    """Three of four channels lie beyond the grid; the values that are looked at are a quarter of all."""
    inputs = torch.ones(2**16, 4)
    inputs[:, 0] = torch.linspace(0, 1, 2**16)
    model = nn.Sequential(nn.Linear(4, 3))
    model = quantize(model, Policy.uniform(describe(model, inputs[:1]).layers, Bits(4, 4)), calibration=[inputs])
    start = moved(model)
    inputs[:, 1:] *= 100
    (found,) = (one for one in step_size_report(model, start, [inputs]) if one.side == "act")
    assert found.problem == "saturated"
    assert found.clipped == pytest.approx(0.75, abs=0.01)


def test_steps_so_large_that_one_level_is_left():
    model = network()
    start = moved(model)
    with torch.no_grad():
        step_of(model, "0", "act").fill_(2.1)
        step_of(model, "3", "weight").fill_(100.0)
    assert {("0", "act", "one level"), ("3", "weight", "one level")} <= set(report(model, start)[0])


def test_of_several_channels_the_one_that_fell_most_is_reported():
    model = network(per_channel=True)
    start = moved(model)
    assert report(model, start)[0] == []
    with torch.no_grad():
        step_of(model, "0", "weight")[2] /= 20
    found, by_place = report(model, start)
    assert found == [("0", "weight", "collapsed")]
    assert by_place["0", "weight"].start == start["0.weight_quantizer.step_4"][2]


def test_the_report_changes_nothing():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report(model, moved(network()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_a_start_of_another_model():
    with pytest.raises(QuantizerError, match=r"the start has no step size 0\.weight_quantizer\.step_4"):
        step_size_report(network(), step_sizes(network("w2a2")))


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "is not finite"), (-0.25, r"is -0\.25 \(not above 1\.19e-07"), (1e9, r"is 1e\+09 \(all values round to 0")],
)
def test_broken_step_sizes_are_named_when_a_training_diverges(value, words):
    model = network()
    assert broken_step_sizes(model) == ""
    with torch.no_grad():
        step_of(model, "3", "weight").fill_(value)
    assert f"step sizes out of range: 3.weight_quantizer.step_4 {words}".replace("\\", "") in broken_step_sizes(model)

    def loss(model, batch):
        return model(batch).mean() * math.nan

    with pytest.raises(DivergenceError, match=f"the loss is nan at step 1.*3.weight_quantizer.step_4 {words}"):
        fit(model, [IMAGES], step=loss_step(loss), optimizer=sgd(model, 0.1), total_steps=1, explain=broken_step_sizes)


def test_a_step_size_that_is_not_finite_is_found_in_its_quantizer():
    model = network()
    with torch.no_grad():
        step_of(model, "3", "act").fill_(math.nan)
    step = loss_step(lambda model, batch: model(batch).square().mean())
    with pytest.raises(DivergenceError, match=r"that of layer 3\.input_quantizer \(InputLSQ\)"):
        fit(model, [IMAGES], step=step, optimizer=sgd(model, 0.1), total_steps=1)


def test_plain_sgd_hardly_moves_the_steps_of_activations_and_a_rate_of_their_own_does():
    """The known effect, on a training of a few steps."""
    found = {}
    for rate in (0.0, 0.01):
        model = network()
        start = step_sizes(model)
        optimizer = sgd_with_scales(model, 1e-4, rate, is_step_size)
        step = loss_step(lambda model, batch: nn.functional.cross_entropy(model(batch), torch.arange(8) % 3))
        fit(model, [IMAGES], step=step, optimizer=optimizer, total_steps=5)
        found[rate] = report(model, start)[0]
    assert ("0", "act", "unmoved") in found[0.0]
    assert found[0.01] == []
