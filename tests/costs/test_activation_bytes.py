"""Bytes of activations: hand counts, copies, and the peak against every moment of the order of execution."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.choices import search_space
from bitalloc.costs import activation_bytes, peak_activation_bytes, resolve_budgets
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo, Meeting, Site
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace

ACT = {"stem": 8, "a.conv1": 6, "a.conv2": 2, "a.down": 6, "b.conv": 4, "fc": 3}
# The operands of the first addition flow into what b.conv reads; those of the second into what only the pool reads.
WIDTHS = {"input": 8, "relu": 6, "a.relu1": 2, "a.conv2": 4, "a.down": 4, "a.relu2": 4, "b.conv": 32, "b.relu": 32, "pool": 3, "fc": 32}


def policy(act: Mapping[str, int]) -> dict[str, Bits]:
    return {name: Bits(4, width) for name, width in act.items()}


def test_every_site_counts_once_at_its_width(residual: Description) -> None:
    space = search_space(residual, (8, 6, 4, 3, 2))
    by_hand = sum(site.numel * WIDTHS[site.name] for site in residual.sites) / 8
    assert activation_bytes(residual, space).total(residual.layers, policy(ACT)) == by_hand


def test_a_shared_site_is_charged_to_its_first_reader(residual: Description) -> None:
    space = search_space(residual, (8, 4))
    cost = activation_bytes(residual, space)
    charged = {layer.name: cost.value(layer, Bits(4, 8)) - cost.value(layer, Bits(4, 4)) for layer in residual.layers}
    # Twice 256 elements for what follows the addition: its two operands and itself.
    assert charged == {"stem": 96, "a.conv1": 128, "a.conv2": 64, "a.down": 0, "b.conv": 3 * 64, "fc": 4}


def test_quantizers_of_their_own_mean_a_copy_each(residual: Description) -> None:
    shared, free = (activation_bytes(residual, search_space(residual, (8, 4), coupling=how)) for how in ("shared-input", "free"))
    widths = policy({**ACT, "a.conv1": 8, "a.down": 4})
    extra = free.total(residual.layers, widths) - shared.total(residual.layers, {**widths, "a.down": Bits(4, 8)})
    assert extra == 256 * 4 / 8


def test_what_floating_point_layers_read_is_one_copy_in_floating_point(residual: Description) -> None:
    both = search_space(residual, (8, 4), exclude=["a.conv1", "a.down"])
    one = search_space(residual, (8, 4), exclude=["a.down"])
    floating = {**policy(ACT), "a.conv1": Bits(32, 32), "a.down": Bits(32, 32)}
    total = activation_bytes(residual, both).total(residual.layers, floating)
    assert total == sum(site.numel * (32 if site.name == "relu" else WIDTHS[site.name]) for site in residual.sites) / 8
    mixed = {**floating, "a.conv1": Bits(4, 6)}
    assert activation_bytes(residual, one).total(residual.layers, mixed) == total + 256 * 6 / 8


def test_a_chain_of_sums_has_the_width_of_the_last() -> None:
    layers = (LayerInfo("head", "linear", (2, 4), 8, 4, 2, site="second"),)
    sites = tuple(
        Site(name, "add", 4, ("head",) if name == "second" else (), born, 9) for born, name in enumerate(("x", "y", "first", "second"))
    )
    meetings = (Meeting("first", "add", ("x", "y"), "first"), Meeting("second", "concat", ("first", "x"), "second"))
    model = Description(layers, (), {}, ("head",), ("head",), sites, meetings)
    assert activation_bytes(model, search_space(model, (8, 4))).total(layers, {"head": Bits(8, 4)}) == 4 * 4 * 4 / 8


def peak_by_hand(description: Description, widths: Mapping[str, int]) -> float:
    last = max(site.dies for site in description.sites)
    alive = ([site for site in description.sites if site.born <= moment <= site.dies] for moment in range(last + 1))
    return max(sum(site.numel * widths[site.name] for site in sites) for sites in alive) / 8


def test_the_peak_by_hand(residual: Description) -> None:
    moments = peak_activation_bytes(residual, search_space(residual, (8, 4)))
    assert max(cost.total(residual.layers, policy(ACT)) for cost in moments) == peak_by_hand(residual, WIDTHS)
    # At the fourth operation relu, a.conv2 and a.down are there; at the seventh a.relu2 and two sites in floating point.
    assert peak_by_hand(residual, WIDTHS) == max((256 * 6 + 2 * 128 * 4) / 8, (128 * 4 + 2 * 128 * 32) / 8)


@st.composite
def chains(draw: st.DrawFn) -> Description:
    """Layers that each read one site, which live for any time; some sites are read by nobody."""
    count = draw(st.integers(1, 5))
    sites, layers = [], []
    for index in range(count):
        born = draw(st.integers(0, 6))
        readers = (f"layer{index}",) if draw(st.booleans()) or not index else ()
        sites.append(Site(f"site{index}", "relu", draw(st.integers(1, 50)), readers, born, born + draw(st.integers(0, 5))))
        layers += [LayerInfo(name, "linear", (2, 2), 4, 2, 2, site=f"site{index}") for name in readers]
    return Description(tuple(layers), (), {}, ("layer0",), ("layer0",), tuple(sites))


@given(chains(), st.data())
def test_the_peak_is_the_largest_moment(description: Description, data: st.DataObject) -> None:
    space = search_space(description, (8, 4, 2))
    bits = {layer.name: Bits(4, data.draw(st.sampled_from((8, 4, 2)))) for layer in description.layers}
    widths = {site.name: bits[site.readers[0]].act if site.readers else 32 for site in description.sites}
    moments = peak_activation_bytes(description, space)
    assert max(cost.total(description.layers, bits) for cost in moments) == peak_by_hand(description, widths)


@given(chains(), st.floats(0.2, 1.2))
def test_budgets_of_a_peak_hold_just_the_policies_inside_it(description: Description, share: float) -> None:
    space = search_space(description, (4,), (8, 4, 2))
    widest = peak_by_hand(description, {site.name: 8 if site.readers else 32 for site in description.sites})
    limit = share * widest
    budgets = resolve_budgets({"peak_activation_bytes": limit}, description, space)
    assert {budget.name for budget in budgets} == {"peak_activation_bytes"}
    for pairs in product(*(space.candidates[layer.name].pairs for layer in description.layers)):
        bits = {layer.name: pair for layer, pair in zip(description.layers, pairs, strict=True)}
        peak = peak_by_hand(description, {site.name: bits[site.readers[0]].act if site.readers else 32 for site in description.sites})
        assert all(budget.table.total(bits) <= limit for budget in budgets) == (peak <= limit)


def test_a_peak_has_no_more_budgets_than_it_needs(residual: Description) -> None:
    space = search_space(residual, (8, 4))
    # The widest policy takes 512 bytes at the third and fourth operation (relu and two of the block), 1152 at the seventh (two in
    # floating point) and 520 at the eighth.
    counts = {512.5: 2, 511: 4, 520: 1, 1e9: 1}
    assert {most: len(resolve_budgets({"peak_activation_bytes": most}, residual, space)) for most in counts} == counts


def test_without_sites_or_with_another_models_space(residual: Description) -> None:
    space = search_space(residual, (8, 4))
    with pytest.raises(SpaceError, match="no activation sites"):
        activation_bytes(replace(residual, sites=()), space)
    with pytest.raises(SpaceError, match=r"no layer fc, which reads pool"):
        peak_activation_bytes(residual, SearchSpace({name: c for name, c in space.candidates.items() if name != "fc"}))
