import copy
import itertools
import math
import signal
from collections import Counter
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitalloc.choices import search_space
from bitalloc.errors import PolicyError, SpaceError, TrainingError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import Bits
from bitalloc.quantizers import MIN_STEP
from bitalloc.sensitivity import JointSettings, JointStep, learned_scale_importance
from bitalloc.sensitivity.joint_widths import draw, draw_passes, joint_passes
from bitalloc.sensitivity.limpq import read_indicators
from bitalloc.space import Candidates, SearchSpace
from bitalloc.training import CheckpointConfig
from bitalloc.wrap import (
    QuantizerSettings,
    SwitchableBatchNorm,
    active_bits,
    branch_of,
    calibrate,
    prepare_joint,
    quantized_layers,
    switch,
)
from bitalloc.wrap.describe import describe

FLOAT = Bits(32, 32)
PINS = MappingProxyType({"0": Bits(8, 8), "8": Bits(8, 8)})


def images(count=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 1, 6, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator)) for _ in range(count)]


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Linear(5, 3),
    )  # fmt: skip


def plain_network():
    """Nothing in it depends on how often it was called."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def space_of(model, weight=(8, 4, 2), act=None, pins=PINS):
    description = describe(model, images()[0][0])
    return search_space(description.layers, weight, act, pins=pins), description


def joint_of(model, space, description, quantizers=None):
    joint = prepare_joint(model, space, description, quantizers)
    calibrate(joint, images())
    return joint.train()


def measured(model=None, *, weight=(8, 4, 2), act=None, steps=3, pins=PINS, loader=None, loss=loss_fn, checkpoint=None, **settings):
    model = network() if model is None else model
    space, description = space_of(model, weight, act, pins)
    return learned_scale_importance(
        model,
        description,
        space,
        images() if loader is None else loader,
        loss,
        steps=steps,
        calibration=images(2),
        settings=JointSettings(**settings),
        checkpoint=checkpoint,
    )


def gradients(model):
    return {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in model.named_parameters()}


class Watching:
    """A loss function that notes the widths at every call."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, batch):
        self.seen.append(active_bits(model))
        return loss_fn(model, batch)


@pytest.mark.parametrize(
    ("weight", "act", "expected"),
    [
        ((8, 4, 2), None, ["w8a8", "w4a4", "w2a2"]),
        ((2, 3, 4, 5, 6), None, ["w6a6", "w5a5", "w4a4", "w3a3", "w2a2"]),
        ((8, 2), (6, 4, 3), ["w8a6", "w2a4", "w2a3"]),
        ((4,), (8, 2), ["w4a8", "w4a2"]),
    ],
)
def test_one_pass_a_candidate_from_wide_to_narrow_and_a_mixed_one(weight, act, expected):
    space, description = space_of(network(), weight, act)
    watching = Watching()
    JointStep(space, watching, JointSettings())(joint_of(network(), space, description), images()[0])
    assert len(watching.seen) == len(expected) + 1
    for seen, bits in zip(watching.seen, expected, strict=False):
        assert seen == {"0": FLOAT, "3": Bits.parse(bits), "7": Bits.parse(bits), "8": FLOAT}
    mixed = watching.seen[-1]
    assert (mixed["0"], mixed["8"]) == (FLOAT, FLOAT)
    assert all(mixed[name] in space.candidates[name].pairs for name in ("3", "7"))


def test_pinned_layers_may_keep_their_widths():
    pins = {"0": Bits(8, 32), "8": Bits(4, 6)}
    space, description = space_of(network(), pins=pins)
    watching = Watching()
    JointStep(space, watching, JointSettings(pinned_in_float=False))(joint_of(network(), space, description), images()[0])
    assert len(watching.seen) == 4
    assert all((seen["0"], seen["8"]) == (Bits(8, 32), Bits(4, 6)) for seen in watching.seen)


def test_layers_with_fewer_candidates_stay_at_their_last():
    passes = joint_passes({"a": Candidates((8, 4, 2), (8, 4, 2)), "b": Candidates((6, 3), (4,))})
    assert passes == (
        {"a": Bits(8, 8), "b": Bits(6, 4)},
        {"a": Bits(4, 4), "b": Bits(3, 4)},
        {"a": Bits(2, 2), "b": Bits(3, 4)},
    )


