"""Many runs of a recipe: each an ordinary run folder, and the results side by side."""

import csv
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bitalloc.errors import ConfigError, FileError
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.sweep import run_sweep
from bitalloc.pipeline.sweep_jobs import Executor, Job, Outcome

SET = ("--set", "seed=0,1", "--set", "model=tiny_module:net,tiny_module:nothing_to_quantize")
GOOD = [f"seed={seed}_model=tiny_module-net" for seed in (0, 1)]
BAD = [f"seed={seed}_model=tiny_module-nothing_to_quantize" for seed in (0, 1)]


@pytest.fixture(scope="module")
def swept(project_in: Callable[[Path], Any], module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A sweep of two runs that succeed and two that fail."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = project_in(folder)
        project.recipe()
        result = project.run("sweep", "recipe.toml", "--out", "out", *SET)
    return folder / "out", result


@pytest.fixture
def out(swept: tuple[Path, Any], project: Any) -> Path:
    """A copy of that sweep in the project's folder, and its recipe."""
    shutil.copytree(swept[0], project.folder / "out")
    project.recipe()
    return project.folder / "out"


def test_runs_that_fail_do_not_stop_the_others_and_are_told(swept: tuple[Path, Any]) -> None:
    out, result = swept
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: 2 of 4 runs failed: {', '.join(BAD)}. The same command tries them again."
    report = json.loads((out / "sweep.json").read_text())
    assert {run["name"]: run["status"] for run in report["runs"]} == dict.fromkeys(GOOD, "done") | dict.fromkeys(BAD, "failed")
    errors = {run["error"] for run in report["runs"] if run["status"] == "failed"}
    assert len(errors) == 1
    assert all(error in " ".join(result.stdout.split()) for error in errors)
    assert report["runs"][0]["error"] is None


def test_a_run_is_what_bitalloc_run_makes_of_its_recipe(swept: tuple[Path, Any], project: Any) -> None:
    out, name = swept[0], GOOD[1]
    project.good("run", out / name / "recipe.toml", "--out", "alone")
    assert load_recipe(out / name / "recipe.toml").seed == 1
    same = ["policy.json", "importance.json", "float.safetensors", "mixed.safetensors", "evaluation.json", "model.onnx"]
    assert {file: (out / name / file).read_bytes() == Path("alone", file).read_bytes() for file in same} == dict.fromkeys(same, True)
    files = {path.name for path in (out / name).iterdir()}
    assert files - {path.name for path in Path("alone").iterdir()} == {"recipe.toml"}


def test_the_table_holds_what_the_runs_found(swept: tuple[Path, Any]) -> None:
    out, result = swept
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [(row["run"], row["status"], row["kind"]) for row in rows] == [
        (GOOD[0], "done", "mixed"),
        (GOOD[0], "done", "uniform"),
        (BAD[0], "failed", ""),
        (GOOD[1], "done", "mixed"),
        (GOOD[1], "done", "uniform"),
        (BAD[1], "failed", ""),
    ]
    for row in rows:
        if row["kind"] == "mixed":
            summary = json.loads((out / row["run"] / "summary.json").read_text())
            level = summary["levels"][0]
            found = {key: float(row[key]) for key in ("float_top1", "top1", "bitops", "weight_bytes", "model_bytes")}
            assert found == {
                "float_top1": summary["float_top1"],
                "top1": level["mixed_top1"],
                **{key: level[key] for key in ("bitops", "weight_bytes", "model_bytes")},
            }
    assert "tiny_module:net" in result.stdout
    report = json.loads((out / "sweep.json").read_text())
    tops = [float(row["top1"]) for row in rows if row["kind"] == "uniform"]
    uniform = next(group for group in report["over_seeds"] if group["kind"] == "uniform")
    assert uniform["runs"] == 2
    assert uniform["settings"] == {"model": "tiny_module:net"}
    assert uniform["top1_mean"] == pytest.approx(statistics.mean(tops))
    assert uniform["top1_std"] == pytest.approx(statistics.stdev(tops))


def test_a_sweep_goes_on_where_it_was(out: Path, project: Any, contents: Callable[[Path], dict[str, bytes]]) -> None:
    before = contents(out)
    (out / GOOD[1] / "mixed.safetensors").unlink()
    lines = project.run("sweep", "recipe.toml", "--out", "out", *SET).stderr.splitlines()
    assert {line for line in lines if line.startswith(f"{GOOD[0]}: ") and not line.endswith("done before")} == {f"{GOOD[0]}: done"}
    assert f"{GOOD[1]}: measure: done before" in lines
    assert f"{GOOD[1]}: finetune/first/mixed: started" in lines
    after = contents(out)
    assert after[f"{GOOD[1]}/mixed.safetensors"] == before[f"{GOOD[1]}/mixed.safetensors"]
    assert after["sweep.json"] == before["sweep.json"]
    assert {name: content for name, content in after.items() if name.startswith(GOOD[0])} == {
        name: content for name, content in before.items() if name.startswith(GOOD[0])
    }


class Fake(Executor):
    """Gives known results, in reverse order, so far as wanted."""

    def __init__(self, count: int | None = None) -> None:
        self.jobs: list[Job] = []
        self.count = count

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        self.jobs = list(jobs)
        for job in self.jobs[::-1][: self.count]:
            recipe = load_recipe(job.folder / "recipe.toml")
            top1 = 0.5 + recipe.seed / 10 + (0.1 if recipe.measure.metric == "limpq" else 0)
            costs = {"bitops": 10.0, "weight_bytes": 4.0, "model_bytes": 5.0}
            policies = [
                {"level": "first", "kind": "mixed", "top1": top1, **costs},
                {"level": "first", "kind": "uniform", "top1": 0.5 + recipe.seed / 20, **costs},
            ]
            yield Outcome(job.name, {"float_top1": 0.9, "policies": policies})
        if self.count is not None:
            raise KeyboardInterrupt


AXES = {"measure.metric": ["limpq", "divergence"], "seed": [0, 1, 2]}


def test_mean_and_spread_over_seeds(project: Any) -> None:
    report = run_sweep(project.recipe(), Path("out"), AXES, executor=Fake())
    assert [run["settings"]["seed"] for run in report["runs"]] == [0, 1, 2, 0, 1, 2]  # in the order of the settings
    found = {(group["settings"]["measure.metric"], group["kind"]): group for group in report["over_seeds"]}
    assert len(found) == 4
    limpq = found["limpq", "mixed"]
    # 0.6, 0.7, 0.8, and above the uniform ones by 0.1, 0.15, 0.2
    expected = {"runs": 3, "top1_mean": 0.7, "top1_std": 0.1, "gain_mean": 0.15, "gain_std": 0.05, "bitops_mean": 10.0}
    assert {key: limpq[key] for key in expected} == pytest.approx(expected)
    assert found["divergence", "mixed"]["gain_mean"] == pytest.approx(0.05)
    assert found["limpq", "uniform"]["gain_mean"] is None
    assert json.loads(Path("out", "sweep.json").read_text()) == report


def test_what_is_done_of_a_stopped_sweep_is_in_its_report(project: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(project.recipe(), Path("out"), AXES, executor=Fake(2))
    report = json.loads(Path("out", "sweep.json").read_text())
    assert [run["status"] for run in report["runs"]] == [*["waiting"] * 4, "done", "done"]
    assert [(group["runs"], group["settings"]) for group in report["over_seeds"]] == [(2, {"measure.metric": "divergence"})] * 2


def test_without_several_seeds_there_is_no_spread(project: Any) -> None:
    report = run_sweep(project.recipe(), Path("out"), {"measure.metric": ["limpq", "divergence"]}, executor=Fake())
    assert report["over_seeds"] is None


def test_jobs_are_plain_absolute_paths(project: Any) -> None:
    fake = Fake()
    run_sweep(project.recipe(), Path("out"), {"seed": [4]}, data_root=Path("data"), command=["a", "b"], executor=fake)
    here = Path.cwd()
    assert fake.jobs == [Job("seed=4", here / "out" / "seed=4", here / "data", here, ("a", "b"))]


def test_a_folder_in_use_or_of_a_single_run_is_refused(project: Any) -> None:
    path = project.recipe()
    with RunFolder(Path("out"), load_recipe(path)).lock(), pytest.raises(FileError, match="another bitalloc process is at work"):
        run_sweep(path, Path("out"), {"seed": [0]}, executor=Fake())
    Path("out", "stages.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a single run: choose another --out"):
        run_sweep(path, Path("out"), {"seed": [0]}, executor=Fake())


def test_bad_settings_are_one_sentence(project: Any) -> None:
    path = project.recipe()
    assert "expected KEY=VALUE" in project.error("sweep", path, "--out", "out", "--set", "seed")
    assert "key 'seed'" in project.error("sweep", path, "--out", "out", "--set", "seed=x")
    assert not Path("out").exists()
    with pytest.raises(ConfigError, match="parallel is 0, expected at least 1"):
        run_sweep(path, Path("out"), {"seed": [0]}, parallel=0)
