"""What quantization-aware training costs, as ratios to something measured in the same run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--repeats 15] [--steps 7] [--rounds 3] [--json FILE]

Fake quantization over ``relu`` and over plain operations; a W4A4 fine-tuning step over a float step; a joint step over six float steps,
and the published code's over ours; bfloat16 over float32, and two processes over one, in images a second. Medians, the sides in turn.
With a CUDA device the figures of the device have the suffix ``_cuda``, and those of the processor come from a process of its own.
``two_process_speedup_cuda`` needs two devices, one a process, and is left out with a single one, which two processes would only share.
Measure on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fake_quantize_cost
import published_step
import step_cost
import throughput
import torch
from measuring import median_seconds

from bitalloc.training import device, keep_freed_memory
from bitalloc.training.engine import emulates_bfloat16


def figures(repeats: int, steps: int, rounds: int) -> dict[str, float]:
    print(f"{device()}, {torch.get_num_threads()} threads", flush=True)
    keep_freed_memory()  # as `bitalloc run` does; all sides have it
    report = fake_quantize_cost.figures(repeats)
    report |= step_cost.figures(steps)
    joint = median_seconds(published_step.joint_steps(published_step.random_batch(128)), steps)
    print("joint step: " + ", ".join(f"{name} {value:.3f} s" for name, value in joint.items()), flush=True)
    report |= published_step.ratios(joint)
    return report | _rates(rounds)


def _rates(rounds: int) -> dict[str, float]:
    kept: dict[str, str | bool] = {"keep_freed_memory": True, "channels_last": True}
    emulated = emulates_bfloat16(device())
    sides: dict[str, tuple[dict[str, str | bool], int]] = {"float32": (kept, 1), "bfloat16": ({**kept, "precision": "bfloat16"}, 1)}
    rates = throughput.in_turn("resnet18", sides, 1 if emulated else rounds)
    told = f", which this {'GPU' if device().type == 'cuda' else 'processor'} emulates" if emulated else ""
    print(f"resnet18: {rates['float32']:.1f} images/s, {rates['bfloat16']:.1f} in bfloat16{told}", flush=True)
    report = {"bf16_over_fp32_images": rates["bfloat16"] / rates["float32"]}
    if device().type == "cuda" and torch.cuda.device_count() < 2:
        return report
    processes = throughput.in_turn("resnet20", {"one": ({"keep_freed_memory": True}, 1), "two": ({"keep_freed_memory": True}, 2)}, rounds)
    print(f"resnet20: {processes['one']:.1f} images/s in one process, {processes['two']:.1f} in two", flush=True)
    return {**report, "two_process_speedup": processes["two"] / processes["one"]}


def _on_the_processor() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "figures.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--json", str(path)]
        subprocess.run(command, check=True, env={**os.environ, "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""})
        found: dict[str, float] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15, help="passes over one tensor")
    parser.add_argument("--steps", type=int, default=7, help="training steps of each side")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = figures(arguments.repeats, arguments.steps, arguments.rounds)
    if device().type == "cuda":
        report = {**_on_the_processor(), **{f"{name}_cuda": value for name, value in report.items()}}
    for name, value in report.items():
        print(f"{name:32} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
