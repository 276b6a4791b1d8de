import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitalloc.choices import search_space
from bitalloc.costs import BitOps
from bitalloc.errors import PolicyError, SpaceError
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace
from bitalloc.supernet import (
    GumbelSoftmax,
    SinglePath,
    SupernetSettings,
    WidthChoice,
    draw,
    entropy,
    expected_bits,
    expected_cost,
    is_architecture_logit,
    prepare_supernet,
)
from bitalloc.wrap import calibrate, float_state_dict, quantized_layers, switch
from bitalloc.wrap.describe import describe

PAIRS = ("pact", "lsq")


def supernet_of(case, pair="lsq", **settings):
    supernet = prepare_supernet(case.model, case.space, case.description, SupernetSettings(pair=pair, **settings))
    calibrate(supernet, case.loader)
    return supernet


def logits_of(supernet):
    return {name: parameter for name, parameter in supernet.named_parameters() if is_architecture_logit(name, parameter)}


def set_logits(supernet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in logits_of(supernet).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("pair", PAIRS)
def test_logits_start_equal_and_everything_learns(case, pair):
    supernet = supernet_of(case, pair)
    assert all(parameter.tolist() == pytest.approx([0.01] * 3) for parameter in logits_of(supernet).values())
    set_logits(supernet)
    case.loss_fn(supernet, case.loader[0]).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in logits_of(supernet).values())
    weights = {name: parameter for name, parameter in supernet.named_parameters() if name.endswith("weight")}
    assert all(parameter.grad is not None for parameter in weights.values())
    # three activations (left and right read the same tensor), three weights
    assert len(logits_of(supernet)) == 5