def test_widths_are_drawn_uniformly_and_independently():
    """Over layers and over weights and activations; within five standard deviations of a fair draw."""
    free = {"a": Candidates((8, 4, 2), (6, 3)), "b": Candidates((8, 4, 2), (6, 3))}
    torch.manual_seed(0)
    count = 7200
    seen = Counter(tuple(draw(free).values()) for _ in range(count))
    assert len(seen) == 36
    expected = count / 36
    assert all(abs(found - expected) < 5 * math.sqrt(expected) for found in seen.values())


def test_the_mixed_pass_draws_anew_at_every_step():
    space, description = space_of(network())
    watching = Watching()
    step, joint = JointStep(space, watching, JointSettings()), joint_of(network(), space, description)
    torch.manual_seed(0)
    for batch in images(12):
        step(joint, batch)
    mixed = watching.seen[3::4]
    assert any(seen["3"].weight != seen["3"].act for seen in mixed)
    assert any(seen["3"] != seen["7"] for seen in mixed)
    assert len({seen["3"] for seen in mixed}) > 3


@pytest.mark.parametrize("pinned_in_float", [True, False])
def test_gradients_are_the_sum_over_single_passes(pinned_in_float):
    space, description = space_of(plain_network(), (8, 4, 2), (6, 3), {"1": Bits(8, 8)})
    joint = joint_of(plain_network(), space, description)
    step = JointStep(space, loss_fn, JointSettings(pinned_in_float=pinned_in_float))
    batch = images()[0]
    torch.manual_seed(5)
    mean = step(joint, batch)

    torch.manual_seed(5)
    uniform = [dict.fromkeys(("3", "5"), bits) for bits in (Bits(8, 6), Bits(4, 3), Bits(2, 3))]
    mixed = draw({name: space.candidates[name] for name in ("3", "5")})
    losses, total = [], {}
    for bits in (*uniform, mixed):
        single = joint_of(plain_network(), space, description)
        switch(single, {"1": FLOAT if pinned_in_float else Bits(8, 8), **bits})
        loss = loss_fn(single, batch)
        loss.backward()
        losses.append(loss.item())
        for name, gradient in gradients(single).items():
            if gradient is not None:
                total[name] = total.get(name, 0) + gradient
    found = {name: gradient for name, gradient in gradients(joint).items() if gradient is not None}
    assert set(found) == {name for name, gradient in total.items() if gradient.any()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, total[name], msg=name)
    assert mean == pytest.approx(sum(losses) / 4)
    assert ("1.weight_quantizer.step_8" in found) is not pinned_in_float


def add(total, gradients, factor):
    for name, gradient in gradients.items():
        total[name] = total.get(name, 0) + factor * gradient


@pytest.mark.parametrize("drawn", [1, 2, 3])
def test_the_mean_over_all_drawn_subsets_is_the_full_step(monkeypatch, drawn):
    """Unbiased: gradients and the reported loss. The mixed pass is the same in all, by the seed."""
    space, description = space_of(plain_network(), (8, 4, 3, 2), None, {"1": Bits(8, 8)})
    joint, batch = joint_of(plain_network(), space, description).double(), (images()[0][0].double(), images()[0][1])
    torch.manual_seed(5)
    full = JointStep(space, loss_fn, JointSettings())(joint, batch)
    expected = {name: gradient for name, gradient in gradients(joint).items() if gradient is not None}
    subsets = list(itertools.combinations(range(4), drawn))
    total, losses = {}, []
    for subset in subsets:
        monkeypatch.setattr("bitalloc.sensitivity.joint_step.draw_passes", lambda count, k, subset=subset: list(subset))
        joint.zero_grad()
        torch.manual_seed(5)
        losses.append(JointStep(space, loss_fn, JointSettings(widths_per_step=drawn))(joint, batch))
        add(total, {name: gradient for name, gradient in gradients(joint).items() if gradient is not None}, 1 / len(subsets))
    assert sum(losses) / len(losses) == pytest.approx(full)
    assert set(total) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(total[name], gradient, msg=name)


def test_every_subset_of_widths_is_drawn_as_often():
    torch.manual_seed(0)
    count = 4000
    seen = Counter(tuple(draw_passes(5, 2)) for _ in range(count))
    assert set(seen) == set(itertools.combinations(range(5), 2))
    expected = count / 10
    assert all(abs(found - expected) < 5 * math.sqrt(expected) for found in seen.values())


