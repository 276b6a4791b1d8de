"""The command line: what is printed where, and what a dry run leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest

import bitalloc
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.pipeline.run_folder import RunFolder

STAGES = ("describe", "measure", "search", "finetune", "evaluate", "export")


def test_the_version_is_printed(project: Any) -> None:
    assert project.good("--version").stdout == f"bitalloc {bitalloc.__version__}\n"


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in ("run", *STAGES, "frontier", "explain"))])
def test_help_is_there_for_every_command(project: Any, arguments: tuple[str, ...]) -> None:
    text = project.good(*arguments).stdout
    assert all(word in text for word in (STAGES if arguments == ("--help",) else ("RECIPE.toml", "--out", "--json", "--quiet")))


def test_json_is_all_that_is_printed_on_standard_output(finished: Path, project: Any) -> None:
    for command in ("run", *STAGES):
        result = project.good(command, "recipe.toml", "--out", "out", "--json")
        value = json.loads(result.stdout)
        wanted = "summary.json" if command == "run" else {"measure": "importance.json"}.get(command)
        if command == "describe":
            layers = json.loads((finished / "layers.json").read_text())["layers"]
            assert [{**layer, **there} for layer, there in zip(layers, value["layers"], strict=True)] == value["layers"]
        elif wanted:
            assert value == json.loads((finished / wanted).read_text())
        elif command in ("search", "finetune", "export"):
            assert set(value) == {"first", "second"}


def test_json_of_a_search_has_widths_and_budgets(finetuned: Path, project: Any) -> None:
    found = json.loads(project.good("search", "recipe.toml", "--out", "out", "--json").stdout)["first"]
    policy = json.loads((finetuned / "policy.json").read_text())["layers"]
    assert found["policy"] == {name: f"w{layer['weight_bits']}a{layer['act_bits']}" for name, layer in policy.items()}
    assert [budget["name"] for budget in found["budgets"]] == ["bitops", "compression"]


def test_quiet_is_quiet_on_standard_error(project: Any) -> None:
    result = project.good("finetune", project.recipe(), "--out", "out", "--quiet", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["first"]["steps"] == 4


def test_a_log_without_a_terminal_has_no_escape_codes(finished_output: tuple[str, str]) -> None:
    stdout, stderr = finished_output
    assert "\x1b" not in stdout + stderr
    assert "joint training: started, 0 of 3 done" in stderr


def test_a_dry_run_says_what_can_be_reached_and_writes_nothing(project: Any) -> None:
    recipe = project.recipe(
        levels=[{"name": "only", "budgets": {"bitops": "w3a3", "compression": 5}}], space={"first_last_candidates": [8, 4]}
    )
    before = set(project.folder.iterdir())
    plan = json.loads(project.good("run", recipe, "--out", "out", "--dry-run", "--json").stdout)
    assert set(project.folder.iterdir()) == before
    assert (plan["layers"], plan["weights"], plan["macs"]) == (4, 100, 576 + 576 + 256 + 12)
    (level,) = plan["levels"]
    bitops, compression = level["budgets"]
    # The uniform policy, which w3a3 is about, keeps first and last layer at w8a8; the search may lower them to w4a4.
    assert bitops["limit"] == (576 + 12) * 64 + (576 + 256) * 9
    assert bitops["smallest"] == (576 + 12) * 16 + (576 + 256) * 4
    assert compression["limit"] == 80
    assert compression["smallest"] == 18 + 9 + 4 + 6
    text = project.good("run", recipe, "--out", "out", "--dry-run").stdout
    assert "only: bitops at most 45,120 bitops, smallest reachable 12,736" in text


def test_a_second_process_in_the_same_folder_is_refused(finetuned: Path, project: Any) -> None:
    with RunFolder(finetuned, load_recipe(project.folder / "recipe.toml")).lock():
        message = project.error("finetune", "recipe.toml", "--out", "out")
    assert message == "another bitalloc process is at work in out: wait for it or choose another --out."
    project.good("finetune", "recipe.toml", "--out", "out")


def test_a_traceback_is_for_debug_only(project: Any) -> None:
    recipe = project.recipe(model="tiny_module:raises")
    message = project.error("describe", recipe, "--out", "out")
    assert message.startswith("model = 'tiny_module:raises': calling it with {} failed (AttributeError: the data base is away).")
    result = project.run("describe", recipe, "--out", "out", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert 'raise AttributeError("the data base' in result.stderr
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


def test_an_error_that_nobody_foresaw_is_a_sentence_too(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_module  # type: ignore[import-not-found]

    def forward(self: Any, x: Any) -> Any:
        if self.training:
            raise AssertionError("this model\ncannot be trained")
        return self.head(self.body(self.stem(x)).mean((2, 3)))

    monkeypatch.setattr(tiny_module.Net, "forward", forward)
    message = project.error("measure", project.recipe(), "--out", "out")
    assert message == "AssertionError: this model cannot be trained. Run again with --debug for the traceback."


def test_a_missing_argument_is_a_usage_error(project: Any) -> None:
    result = project.run("run", project.recipe())
    assert result.exit_code == 2
    assert "--out" in result.stderr


def _recipes() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", _recipes(), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid(recipe: Path) -> None:
    assert load_recipe(recipe).name == recipe.stem


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "edmips_digits",
        "gmpq_cifar10_to_tiny_imagenet",
        "gmpq_digits",
        "gmpq_imagenet_resnet18",
        "imagenet_resnet18",
        "imagenet_resnet50",
    ],
)
def test_a_dry_run_needs_no_data_that_is_not_there(project: Any, name: str) -> None:
    (recipe,) = (path for path in _recipes() if path.stem == name)
    plan = json.loads(project.good("run", recipe, "--out", "out", "--dry-run", "--json").stdout)
    assert not Path("out").exists()
    assert all(budget["smallest"] < budget["limit"] for level in plan["levels"] for budget in level["budgets"])
    if name == "imagenet_resnet50":
        bitops, size = plan["levels"][0]["budgets"]
        assert round(bitops["limit"] / 1e9, 3) == 55.313
        assert size["limit"] == pytest.approx(4 * plan["weights"] / 12.2)


def test_the_cifar_recipe_asks_for_its_data(project: Any) -> None:
    (recipe,) = (path for path in _recipes() if path.stem == "cifar10_resnet20")
    assert "--data-root" in project.error("run", recipe, "--out", "out")
    message = project.error("run", recipe, "--out", "out", "--data-root", "nowhere")
    assert "nowhere/cifar_resnet/resnet20.safetensors does not exist" in message


def test_search_shows_the_widths_of_an_edited_policy(finished: Path, project: Any) -> None:
    """What is printed is what the next stage trains, and a budget that it exceeds is marked."""
    policy = Path("out/policy.json")
    edited = json.loads(policy.read_text(encoding="utf-8"))
    for layer in edited["layers"].values():
        layer.update(weight_bits=8, act_bits=8)
    policy.write_text(json.dumps(edited), encoding="utf-8")
    shown = project.good("search", Path("recipe.toml"), "--out", "out", "--quiet").stdout
    assert "edited by hand" in shown
    report = json.loads(project.good("search", Path("recipe.toml"), "--out", "out", "--json").stdout)
    first = next(iter(report.values()))
    assert first["policy_edited"] is True
    assert set(first["policy"].values()) == {"w8a8"}
    assert "OVER BUDGET" in project.good("run", Path("recipe.toml"), "--out", "out").stdout
