"""What ``--set`` means, and the recipes that a sweep runs."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.errors import ConfigError
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.pipeline.sweep_settings import _toml, parse_axes, variants


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=0,1,2", [0, 1, 2]),
        ("seed = [0, 1]", [0, 1]),
        ("measure.metric=limpq,divergence", ["limpq", "divergence"]),
        ("measure.alpha=auto, 0.5", ["auto", 0.5]),
        ("measure.learning_rate=1e-3,0.01", [0.001, 0.01]),
        ("finetune.fold_batch_norms=true,false", [True, False]),
        ("space.weight=[[8, 4], [4, 2]]", [[8, 4], [4, 2]]),
        ("space.weight=[8,4],[4,2]", [[8, 4], [4, 2]]),
        ("levels.first.budgets.bitops=45.12k,w3a3,0.5", ["45.12k", "w3a3", 0.5]),
        ('name="a,b","c = d"', ["a,b", "c = d"]),
        ("seed=3", [3]),
    ],
)
def test_values_are_toml_and_words_need_no_quotes(text: str, values: list[Any]) -> None:
    (found,) = parse_axes([text]).values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], r"--set 'seed': expected KEY=VALUE,VALUE,\.\.\."),
        (["seed="], "expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        (["seed=1", "seed=2"], "--set seed is there twice"),
        (['name="a,b",c'], "write words separated by commas without quotes, or all values as TOML"),
        (["space.weight=[8,4],w"], "cannot be read"),
        (["seed=0,,1"], "cannot be read"),
    ],
)
def test_what_is_no_setting_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_axes(texts)


def test_every_combination_has_its_recipe_and_name(project: Any) -> None:
    path = project.recipe(measure={"alpha": 0.25})
    found = variants(path, {"seed": [0, 1], "measure.metric": ["limpq", "divergence"]})
    assert [variant.name for variant in found] == [
        "seed=0_metric=limpq",
        "seed=0_metric=divergence",
        "seed=1_metric=limpq",
        "seed=1_metric=divergence",
    ]
    assert [(v.recipe.seed, v.recipe.measure.metric) for v in found] == [(0, "limpq"), (0, "divergence"), (1, "limpq"), (1, "divergence")]
    # The rest is as in the file.
    assert {variant.recipe.measure.alpha for variant in found} == {0.25}
    assert found[0].settings == {"seed": 0, "measure.metric": "limpq"}


def test_levels_are_found_by_name_or_number_and_sections_are_made(project: Any) -> None:
    path = project.recipe("measure", levels=[{"name": "a", "budgets": {"bitops": "50k"}}, {"name": "b", "budgets": {"bitops": "60k"}}])
    by_name = variants(path, {"levels.b.budgets.bitops": ["45k"], "measure.epochs": [0.5], 'space.pins."body.*"': ["w8a8"]})[0].recipe
    assert [level.budgets["bitops"] for level in by_name.levels] == ["50k", "45k"]
    assert by_name.measure.epochs == 0.5
    assert by_name.space.pins == {"body.*": "w8a8"}
    assert variants(path, {"levels.0.budgets.bitops": ["45k"]})[0].recipe.levels[0].budgets == {"bitops": "45k"}


def test_names_stay_short_readable_and_different(project: Any) -> None:
    path = project.recipe()
    names = [v.name for v in variants(path, {"measure.epochs": [0.5], "finetune.epochs": [1, 2], "finetune.fold_batch_norms": [False]})]
    assert names == [f"measure.epochs=0.5_finetune.epochs={count}_fold_batch_norms=false" for count in (1, 2)]
    assert variants(path, {"space.weight": [[8, 4]]})[0].name == "weight=8-4"
    alike = [variant.name for variant in variants(path, {"name": ["a b", "a/b"]})]
    assert len(set(alike)) == 2
    assert all(name.startswith("name=a-b_") for name in alike)
    (long,) = variants(path, {"name": ["x" * 300]})
    assert len(long.name) < 120


def test_the_file_of_a_run_is_its_recipe(project: Any) -> None:
    table = project.folder / "latency.csv"
    table.write_text("")
    path = project.recipe(tables={"latency": "latency.csv"}, name='a "b" \\ ü', space={"pins": {"body.*": "w8a8"}})
    (variant,) = variants(path, {"seed": [3]})
    copy = project.folder / "elsewhere" / "recipe.toml"
    copy.parent.mkdir()
    copy.write_text(variant.text)
    assert load_recipe(copy) == variant.recipe
    assert variant.recipe.tables == {"latency": str(table)}


JSON = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text('a.- "é', min_size=0), inner, max_size=3)),
    max_leaves=8,
)


@given(JSON)
def test_toml_that_is_written_is_read_back(value: Any) -> None:
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "there is nothing to vary"),
        ({"seed": []}, r"the sweep over seed has \[\], expected a list"),
        ({"seed": [1, 1]}, "different values"),
        ({"measure.metric": "limpq"}, "expected a list"),
        ({"measure.metrik": ["limpq"]}, r"metrik=limpq: .*key 'measure.metrik': is not a known key \(did you mean 'metric'\?\)"),
        ({"seed": [0, "many"]}, "seed=many: .*key 'seed'"),
        ({"levels.third.budgets.bitops": ["w4a4"]}, "--set levels.third.budgets.bitops: there is no 'third', expected one of first"),
        ({"seed.of.all": [1]}, "--set seed.of.all: 'of' is looked for in"),
        ({"a b": [1]}, "--set a b: expected a dotted key"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_begins(project: Any, axes: dict[str, Any], message: str) -> None:
    path = project.recipe(seed=0)
    with pytest.raises(ConfigError, match=message):
        variants(path, axes)


def test_a_recipe_that_is_wrong_itself_is_not_blamed_on_the_sweep(project: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\S*recipe.toml: key 'model': is missing"):
        variants(project.recipe("model"), {"seed": [0]})
    with pytest.raises(ConfigError, match="does not exist"):
        variants(Path("nothing.toml"), {"seed": [0]})
