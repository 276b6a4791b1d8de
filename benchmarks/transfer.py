"""Bit-widths scored on a small dataset, deployed on another one: the transfer table of docs/results.md.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py --data-root DIR --out runs/transfer [--seeds 0 1 2] [--json FILE]

``recipes/gmpq_cifar10_to_tiny_imagenet.toml`` and the same with other ways to score, each with a run folder of its own: GMPQ and EdMIPS
searched on a tenth of CIFAR-10, LIMPQ measured there, and LIMPQ measured on Tiny-ImageNet itself. All share one float model and, for
every seed, the same fine-tuning; a uniform policy and policies that are equal are fine-tuned once. Everything resumes, and several
processes with the same ``--out`` share the work: each passes over what another one has in hand. ``--only target`` or ``--only sources``
does one half of the scoring.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitalloc.attribution import attribution_rank_distance
from bitalloc.errors import FileError
from bitalloc.files import write_json
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.result_tasks import deployed, describe_model, finetuned
from bitalloc.pipeline.run import run_recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.training_tasks import finetune_level
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Policy
from bitalloc.training import Silent, device, evaluate, read_journal

RECIPE = Path(__file__).parents[1] / "recipes" / "gmpq_cifar10_to_tiny_imagenet.toml"
TARGET, SOURCES = "limpq on the target", ("limpq transferred", "edmips transferred", "gmpq transferred")
UNIFORM = "uniform"
MEASURE_EPOCHS = {TARGET: 1, "limpq transferred": 3}


@dataclass(frozen=True, slots=True)
class Experiment:
    """Where it lies and what it is of."""

    out: Path
    data_root: Path

    def recipe(self, method: str, **changes: Any) -> Recipe:
        """The recipe with another way to score the widths; all but the one on the target take the target's float model."""
        values = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
        if method in (TARGET, "limpq transferred"):
            del values["supernet"]
            values["measure"] = {"metric": "limpq", "epochs": MEASURE_EPOCHS[method]}
        elif method == "edmips transferred":
            values["supernet"]["method"] = "edmips"
        if method == TARGET:
            del values["source"]
        else:
            values["float"] = {"weights": str((self.folder(TARGET) / "float.safetensors").resolve())}
        return Recipe.model_validate(values | changes)

    def folder(self, method: str) -> Path:
        """The run folder of a way to score."""
        return self.out / method.replace(" ", "_")

    def policy(self, method: str, level: LevelSection) -> Policy:
        """What a way to score gave at a level."""
        scored = TARGET if method == UNIFORM else method
        home = RunFolder(self.folder(scored), self.recipe(scored))
        return Policy.load(home.level_path(level, "uniform_policy.json" if method == UNIFORM else "policy.json"))


def score(experiment: Experiment, method: str) -> bool:
    """Trains the float models and scores and solves all levels, as ``bitalloc run`` does; False while another process does so."""
    recipe = experiment.recipe(method)
    try:
        run_recipe(recipe, experiment.folder(method), data_root=experiment.data_root, until="search", say=saying(method))
    except FileError as error:
        print(error, flush=True)
        return False
    return True


def score_source(experiment: Experiment, method: str) -> None:
    """The source's part alone, which needs nothing of the target's float model and can be done while that is trained."""
    recipe = experiment.recipe(method, float={})
    run_recipe(recipe, experiment.folder(method), data_root=experiment.data_root, until="measure", say=saying(method))


def saying(method: str) -> Callable[[str], None]:
    """Prints a line with the method in front of it."""
    return lambda line: print(f"{method}: {line}", flush=True)


def tune(experiment: Experiment, level: LevelSection, policy: Policy, seed: int) -> dict[str, Any] | None:
    """Fine-tunes and tests a policy, in a folder named after its widths; None while another process does so."""
    recipe = experiment.recipe(TARGET, seed=seed)
    folder = RunFolder(experiment.out / "tuned" / f"{level.name}-{name_of(policy)}" / f"seed={seed}", recipe)
    report = folder.path("result.json")
    try:
        with folder.lock():
            if not report.exists():
                work = Workspace(recipe, folder, experiment.data_root, Silent())
                describe_model(work)
                shutil.copy(experiment.folder(TARGET) / "float.safetensors", folder.path("float.safetensors"))
                policy.save(folder.level_path(level, "policy.json"))
                work.rewind()
                finetune_level(work, level, "mixed", "transfer")
                write_json(report, tested(work, level))
    except FileError as error:
        print(error, flush=True)
        return None
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def tested(work: Workspace, level: LevelSection) -> dict[str, Any]:
    """Top-1 of the deployed network on the test images, and how far its attribution is from the float model's."""
    tuned, images = finetuned(work, level, "mixed").to(device()), work.recipe.evaluate.attribution_images
    distance = attribution_rank_distance(work.float_model(), {"tuned": tuned}, work.splits.test, images=images)
    top1 = evaluate(deployed(work, level, "mixed"), work.splits.test).accuracy
    return {"top1": top1, "ard": distance.networks["tuned"].distance}