def test_drawn_widths_run_from_wide_to_narrow_and_then_the_mixed_pass():
    space, description = space_of(network(), (8, 6, 4, 2))
    watching = Watching()
    step, joint = JointStep(space, watching, JointSettings(widths_per_step=2)), joint_of(network(), space, description)
    torch.manual_seed(0)
    for batch in images(12):
        step(joint, batch)
    assert len(watching.seen) == 12 * 3
    pairs = [(first["3"].weight, second["3"].weight) for first, second in zip(watching.seen[::3], watching.seen[1::3], strict=True)]
    assert all(first > second for first, second in pairs)
    assert len(set(pairs)) > 3


def test_self_distillation_learns_from_the_widest_pass_also_where_it_is_not_drawn(monkeypatch):
    space, description = space_of(plain_network(), (6, 3, 2), None, {"1": FLOAT})
    joint = joint_of(plain_network(), space, description)
    inputs, _ = batch = images()[0]
    monkeypatch.setattr("bitalloc.sensitivity.joint_step.draw_passes", lambda count, drawn: [2])
    torch.manual_seed(5)
    JointStep(space, loss_fn, JointSettings(self_distillation=True, widths_per_step=1))(joint, batch)
    found = gradients(joint)
    torch.manual_seed(5)
    mixed = draw({name: space.candidates[name] for name in ("3", "5")})
    joint.zero_grad()
    switch(joint, dict.fromkeys(("3", "5"), Bits(6, 6)))
    teacher = joint(inputs).detach().softmax(1)
    for bits, weight in ((dict.fromkeys(("3", "5"), Bits(2, 2)), 3.0), (mixed, 1.0)):
        switch(joint, bits)
        (weight * -(teacher * joint(inputs).log_softmax(1)).sum(1).mean()).backward()
    for name, gradient in gradients(joint).items():
        if found[name] is not None or (gradient is not None and gradient.any()):
            torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("drawn", [0, 4, -1])
def test_a_number_of_widths_that_there_is_not(drawn):
    with pytest.raises(TrainingError, match=f"widths_per_step is {drawn}, expected 1 to 3"):
        measured(widths_per_step=drawn)


def test_drawn_widths_are_replayed_after_an_interruption(tmp_path):
    whole = measured(steps=6, widths_per_step=2)
    config = CheckpointConfig(tmp_path / "joint", "the run", steps=1)
    with pytest.raises(Cut):
        measured(steps=6, loss=cut_at(11, cut), checkpoint=config, widths_per_step=2)
    torch.manual_seed(1234)
    assert_same(measured(steps=6, checkpoint=config, widths_per_step=2), whole)
    assert whole.indicators != measured(steps=6).indicators


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x) + 0 * self.unused(x)


def test_parameters_that_took_no_part_have_no_gradient():
    torch.manual_seed(0)
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    model = PartlyUsed()
    description = describe(model, x)
    space = search_space(description.layers, (8, 4))
    joint = prepare_joint(model, space, description)
    calibrate(joint, [x])
    JointStep(space, loss_fn, JointSettings())(joint, (x, labels))
    assert {name.split(".")[0] for name, gradient in gradients(joint).items() if gradient is not None} == {"used"}
    before = copy.deepcopy(joint.unused.state_dict())
    measurement = learned_scale_importance(model, description, space, [(x, labels)], loss_fn, steps=4, calibration=[x])
    after = measurement.model.unused.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())  # no decay, no momentum
    assert not torch.equal(measurement.model.used.weight, model.used.weight)


def test_every_branch_sees_its_own_pass():
    space, description = space_of(network())
    joint = joint_of(network(), space, description)
    torch.manual_seed(3)
    JointStep(space, loss_fn, JointSettings())(joint, images()[0])
    torch.manual_seed(3)
    mixed = draw({name: space.candidates[name] for name in ("3", "7")})
    assert isinstance(joint[4], SwitchableBatchNorm)
    expected = [1, 1, 1]
    expected[branch_of(mixed["3"], joint[4].passes)] += 1
    assert [int(branch.num_batches_tracked) for branch in joint[4].branches] == expected
    assert int(joint[1].num_batches_tracked) == 1  # before the first choice: shared by all passes, computed once


