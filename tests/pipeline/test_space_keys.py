"""What a recipe says about ties, hardware and measured costs reaches the search space and the budgets."""

from pathlib import Path
from typing import Any

import pytest

from bitalloc.errors import BudgetError, ConfigError, FileError, SpaceError
from bitalloc.layers import Description, Group, LayerInfo, Meeting, Site
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace
from bitalloc.training import Silent

READS = {"stem": "image", "q": "x", "k": "x", "deep": "y", "point": "z", "head": "sum"}
MODEL = Description(
    tuple(LayerInfo(name, "linear", (4, 4), 16, 4, 4, site=site) for name, site in READS.items()),
    (),
    {},
    ("stem",),
    ("head",),
    tuple(Site(site, "op", 4, tuple(n for n, s in READS.items() if s == site), 0, 1) for site in dict.fromkeys(READS.values())),
    (Meeting("sum", "add", ("y", "z"), "sum"),),
    (Group("qkv", ("q", "k")), Group("depthwise-pointwise", ("deep", "point"))),
)
RECIPE = """\
name = "test"
model = "a:b"
data = "a:c"
{tables}
[space]
weight = [8, 4, 2]
{space}
[[levels]]
name = "one"
budgets = {{ bitops = "w4a4" }}
"""


def workspace(folder: Path, space: str = "", tables: str = "") -> Workspace:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(space=space, tables=tables), encoding="utf-8")
    recipe = load_recipe(path)
    return Workspace(recipe, RunFolder(folder / "out", recipe), None, Silent())


def space_of(folder: Path, space: str) -> SearchSpace:
    return workspace(folder, space).space(MODEL)


def test_layers_share_inputs_by_default(tmp_path: Path) -> None:
    space = space_of(tmp_path, "")
    assert (space.weight_ties, space.act_ties, space.shared_inputs) == ((), (("q", "k"),), (("q", "k"),))
    assert space.pinned == {"stem": Bits(8, 8), "head": Bits(8, 8)}


@pytest.mark.parametrize(
    ("keys", "weight_ties", "act_ties"),
    [
        ('coupling = "free"', (), ()),
        # The sum is what head reads, which is pinned at 8 bits by default.
        ('coupling = "strict"', (("q", "k"),), (("q", "k"), ("deep", "point", "head"))),
        ('coupling = "strict"\nfused_qkv = false', (), (("q", "k"), ("deep", "point", "head"))),
        ("fused_qkv = true", (("q", "k"),), (("q", "k"),)),
        ("depthwise_pointwise = true", (("deep", "point"),), (("q", "k"), ("deep", "point"))),
    ],
)
def test_ties(tmp_path: Path, keys: str, weight_ties: Any, act_ties: Any) -> None:
    space = space_of(tmp_path, keys)
    assert (space.weight_ties, space.act_ties) == (weight_ties, act_ties)


def test_hardware_and_least_widths(tmp_path: Path) -> None:
    keys = 'allowed_pairs = ["w4a4", "w4a8", "W8A8"]\nminimum = { "q" = "w8a8" }\nmax_widths = 2\ncoupling = "free"'
    space = space_of(tmp_path, keys)
    assert space.candidates["k"].pairs == (Bits(8, 8), Bits(4, 8), Bits(4, 4))
    assert space.candidates["q"].pairs == (Bits(8, 8),)
    assert space.max_widths == 2
    options = workspace(tmp_path, keys).space_options()
    assert options == {
        "coupling": "free",
        "fused_qkv": None,
        "depthwise_pointwise": False,
        "allowed_pairs": ["w4a4", "w4a8", "w8a8"],
        "minimum": {"q": "w8a8"},
        "max_widths": 2,
    }


def test_searched_ends_keep_to_the_hardware_and_to_their_pins(tmp_path: Path) -> None:
    keys = 'first_last_candidates = [8, 4, 3]\nallowed_pairs = ["w4a4", "w8a8"]\npins = { head = "w4a8" }'
    work = workspace(tmp_path, keys)
    assert work.space(MODEL).candidates["stem"].pairs == (Bits(8, 8), Bits(4, 4))
    assert work.space(MODEL).candidates["head"] == Candidates.pinned(Bits(4, 8))
    assert work.uniform_space(MODEL).pinned == {"stem": Bits(8, 8), "head": Bits(4, 8)}