def test_the_model_stays_as_it_is_and_float_weights_keep_their_names(case):
    before = copy.deepcopy(case.model.state_dict())
    supernet = supernet_of(case)
    set_logits(supernet)
    assert {name: tuple(value.shape) for name, value in float_state_dict(supernet).items()} == {
        name: tuple(value.shape) for name, value in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


@pytest.mark.parametrize("pair", PAIRS)
def test_a_layer_computes_the_published_sum(case, pair):
    supernet = supernet_of(case, pair).eval()
    set_logits(supernet)
    layer = quantized_layers(supernet)["right"]
    x = case.loader[0][0][:, :1].expand(-1, 4, -1, -1).abs().contiguous()
    sums = []
    for quantizer, tensor in ((layer.input_quantizer, x), (layer.weight_quantizer, layer.weight)):
        p = quantizer.choice.architecture_logits.softmax(0)
        total = 0
        for index, bits in enumerate(quantizer.choice.widths):
            quantizer.switch(bits)
            total = total + p[index] * quantizer(tensor)
        quantizer.switch(0)
        sums.append(total)
    torch.testing.assert_close(layer(x), F.conv2d(sums[0], sums[1], layer.bias, padding=1))


def test_switched_to_a_policy_it_is_that_network_on_the_shared_weights(case):
    supernet = supernet_of(case).eval()
    x = case.loader[0][0]
    mixed = supernet(x)
    choice = {"depthwise": Bits(4, 2), "left": Bits(2, 6), "right": Bits(6, 6)}
    switch(supernet, choice)
    hard = supernet(x)
    set_logits(supernet)
    assert torch.equal(supernet(x), hard)
    for name, bits in choice.items():  # the same by logits that are certain
        for side, width in (("weight_quantizer", bits.weight), ("input_quantizer", bits.act)):
            quantizer = getattr(quantized_layers(supernet)[name], side)
            one_hot = torch.tensor([100.0 * (w == width) for w in quantizer.choice.widths])
            quantizer.choice.architecture_logits.data.copy_(one_hot)
            quantizer.switch(0)
    torch.testing.assert_close(supernet(x), hard)
    assert not torch.equal(mixed, hard)


@pytest.mark.parametrize("in_float", [True, False])
def test_pinned_layers_run_in_float_or_at_their_pins(case, in_float):
    supernet = supernet_of(case, pinned_in_float=in_float)
    layer = quantized_layers(supernet)["stem"]
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == ((32, 32) if in_float else (8, 8))
    assert expected_cost(supernet, case.table).item() == pytest.approx(_mean_bitops(case), rel=1e-6)


def _mean_bitops(case):
    table = case.table.values
    return sum(sum(table[name][bits] for bits in c.pairs) / len(c.pairs) for name, c in case.space.candidates.items())


def test_expected_bits_and_cost_by_hand(case):
    supernet = supernet_of(case)
    set_logits(supernet)
    bits, layers = expected_bits(supernet), {layer.name: layer for layer in case.description.layers}
    assert list(bits) == list(case.space.free)
    total = sum(layers[name].macs * 64 for name in ("stem", "head"))
    for name in case.space.free:
        quantizers = quantized_layers(supernet)[name]
        p, q = (x.choice.architecture_logits.softmax(0) for x in (quantizers.weight_quantizer, quantizers.input_quantizer))
        weight, act = ((s * torch.tensor([6.0, 4, 2])).sum().item() for s in (p, q))
        assert (bits[name].weight.item(), bits[name].act.item()) == pytest.approx((weight, act), rel=1e-6)
        total += layers[name].macs * weight * act
    cost = expected_cost(supernet, case.table)
    assert cost.item() == pytest.approx(total, rel=1e-6)
    cost.backward()
    assert all(parameter.grad is not None for parameter in logits_of(supernet).values())
    assert bits["left"].act.item() == bits["right"].act.item()


def test_expected_cost_of_allowed_pairs_is_that_of_their_distribution(case):
    pairs = ("w6a6", "w4a4", "w2a2", "w2a6")
    case.space = search_space(case.description, (6, 4, 2), pins={"stem": "w8a8", "head": "w8a8"}, allowed=pairs)
    supernet = supernet_of(case)
    set_logits(supernet)
    table = BitOps().table(case.description.layers, case.space)
    expected = sum(table.values[name][Bits(8, 8)] for name in ("stem", "head"))
    for name in case.space.free:
        quantizers = quantized_layers(supernet)[name]
        sides = [
            dict(zip(x.choice.widths, x.choice.architecture_logits.softmax(0).tolist(), strict=True))
            for x in (quantizers.weight_quantizer, quantizers.input_quantizer)
        ]
        probability = {bits: sides[0][bits.weight] * sides[1][bits.act] for bits in case.space.candidates[name].pairs}
        expected += sum(p * table.values[name][bits] for bits, p in probability.items()) / sum(probability.values())
    assert expected_cost(supernet, table).item() == pytest.approx(expected, rel=1e-6)


def test_tied_layers_have_one_logit_vector_and_shared_inputs_one_mixture(case):
    case.space = search_space(case.description, (6, 4, 2), pins={"stem": "w8a8", "head": "w8a8"}, coupling="strict")
    assert len(case.space.act_ties) > len(case.space.shared_inputs)
    supernet = supernet_of(case)
    layers = quantized_layers(supernet)
    assert layers["left"].input_quantizer is layers["right"].input_quantizer
    ties = [set(group) & set(case.space.free) for group in case.space.act_ties]
    for group in ties:
        assert len({id(layers[name].input_quantizer.choice) for name in group}) <= 1
    clone = copy.deepcopy(supernet)
    copied = quantized_layers(clone)
    assert len({id(copied[name].input_quantizer.choice) for name in ("left", "right")}) == 1
    assert len(logits_of(clone)) == len(logits_of(supernet))
    x = case.loader[0][0]
    set_logits(clone)
    supernet.load_state_dict(clone.state_dict())
    assert torch.equal(supernet(x), clone(x))


@pytest.mark.parametrize("pair", PAIRS)
def test_embeddings_attention_and_functional_products_mix(pair):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.kernel = nn.Parameter(torch.randn(8, 8) / 3)
            self.head = nn.Linear(8, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            x = self.table(tokens)
            return self.head(self.attention(x, x, x, need_weights=False)[0] @ self.kernel)

    torch.manual_seed(0)
    model, tokens = Block(), torch.randint(7, (2, 5))
    description = describe(model, tokens)
    space = search_space(description, (8, 4, 2))
    supernet = prepare_supernet(model, space, description, SupernetSettings(pair=pair, range_start=None))
    calibrate(supernet, [tokens])
    layers = quantized_layers(supernet)
    assert layers["table"].weight_quantizer is layers["head"].weight_quantizer
    assert supernet(tokens).shape == (2, 5, 7)
    supernet(tokens).square().sum().backward()
    logits = logits_of(supernet)
    assert len(logits) == len({id(x) for layer in layers.values() for x in _choices(layer)})
    assert all(parameter.grad is not None for parameter in logits.values())
    # What the table looks up is what the whole mixed table holds.
    table = layers["table"]
    torch.testing.assert_close(table(tokens), table.weight_quantizer(table.weight)[tokens])


def _choices(layer):
    return [x.choice for x in (layer.weight_quantizer, layer.input_quantizer) if hasattr(x, "choice")]


def test_gumbel_anneals_to_one_hot_and_single_path_is_one_hot_at_once(case):
    for relaxation, progress in ((GumbelSoftmax(5.0, 0.001), 1.0), (SinglePath(), 0.0)):
        torch.manual_seed(1)
        supernet = supernet_of(case, relaxation=relaxation)
        drawn = set()
        for _ in range(30):
            draw(supernet, progress)
            shares = [choice.shares().detach() for choice in supernet.modules() if isinstance(choice, WidthChoice)]
            assert all(share.sort().values.tolist() == pytest.approx([0, 0, 1], abs=1e-3) for share in shares)
            drawn.add(tuple(int(share.argmax()) for share in shares))
        assert len(drawn) > 5
    soft = GumbelSoftmax(5.0, 0.5).shares(torch.zeros(3), torch.tensor([0.1, 0.5, 0.9]), 0.0)
    assert soft.max() < 0.6


def test_single_path_draws_with_the_probabilities_and_has_the_gradient_of_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    torch.manual_seed(0)
    counts = sum(SinglePath().shares(logits, torch.rand(3), 0.0).detach() for _ in range(4000)) / 4000
    assert counts.tolist() == pytest.approx(logits.softmax(0).tolist(), abs=0.03)
    cost = torch.tensor([1.0, 5.0, 2.0])
    (own,) = torch.autograd.grad((SinglePath().shares(logits, torch.rand(3), 0.0) * cost).sum(), logits)
    (plain,) = torch.autograd.grad((logits.softmax(0) * cost).sum(), logits)
    torch.testing.assert_close(own, plain)


def test_a_draw_holds_for_all_passes_of_a_step(case):
    supernet = supernet_of(case, relaxation=SinglePath()).eval()
    x = case.loader[0][0]
    draw(supernet, 0.0)
    assert torch.equal(supernet(x), supernet(x))


def test_entropy_is_one_for_even_and_nothing_for_certain_choices(case):
    supernet = supernet_of(case)
    assert entropy(supernet).item() == pytest.approx(1)
    for parameter in logits_of(supernet).values():
        parameter.data.copy_(torch.tensor([50.0, 0, 0]))
    assert entropy(supernet).item() == pytest.approx(0, abs=1e-6)


def test_spaces_that_a_supernet_cannot_be_made_of(case):
    pinned = SearchSpace({name: Candidates.pinned(Bits(4, 4)) for name in case.space.candidates})
    with pytest.raises(SpaceError, match="nothing to search"):
        prepare_supernet(case.model, pinned, case.description)
    tied = {**case.space.candidates, "left": Candidates((6, 4, 2), (6, 4))}
    with pytest.raises(SpaceError, match="left and right are tied but have other act candidates"):
        prepare_supernet(case.model, SearchSpace(tied, shared_inputs=(("left", "right"),)), case.description)
    other = SearchSpace({**case.space.candidates, "tail": Candidates((4, 2), (4, 2))})
    with pytest.raises(PolicyError, match="tail"):
        prepare_supernet(case.model, other, case.description)
    with pytest.raises(SpaceError, match="is no supernet"):
        expected_bits(case.model)
    with pytest.raises(SpaceError, match="quantizer pair 'dorefa'"):
        SupernetSettings(pair="dorefa")


def test_one_parameter_in_two_layers_must_be_tied_in_the_space():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    description = describe(model, torch.randn(2, 4))
    free = Candidates((4, 2), (4, 2))
    with pytest.raises(SpaceError, match="layers 0, 2 have one weight quantizer but are not tied"):
        prepare_supernet(model, SearchSpace({"0": free, "2": free}), description)