def test_self_distillation_closed_form():
    """Labels for the widest pass, its detached soft output for the others."""
    pins = {"1": FLOAT}
    space, description = space_of(plain_network(), (6, 3, 2), None, pins)
    joint, twin = (joint_of(plain_network(), space, description) for _ in range(2))
    inputs, labels = batch = images()[0]
    torch.manual_seed(5)
    mean = JointStep(space, loss_fn, JointSettings(self_distillation=True))(joint, batch)

    torch.manual_seed(5)
    uniform = [dict.fromkeys(("3", "5"), Bits(width, width)) for width in (6, 3, 2)]
    mixed = draw({name: space.candidates[name] for name in ("3", "5")})
    switch(twin, uniform[0])
    logits = twin(inputs)
    teacher = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    losses = [-(logits.log_softmax(1)[torch.arange(6), labels]).mean()]
    for bits in (*uniform[1:], mixed):
        switch(twin, bits)
        losses.append(-(teacher * twin(inputs).log_softmax(1)).sum(1).mean())
    sum(losses).backward()
    assert mean == pytest.approx(sum(losses).item() / 4, rel=1e-5)
    expected = gradients(twin)
    for name, gradient in gradients(joint).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_self_distillation_changes_what_is_learned():
    assert measured(self_distillation=True).indicators != measured().indicators


def test_self_distillation_runs_the_model_by_the_forward_given():
    model = plain_network()
    space, description = space_of(model, pins={})
    calls = []

    def forward(model, batch):
        calls.append(batch)
        return model(batch["pixels"])

    batch = {"pixels": images()[0][0], "labels": images()[0][1]}
    learned_scale_importance(
        model,
        description,
        space,
        [batch],
        lambda model, batch: F.cross_entropy(model(batch["pixels"]), batch["labels"]),
        steps=1,
        calibration=[batch],
        forward=forward,
        settings=JointSettings(self_distillation=True),
    )
    assert len(calls) == 1 + 1 + 3 + 1  # calibration, the teacher, all passes but the widest, and the report of step sizes


def test_frozen_weights_stay_while_steps_and_batch_norms_learn():
    model = network()
    joint = measured(model, freeze_weights=True, pins={"0": Bits(8, 8), "8": FLOAT}).model
    for name, parameter in model.named_parameters():
        if not name.startswith(("1.", "4.")):
            assert torch.equal(joint.get_parameter(name), parameter), name
    start = measured(model, steps=0).model
    for name in ("3.weight_quantizer.step_2", "3.input_quantizer.step_8", "7.weight_quantizer.step_4", "1.weight", "4.branches.2.bias"):
        assert not torch.equal(joint.get_parameter(name), start.get_parameter(name)), name


def test_weights_and_biases_learn_by_default():
    model = network()
    joint = measured(model).model
    for name in ("0.weight", "1.weight", "3.weight", "7.weight", "8.weight", "8.bias"):
        assert not torch.equal(joint.get_parameter(name), model.get_parameter(name)), name


@pytest.mark.parametrize("steps", [0, 3])
def test_indicators_are_complete_finite_and_positive(steps):
    indicators = measured(weight=(8, 4, 2), act=(6, 3), steps=steps).indicators
    assert list(indicators.weight) == list(indicators.act) == ["3", "7"]
    assert all(list(row) == [8, 4, 2] for row in indicators.weight.values())
    assert all(list(row) == [6, 3] for row in indicators.act.values())
    assert all(0 < value < math.inf for rows in (indicators.weight, indicators.act) for row in rows.values() for value in row.values())
    assert indicators.provenance["method"] == "limpq"
    assert indicators.provenance["steps"] == steps


def test_without_steps_the_indicators_are_the_closed_form():
    model = network().train()
    measurement = measured(model, steps=0)
    model.eval()
    inputs = torch.cat([model[:3](batch[0]) for batch in images(2)])
    weight = model[3].weight.detach()
    reach = max(abs(weight.mean() - 3 * weight.std(correction=0)), abs(weight.mean() + 3 * weight.std(correction=0))).item()
    for bits in (8, 4, 2):
        assert measurement.indicators.weight["3"][bits] == pytest.approx(reach / 2 ** (bits - 1), rel=1e-5)
        assert measurement.indicators.act["3"][bits] == pytest.approx(2 * inputs.mean().item() / math.sqrt(2**bits - 1), rel=1e-5)
    assert measurement.losses == ()


def test_indicators_fall_with_more_bits_on_a_trained_model():
    indicators = measured(weight=(6, 5, 4, 3, 2), steps=15).indicators
    for rows in (indicators.weight, indicators.act):
        for row in rows.values():
            assert list(row.values()) == sorted(row.values())


@pytest.mark.parametrize("rate", [0.01, 0.0])
def test_steps_are_learned(rate):
    start, end = measured(steps=0).indicators, measured(steps=4, step_size_rate=rate).indicators
    for name in start.weight:
        assert all(start.weight[name][bits] != end.weight[name][bits] for bits in (8, 4, 2))
        assert all(start.act[name][bits] != end.act[name][bits] for bits in (8, 4, 2))


