"""``bitalloc frontier`` and ``bitalloc explain`` on a run folder."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bitalloc.policy import Bits
from bitalloc.search.frontier_points import Frontier
from bitalloc.search.surface import Surface

TWO_LEVELS = [
    {"name": "first", "budgets": {"bitops": "45.12k", "compression": 5}},
    {"name": "second", "budgets": {"weight_bytes": "70B"}},
]


def test_all_policies_pass_through_the_level_s_own(finetuned: Path, project: Any) -> None:
    printed = json.loads(project.good("frontier", "recipe.toml", "--out", "out", "--all", "--json", "--quiet").stdout)
    found = Frontier.load(finetuned / "frontier.json")
    assert Frontier.from_json(printed) == found
    assert found.complete
    assert found.budget == "bitops"
    search = json.loads((finetuned / "search.json").read_text())
    # The best policy inside the level's budget is the last one on the frontier that is inside.
    inside = [point for point in found.points if point.cost <= search["budgets"][0]["limit"]]
    assert inside[-1].objective == search["objective"]
    assert {name: str(bits) for name, bits in inside[-1].bits.items()} == search["policy"]
    # The other budget is held all along.
    assert all(use.used <= use.limit for point in found.points for use in point.budgets)
    assert {use.name for use in found.points[0].budgets} == {"bitops", "compression"}


def test_points_are_written_as_csv_and_json_and_shown(finetuned: Path, project: Any) -> None:
    result = project.good("frontier", "recipe.toml", "--out", "out", "--points", "4", "--csv", "mine.csv", "--quiet")
    found = Frontier.load(finetuned / "frontier.json")
    assert Path("mine.csv").read_text() == (finetuned / "frontier.csv").read_text()
    with Path("mine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Bits.parse(row["bits:body.0"]) for row in rows] == [point.bits["body.0"] for point in found.points]
    assert f"bitops: {len(found.points)} policies; there are more policies between these" in result.stdout
    assert "smallest reachable" in result.stdout


def test_a_budget_that_the_level_has_not_can_be_varied_too(finetuned: Path, project: Any) -> None:
    project.good("frontier", "recipe.toml", "--out", "out", "--budget", "weight_bytes", "--all", "--gap", "0", "--quiet")
    found = Frontier.load(finetuned / "frontier.json")
    # The ends are pinned at 8 bits: 36 + 12 weights; 36 and 16 weights at 2 to 4 bits beside them.
    assert found.smallest == 36 + 12 + 9 + 4
    assert [use.name for use in found.points[0].budgets] == ["weight_bytes", "bitops", "compression"]


def test_a_surface_of_two_budgets(finetuned: Path, project: Any) -> None:
    arguments = ("--surface", "bitops,weight_bytes", "--points", "3", "--quiet")
    printed = json.loads(project.good("frontier", "recipe.toml", "--out", "out", *arguments, "--json").stdout)
    found = Surface.load(finetuned / "surface.json")
    assert Surface.from_json(printed) == found
    assert (len(found.first_limits), len(found.second_limits)) == (3, 3)
    assert (finetuned / "surface.csv").read_text() == found.to_csv()
    assert "weight_bytes" in project.good("frontier", "recipe.toml", "--out", "out", *arguments).stdout


def test_the_stages_before_are_done_first_and_levels_have_their_own_files(project: Any) -> None:
    result = project.good("frontier", project.recipe(levels=TWO_LEVELS), "--out", "out", "--level", "second", "--points", "2")
    assert "importance: started" in result.stderr
    assert Path("out/second/frontier.json").is_file()
    assert not Path("out/frontier.json").exists()
    assert not Path("out/policy.json").exists()


def test_explain_shows_every_layer_and_one_in_detail(finetuned: Path, project: Any) -> None:
    policy = json.loads((finetuned / "search.json").read_text())["policy"]
    text = project.good("explain", "recipe.toml", "--out", "out", "--quiet").stdout
    for name, bits in policy.items():
        assert any(line.split()[:2] == [name, bits] for line in text.splitlines())
    found = json.loads(project.good("explain", "recipe.toml", "--out", "out", "--layer", "body.3", "--json", "--quiet").stdout)
    (layer,) = found["layers"]
    assert layer["bits"] == policy["body.3"]
    assert {choice["bits"] for choice in layer["choices"]} == {"w4a4", "w4a2", "w2a4", "w2a2"}
    assert [price["budget"] for price in found["prices"]] == ["bitops", "compression"]
    assert "body.3: " in project.good("explain", "recipe.toml", "--out", "out", "--layer", "body.3", "--quiet").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frontier", "--level", "third"), "the recipe has no level 'third': expected one of first."),
        (("frontier", "--budget", "energy"), "'energy' is no budget: expected one of bitops, weight_bytes,"),
        (("frontier", "--surface", "bitops"), "--surface is 'bitops', expected two different budgets, for example bitops,weight_bytes."),
        (("frontier", "--surface", "bitops,bitops"), "--surface is 'bitops,bitops', expected two different budgets"),
        (("frontier", "--surface", "bitops,compression", "--budget", "bitops"), "leave --budget out"),
        (("frontier", "--all", "--points", "3"), "--all goes neither with --points nor with --surface"),
        (("explain", "--layer", "body.9"), "the model has no layer 'body.9': expected one of stem.0, body.0, body.3, head."),
        (("explain", "--level", "third"), "the recipe has no level 'third': expected one of first."),
    ],
)
def test_bad_names_are_told_before_anything_is_trained(project: Any, arguments: tuple[str, ...], message: str) -> None:
    command, *options = arguments
    assert message in project.error(command, project.recipe(), "--out", "out", *options)
    assert not Path("out/float.safetensors").exists()


@pytest.mark.parametrize("option", [("--points", "1"), ("--gap", "-0.1")])
def test_numbers_out_of_range_are_usage_errors(project: Any, option: tuple[str, str]) -> None:
    result = project.run("frontier", project.recipe(), "--out", "out", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
