"""What a step of the differentiable search costs: time and peak memory over a plain fine-tuning step of the same network.

    OMP_NUM_THREADS=1 python benchmarks/supernet.py [--steps 5] [--batch-size 128] [--json FILE]

ResNet-20 on random 32 x 32 images, float32. The plain side is quantization-aware training at one width (LSQ, w4a4); the others are
supernets of 3 and 4 candidates a side, with LSQ and the PACT pair, and the one of 4 in plain composed operations, which keeps every
branch until the backward pass. All of these learn from cross-entropy, as EdMIPS does; ``gmpq`` is the PACT pair with the published
attribution loss too: Grad-CAM of the supernet, which is differentiated again, and of the float network.

The sides run in turn, medians. Memory is the peak that a step allocates beyond what was there before, by PyTorch's profiler on the
processor and by its allocator on a GPU.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from measuring import median_seconds, peak_bytes
from torch import nn
from torch.nn import functional

import bitalloc.supernet.mixture as mixture_module
from bitalloc import BitOps, Budget, Policy, describe, first_last_pins, quantize, search_space
from bitalloc.attribution import AttributionLoss, CapacityAwarePower, GradCAM, PowerRanking
from bitalloc.models import resnet20
from bitalloc.policy import Bits
from bitalloc.supernet import DualAscent, SearchSettings, SupernetSettings, expected_bits, prepare_supernet
from bitalloc.supernet.blend import composed
from bitalloc.supernet.prepare import QuantizerPair
from bitalloc.supernet.step import SearchStep
from bitalloc.training import LossFunction, cross_entropy_loss, device, loss_step
from bitalloc.wrap import calibrate

CANDIDATES = {3: (4, 3, 2), 4: (6, 4, 3, 2)}


def step_of(model: nn.Module, step: Callable[[nn.Module, object], float], batch: object) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9)
    if isinstance(step, SearchStep):
        optimizer.register_step_pre_hook(step.steer)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        step(model, batch)
        optimizer.step()

    return run


def supernet_step(
    model: nn.Module,
    candidates: tuple[int, ...],
    pair: QuantizerPair,
    batch: tuple[torch.Tensor, torch.Tensor],
    loss: LossFunction | None = None,
) -> Callable[[], None]:
    description = describe(model, batch[0][:1].cpu())
    space = search_space(description, candidates, pins=first_last_pins(description))
    supernet = prepare_supernet(model, space, description, SupernetSettings(pair=pair))
    calibrate(supernet, [batch])
    supernet.to(device()).train()
    table = BitOps().table(description.layers, space)
    budget = Budget("bitops", table.total(space.uniform(Bits(3, 3))), table)
    search = SearchStep(supernet, [budget], loss or cross_entropy_loss(), DualAscent(), 1000, SearchSettings().logit_clip)
    return step_of(supernet, search, batch)


def gmpq_loss(teacher: nn.Module) -> LossFunction:
    ranking = PowerRanking(CapacityAwarePower(lambda supernet: expected_bits(supernet).values()))
    return AttributionLoss(teacher, GradCAM(), ranking).with_task(lambda logits, batch: functional.cross_entropy(logits, batch[1]))


def plain_step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], None]:
    description = describe(model, batch[0][:1].cpu())
    policy = Policy.uniform(description.layers, Bits(4, 4), first_last_pins(description))
    quantized = quantize(model, policy, calibration=[batch]).to(device()).train()
    return step_of(quantized, loss_step(cross_entropy_loss()), batch)


def in_plain_operations(run: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        recomputing = mixture_module.blend
        mixture_module.blend = lambda x, shares, branch, widths, parameters, sparse: composed(x, shares, branch, widths)
        try:
            run()
        finally:
            mixture_module.blend = recomputing

    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, where = resnet20(), device()
    batch = (torch.randn(arguments.batch_size, 3, 32, 32).to(where), torch.randint(10, (arguments.batch_size,)).to(where))
    model.to(where)
    runs = {"plain": plain_step(model, batch)}
    for count, candidates in CANDIDATES.items():
        runs |= {f"{pair}_{count}": supernet_step(model, candidates, pair, batch) for pair in get_args(QuantizerPair)}
        runs[f"gmpq_{count}"] = supernet_step(model, candidates, "pact", batch, gmpq_loss(model))
    runs["lsq_4_composed"] = in_plain_operations(supernet_step(model, CANDIDATES[4], "lsq", batch))
    seconds = median_seconds(runs, arguments.steps)
    memory = {name: peak_bytes(run) for name, run in runs.items()}
    report: dict[str, float] = {}
    print(f"{where}, {torch.get_num_threads()} threads, batches of {arguments.batch_size}, median of {arguments.steps} steps")
    for name in runs:
        print(f"{name:16} {1e3 * seconds[name]:9.1f} ms   {memory[name] / 2**20:8.1f} MiB")
        if name != "plain":
            report[f"{name}_over_plain_time"] = seconds[name] / seconds["plain"]
            report[f"{name}_over_plain_memory"] = memory[name] / memory["plain"]
    for name, value in report.items():
        print(f"{name:32} {value:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