def test_the_first_step_changes_every_step_size_by_the_rate():
    start, end = measured(steps=0).indicators, measured(steps=1, step_size_rate=0.02).indicators
    for before, after in ((start.weight, end.weight), (start.act, end.act)):
        shares = [abs(math.log(after[name][bits] / row[bits])) for name, row in before.items() for bits in row]
        assert shares == pytest.approx([0.02] * 6, rel=1e-3)


def test_the_same_seed_gives_the_same_measurement():
    torch.manual_seed(99)
    first = measured(seed=1)
    torch.manual_seed(7)
    again = measured(seed=1)
    other = measured(seed=2)
    assert first.indicators == again.indicators
    assert first.losses == again.losses
    assert first.indicators.weight != other.indicators.weight  # the drawn widths differ


class Renamed(nn.Module):
    """The network of these tests under names whose alphabetical order is another."""

    def __init__(self):
        super().__init__()
        layers = network()
        self.zebra, self.yak, self.apple, self.norm, self.fig, self.bee = (layers[index] for index in (0, 1, 3, 4, 7, 8))

    def forward(self, x):
        x = torch.relu(self.yak(self.zebra(x)))
        x = torch.relu(self.norm(self.apple(x))).flatten(1)
        return self.bee(self.fig(x))


def test_renaming_layers_changes_nothing():
    plain = measured().indicators
    renamed = measured(Renamed(), pins={"zebra": Bits(8, 8), "bee": Bits(8, 8)}).indicators
    assert list(renamed.weight) == ["apple", "fig"]
    assert list(renamed.weight.values()) == list(plain.weight.values())
    assert list(renamed.act.values()) == list(plain.act.values())


def test_the_float_model_stays_as_it_is():
    model = network().eval()
    model[4].train()
    before = copy.deepcopy(model.state_dict())
    measured(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[3]) is nn.Conv2d
    assert type(model[4]) is nn.BatchNorm2d
    assert (model.training, model[4].training) == (False, True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_trained_model_can_be_switched_to_every_choice():
    measurement = measured()
    joint = measurement.model.eval()
    outputs = []
    for bits in Candidates((8, 4, 2), (8, 4, 2)).pairs:
        switch(joint, {"0": Bits(8, 8), "3": bits, "7": bits, "8": Bits(8, 8)})
        outputs.append(joint(images()[0][0]))
    assert all(bool(out.isfinite().all()) for out in outputs)
    assert len({tuple(out.flatten().tolist()) for out in outputs}) == 9
    assert len(measurement.losses) == 3


def test_one_step_a_channel_gives_the_mean_over_channels():
    measurement = measured(quantizers=QuantizerSettings(per_channel=True))
    steps = quantized_layers(measurement.model)["3"].weight_quantizer.step_4
    assert steps.shape == (3,)
    assert measurement.indicators.weight["3"][4] == pytest.approx(steps.mean().item())


def test_the_indicator_is_the_step_size_in_use():
    """A raw step that SGD drove below zero acts as the smallest step."""
    measurement = measured(steps=0)
    layer = quantized_layers(measurement.model)["3"]
    nn.init.constant_(layer.weight_quantizer.step_4, -2.0)
    space, _ = space_of(network())
    assert read_indicators(measurement.model, space, {}).weight["3"][4] == MIN_STEP


def test_a_side_in_floating_point_has_no_importance():
    indicators = measured(weight=(32, 4), act=(8, 4), steps=1).indicators
    assert indicators.weight["3"][32] == 0.0
    assert indicators.weight["3"][4] > 0


def test_gradient_values_are_clipped_after_the_passes_are_summed():
    """With a huge loss every value is clipped: SGD without momentum then moves each weight by the rate."""
    model = network()
    batch = images(1)
    joint = measured(
        model, steps=1, loader=batch, loss=lambda m, b: 1e6 * loss_fn(m, b), momentum=0.0, weight_decay=0.0, learning_rate=0.25
    ).model
    moved = (joint[8].weight - model[8].weight).abs().detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))
    moved = (joint[3].weight - model[3].weight).abs().detach()
    assert float(moved.max()) == pytest.approx(0.25, rel=1e-3)