def test_searched_ends_are_tied_like_the_others(tmp_path: Path) -> None:
    work = workspace(tmp_path, 'first_last_candidates = [8, 4]\ncoupling = "strict"')
    # What meets at the end has the widths that all have in common; the uniform policy has the end's 8 bits everywhere there.
    assert [work.space(MODEL).candidates[name].act for name in ("deep", "point", "head")] == [(8, 4)] * 3
    assert [work.uniform_space(MODEL).candidates[name].act for name in ("deep", "point", "head")] == [(8,)] * 3


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ('coupling = "tight"', "key 'space.coupling': input should be 'strict', 'shared-input' or 'free', but it is 'tight'"),
        ("fused_qkv = 3", "key 'space.fused_qkv'"),
        ('depthwise_pointwise = "some"', "key 'space.depthwise_pointwise'"),
        ('allowed_pairs = ["w4a4", "4x8"]', "key 'space.allowed_pairs.1': '4x8' is not a pair of bit-widths"),
        ("allowed_pairs = []", "key 'space.allowed_pairs': is empty"),
        ('minimum = { "*" = "4" }', r"key 'space.minimum.\*': '4' is not a pair of bit-widths"),
        ("max_widths = 0", "key 'space.max_widths': input should be greater than or equal to 1"),
        ("max_width = 2", r"key 'space.max_width': is not a known key \(did you mean 'max_widths'\?\)"),
    ],
)
def test_a_key_that_is_not_valid_is_named(tmp_path: Path, keys: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        workspace(tmp_path, keys)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ('minimum = { "mlp" = "w4a4" }', "'mlp' matches no layer"),
        ('minimum = { "q" = "w32a32" }', "layer q must have at least w32a32"),
        ('allowed_pairs = ["w3a3"]', "none of the allowed pairs w3a3 is among the candidates"),
        ('pins = { q = "w4a4", k = "w4a8" }', "layers q, k are tied but have no act width in common: q 4; k 8"),
    ],
)
def test_keys_that_do_not_fit_the_model(tmp_path: Path, keys: str, complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint):
        space_of(tmp_path, keys)


def test_tables_lie_beside_the_recipe(tmp_path: Path) -> None:
    rows = [f"{name},{w},{a},{16 * w / 100}" for name in READS for w in (8, 4, 2) for a in (8, 4, 2)]
    (tmp_path / "latency.csv").write_text("\n".join(["layer,weight_bits,act_bits,us", *rows]), encoding="utf-8")
    work = workspace(tmp_path, tables='[tables]\nlatency = "latency.csv"')
    space = work.space(MODEL)
    (budget,) = work.costs(MODEL, space).budgets({"latency": "0.5x w4a4"}, work.uniform_space(MODEL))
    assert budget.unit == "us"
    assert budget.limit == pytest.approx(0.5 * 0.16 * (8 + 4 * 4 + 8))
    with pytest.raises(BudgetError, match="the budget latency = '3 ms' has the unknown unit 'ms'.*its table is in us"):
        work.costs(MODEL, space).budgets({"latency": "3 ms"})


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    work = workspace(tmp_path, tables='[tables]\nlatency = "missing.csv"')
    with pytest.raises(FileError, match=r"missing\.csv does not exist"):
        work.tables()


def test_the_step_sizes_of_the_recipe_are_counted(tmp_path: Path) -> None:
    one, each = (workspace(tmp_path, "[quantizers]\nper_channel = " + text) for text in ("false", "true"))
    bits = dict.fromkeys(READS, Bits(4, 4))
    used = [work.costs(MODEL, work.space(MODEL)).used("model_bytes", bits) for work in (one, each)]
    assert used == [6 * 8 + 4 * (6 + 5), 6 * 8 + 4 * (24 + 5)]
