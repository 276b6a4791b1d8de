"""Images a second of W4A4 fine-tuning through ``bitalloc.training.fit``: by engine option, and by number of processes.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py [--network resnet20] [--rounds 3]

prints a table of the engine's options. Every number is from processes of its own, the options in turn. On the processor or, where there is
one, on a CUDA device for each process; ``ACCELERATE_USE_CPU=1`` forces the processor.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys

STEPS = 6
OPTIONS: dict[str, dict[str, str | bool]] = {
    "as it is": {},
    "keep_freed_memory": {"keep_freed_memory": True},
    "and channels_last": {"keep_freed_memory": True, "channels_last": True},
    "and compile": {"keep_freed_memory": True, "channels_last": True, "compile": True},
    "and bfloat16, not compiled": {"keep_freed_memory": True, "channels_last": True, "precision": "bfloat16"},
}


def in_turn(network: str, sides: dict[str, tuple[dict[str, str | bool], int]], rounds: int) -> dict[str, float]:
    """The median images a second of each side, an engine and a number of processes with one thread each."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (engine, processes) in sides.items():
            found[name].append(images_a_second(network, engine, processes))
    return {name: statistics.median(values) for name, values in found.items()}


def images_a_second(network: str, engine: dict[str, str | bool], processes: int) -> float:
    """One measurement."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    command = [sys.executable, __file__, "--work", "--network", network, "--engine", json.dumps(engine)]
    ranks = [{**shared, **({**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})} for rank in range(processes)]
    running = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for variables in ranks]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"the measurement of {engine} in {processes} processes failed")
    return float(printed[0])


def work(network: str, engine: dict[str, str | bool]) -> None:
    """One process: two steps to warm up, then the measured ones."""
    from step_cost import sides

    from bitalloc.training import Engine, cross_entropy_loss, fit, loss_step, sgd

    models, batch = sides(network)
    optimizer = sgd(models["fine-tuning"], 0.01)
    options = {"step": loss_step(cross_entropy_loss()), "optimizer": optimizer, "engine": Engine(**engine)}  # type: ignore[arg-type]
    for steps in (2, STEPS):
        result = fit(models["fine-tuning"], [batch], total_steps=steps, **options)  # type: ignore[arg-type]
    print(result.images / result.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--network", default="resnet20", choices=("resnet20", "resnet18"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.network, arguments.engine)
        return
    rates = in_turn(arguments.network, {name: (engine, 1) for name, engine in OPTIONS.items()}, arguments.rounds)
    for name, rate in rates.items():
        print(f"{name:28} {rate:8.1f} images/s {rate / rates['as it is']:6.2f}")


if __name__ == "__main__":
    main()