def test_the_learning_rate_follows_the_cosine():
    """With a huge loss and a clip value of 1, the mean move of a weight a step is the rate."""
    rates = []
    model = network()
    before = [model[8].bias.detach().clone()]

    def watched(model, batch):
        if not torch.equal(model[8].bias, before[-1]):
            rates.append((model[8].bias.detach() - before[-1]).abs().max().item())
            before.append(model[8].bias.detach().clone())
        return 1e6 * loss_fn(model, batch)

    joint = measured(model, steps=5, loss=watched, momentum=0.0, learning_rate=0.2, final_learning_rate=0.1).model
    rates.append((joint[8].bias.detach() - before[-1]).abs().max().item())
    expected = [0.1 + 0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_nothing_to_choose():
    model = network()
    space, description = space_of(model, (4,), (4,))
    with pytest.raises(SpaceError, match="there is nothing to measure"):
        learned_scale_importance(model, description, space, images(), loss_fn, steps=1, calibration=images())


def test_a_space_of_another_model():
    model = network()
    space, description = space_of(model)
    other = SearchSpace({**space.candidates, "9": space.candidates["3"]})
    with pytest.raises(PolicyError, match="quantizable layers named: 9"):
        learned_scale_importance(model, description, other, images(), loss_fn, steps=1, calibration=images())


def test_a_loss_that_is_not_a_number():
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        measured(loss=lambda model, batch: loss_fn(model, batch) * math.nan)


@pytest.mark.parametrize("loss", [lambda model, batch: model(batch[0]), lambda model, batch: 1.0])
def test_a_loss_function_that_gives_no_scalar(loss):
    with pytest.raises(TrainingError, match="loss_fn gave .* expected a tensor with one element"):
        measured(loss=loss)


def test_an_empty_loader():
    with pytest.raises(TrainingError, match="the loader is empty"):
        measured(loader=[])


class Cut(Exception):
    """Stands for whatever ends a process."""


def cut_at(call, action):
    """A loss function that does ``action`` at its call number ``call``: four calls are one step."""
    calls = [0]

    def loss(model, batch):
        calls[0] += 1
        if calls[0] == call:
            action()
        return loss_fn(model, batch)

    return loss


def cut():
    raise Cut


def interrupt():
    raise KeyboardInterrupt


def assert_same(first, second):
    assert first.indicators == second.indicators
    assert first.losses == second.losses
    expected = second.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first.model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "action", "raised"),
    [
        (9, cut, Cut),  # between two steps
        (12, cut, Cut),  # between two passes of a step
        (15, interrupt, KeyboardInterrupt),
        (10, lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),  # Ctrl-C: the step is finished and saved
    ],
)
@pytest.mark.parametrize("self_distillation", [False, True])
def test_an_interrupted_measurement_ends_in_the_same_bits(tmp_path, call, action, raised, self_distillation):
    whole = measured(steps=6, self_distillation=self_distillation)
    config = CheckpointConfig(tmp_path / "joint", "the run", steps=1)
    call = (call + 3) // 4 if self_distillation else call  # the loss function is called once a step then
    with pytest.raises(raised):
        measured(steps=6, loss=cut_at(call, action), checkpoint=config, self_distillation=self_distillation)
    assert config.path.exists()
    torch.manual_seed(1234)
    assert_same(measured(steps=6, checkpoint=config, self_distillation=self_distillation), whole)


def test_tied_layers_run_at_one_width_in_every_pass():
    """Two layers read the input through one quantizer; one of them is pinned."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 3) for _ in range(3))

        def forward(self, x):
            return self.q(x) + self.k(x) * self.v(x)

    names, pinned = ("q", "k", "v"), Bits(4, 8)
    candidates = {"q": Candidates((8, 4), (8, 4)), "k": Candidates((8, 4), (8, 4)), "v": Candidates((4,), (8, 4))}
    layers = tuple(LayerInfo(name, "linear", (3, 4), 12, 4, 3) for name in names)
    description = Description(layers, (), {}, names, names)
    for space in (
        SearchSpace(candidates, (("q", "k"),), (), (names,)),
        SearchSpace({"q": Candidates((8, 4), (8,)), "k": Candidates.pinned(pinned), "v": Candidates.pinned(pinned)}, (), (), (names,)),
    ):
        model = Branches()
        joint = prepare_joint(model, space, description)
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        calibrate(joint, [x])
        seen = []

        def loss(model, batch, seen=seen):
            seen.append(active_bits(model))
            return model(batch).square().mean()

        for _ in range(4):
            JointStep(space, loss, JointSettings())(joint, x)
        assert all(len({bits.act for bits in widths.values()}) == 1 for widths in seen)
        assert all(widths["q"].weight == widths["k"].weight for widths in seen) or space.weight_ties == ()
