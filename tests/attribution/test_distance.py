"""Rank correlations equal SciPy's, and the diagnostic reports what they say."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from bitalloc.attribution import attribution_rank_distance, kendall, spearman, spearman_distance, top_overlap
from bitalloc.errors import TrainingError
from bitalloc.models import digits_net

PAIRS = st.integers(2, 12).flatmap(lambda n: st.tuples(*(st.lists(st.integers(0, 5), min_size=n, max_size=n) for _ in range(2))))


@given(PAIRS)
def test_correlations_equal_those_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    left, right = (np.array(row, dtype=float) for row in pair)
    found = [float(measure(torch.tensor([pair[0]]).double(), torch.tensor([pair[1]]).double())) for measure in (spearman, kendall)]
    if np.ptp(left) and np.ptp(right):
        expected = [stats.spearmanr(left, right).statistic, stats.kendalltau(left, right).statistic]
    else:
        expected = [float(np.ptp(left) == np.ptp(right))] * 2
    assert found == pytest.approx(expected, abs=1e-12)


def test_order_and_reversed_order() -> None:
    row = torch.tensor([[0.1, 0.5, 0.2, 0.9]])
    assert float(spearman_distance(row, 3 * row + 1)) == pytest.approx(0)
    assert float(spearman_distance(row, -row)) == pytest.approx(2)
    assert float(kendall(row, -row)) == pytest.approx(-1)


@pytest.mark.parametrize("positions", [1, 2, 7, 64, 300])
def test_kendall_equals_the_count_over_all_pairs(positions: int) -> None:
    generator = torch.Generator().manual_seed(positions)
    left, right = (torch.randint(0, max(2, positions // part), (6, positions), generator=generator).double() for part in (2, 3))
    right[0], right[1] = left[0], -left[1]
    for a, b, found in zip(left, right, kendall(left, right).tolist(), strict=True):
        signs = [(row[:, None] - row[None, :]).sign() for row in (a, b)]
        untied = float(signs[0].abs().sum() * signs[1].abs().sum())
        expected = float((signs[0] * signs[1]).sum()) / untied**0.5 if untied else float(bool((a == a[0]).all() and (b == b[0]).all()))
        assert found == pytest.approx(expected, abs=1e-15)


def test_kendall_of_as_many_positions_as_an_image_has() -> None:
    """All pairs of them would take 40 GB."""
    row = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    swapped = row.flatten(1).sort(1).values.reshape(1, -1, 2).flip(2).reshape(1, -1)  # neighbours in the other order
    count = row.numel()
    assert float(kendall(row.flatten(1).sort(1).values, swapped)) == pytest.approx(1 - 2 * (count / 2) / (count * (count - 1) / 2))


def test_top_overlap_counts_shared_positions() -> None:
    left = torch.tensor([[9.0, 8, 7, 0, 0, 0, 0, 0], [1.0, 2, 3, 4, 5, 6, 7, 8]]).reshape(2, 1, 2, 4)
    right = torch.tensor([[9.0, 0, 7, 8, 0, 0, 0, 0], [8.0, 7, 6, 5, 4, 3, 2, 1]]).reshape(2, 1, 2, 4)
    assert top_overlap(left, right, 3 / 8).tolist() == pytest.approx([2 / 3, 0])
    assert top_overlap(left, right, 1.0).tolist() == [1, 1]
    assert top_overlap(left, left, 0.25).tolist() == [1, 1]
    with pytest.raises(TrainingError, match="share of top positions is 0"):
        top_overlap(left, right, 0)


def test_maps_of_different_shapes_cannot_be_compared() -> None:
    with pytest.raises(TrainingError, match=r"\(1, 4\) and \(1, 5\)"):
        spearman(torch.ones(1, 4), torch.ones(1, 5))


def pictures(count: int = 7) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 1, 16, 16, generator=generator), torch.zeros(count)) for _ in range(2)]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def test_a_network_agrees_with_itself_and_less_with_others() -> None:
    noisy = network(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn_like(parameter)
    report = attribution_rank_distance(network(0), {"same": network(0), "noisy": noisy, "other": network(1)}, pictures())
    assert report.images == 14
    same, noisy_one, other = (report.networks[name] for name in ("same", "noisy", "other"))
    assert same.distance == pytest.approx(0)
    assert same.top_overlap == (1.0,) * 14
    assert 0 < noisy_one.distance < other.distance
    assert len(other.kendall) == 14


def test_the_report_is_json_with_mean_and_spread() -> None:
    report = attribution_rank_distance(network(0), {"other": network(1)}, pictures()).to_json()
    row = json.loads(json.dumps(report))["networks"]["other"]
    values = row["spearman"]["per_image"]
    assert row["spearman"]["mean"] == pytest.approx(np.mean(values))
    assert row["spearman"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert row["distance"] == pytest.approx(1 - np.mean(values))


def test_it_stops_after_enough_images_and_leaves_the_networks_alone() -> None:
    reference, other = digits_net().train(), digits_net()
    report = attribution_rank_distance(reference, {"other": other}, [torch.randn(3, 1, 8, 8)] * 4, images=5)
    assert report.images == 6
    assert reference.training
    assert all(parameter.grad is None for parameter in (*reference.parameters(), *other.parameters()))


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no network to compare"):
        attribution_rank_distance(network(0), {}, pictures())
    with pytest.raises(TrainingError, match="no data to compare attributions on"):
        attribution_rank_distance(network(0), {"same": network(0)}, [])
    broken = network(1)
    with torch.no_grad():
        broken[6].weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="network w2a2: the attribution map at module 3 is not finite"):
        attribution_rank_distance(network(0), {"w2a2": broken}, pictures())
    with pytest.raises(TrainingError, match="the reference network: the attribution map at module 3"):
        attribution_rank_distance(broken, {"same": network(0)}, pictures())
    with pytest.raises(TrainingError, match="images is 0"):
        attribution_rank_distance(network(0), {"same": network(0)}, pictures(), images=0)