def name_of(policy: Policy) -> str:
    """Short and the same for the same widths."""
    return hashlib.sha256(json.dumps(policy.as_text(), sort_keys=True).encode()).hexdigest()[:10]


def tune_all(experiment: Experiment, methods: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The results of every level and method, a seed each; those that another process has in hand are left out."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in seeds:
        for level in experiment.recipe(TARGET).levels:
            for method in methods:
                result = tune(experiment, level, experiment.policy(method, level), seed)
                print(f"seed {seed} {level.name} {method}: {result}", flush=True)
                found.setdefault((level.name, method), []).extend([] if result is None else [result])
    return found


def row(experiment: Experiment, level: LevelSection, method: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of the table."""
    policy, target = experiment.policy(method, level), experiment.policy(TARGET, level)
    work = Workspace(experiment.recipe(TARGET), RunFolder(experiment.folder(TARGET), experiment.recipe(TARGET)), None, Silent())
    costs = work.costs(work.description(), work.space(work.description()))
    same = [getattr(bits, side) == getattr(target.bits[name], side) for name, bits in policy.bits.items() for side in ("weight", "act")]
    top1 = [100 * result["top1"] for result in results]
    return {
        "level": level.name,
        "method": method,
        "top1": top1,
        "top1_mean": statistics.fmean(top1),
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "bitops": costs.used("bitops", policy.bits),
        "ard": statistics.fmean(result["ard"] for result in results),
        "agreement": statistics.fmean(same),
        **cost(experiment, level, method),
        "policy": policy.as_text(),
    }


def cost(experiment: Experiment, level: LevelSection, method: str) -> dict[str, Any]:
    """Seconds and images of the scoring. LIMPQ is measured once for all levels, a supernet is searched for each.

    The seconds are those of all images at the median rate of the steps, which other work on the machine does not change much.
    """
    if method == UNIFORM:
        return {"seconds": 0.0, "images": 0}
    recipe = experiment.recipe(method)
    home = RunFolder(experiment.folder(method) / ("" if recipe.source is None else "source"), recipe)
    task, path = "measure", home.path("measure.json")
    if recipe.supernet is not None:
        task, path = f"supernet/{level.name}", home.level_path(level, "supernet.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    entries = read_journal(home.path("training.jsonl"))
    rates = [entry.values["images_per_second"] for entry in entries if entry.task == task and entry.event == "step"]
    seconds = report["images"] / statistics.median(rates)
    return {"seconds": seconds, "images": report["images"], "budgets": report.get("budgets")}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| level | widths | top-1 | BitOps | ARD | same widths as on the target | seconds | images |", "|" + "---|" * 8]
    for one in rows:
        spread = "" if one["top1_std"] is None else f" ± {one['top1_std']:.2f}"
        lines.append(
            f"| {one['level']} | {one['method']} | {one['top1_mean']:.2f}{spread} | {one['bitops'] / 1e6:.1f} M | {one['ard']:.3f} | "
            f"{one['agreement']:.0%} | {one['seconds']:.0f} | {one['images']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("target", "sources"), help="score one half, and train nothing else")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    experiment = Experiment(arguments.out, arguments.data_root)
    if arguments.only != "sources" and not score(experiment, TARGET):
        raise SystemExit("Another process trains and measures on the target: wait for it.")
    if arguments.only == "sources":
        for method in SOURCES:
            score_source(experiment, method)
    if arguments.only:
        return
    methods = [UNIFORM, TARGET, *(method for method in SOURCES if score(experiment, method))]
    found = tune_all(experiment, methods, arguments.seeds)
    if len(methods) < 2 + len(SOURCES) or any(len(results) < len(arguments.seeds) for results in found.values()):
        raise SystemExit("Another process is still at work on the rest: run the same command again for the table.")
    levels = experiment.recipe(TARGET).levels
    rows = [row(experiment, level, method, found[level.name, method]) for level in levels for method in methods]
    print(table(rows))
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
