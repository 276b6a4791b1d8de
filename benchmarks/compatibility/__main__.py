"""Runs the sweep.

    python -m benchmarks.compatibility [PATTERN ...] [--json FILE] [--markdown FILE] [--strict] [--timeout 120]

Every model runs in a process of its own on one thread, forked after the libraries are imported (Linux, macOS).
"""

import argparse
import multiprocessing
import sys
import time
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.compatibility.cases import Case
from benchmarks.compatibility.results import Outcome, Result, as_json, as_markdown, summary
from benchmarks.compatibility.torchvision_ops import provide_torchvision_operators


def all_cases() -> list[Case]:
    from benchmarks.compatibility import timm_models, torchvision_models, transformers_models

    return [*torchvision_models.cases(), *timm_models.cases(), *transformers_models.cases()]


def run(case: Case) -> Result:
    """All checks of one model, in this process; an error is the reason of the check it happened in."""
    from benchmarks.compatibility.checks import CHECKS
    from benchmarks.compatibility.subject import Failed, subject

    start = time.perf_counter()
    try:
        tested = subject(case)
    except Exception as error:
        return Result(case.name, {}, {"error": f"the model could not be built: {error!r}"}, time.perf_counter() - start)
    outcomes = {}
    for name, check in CHECKS.items():
        begun, reason = time.perf_counter(), ""
        try:
            check(tested)
        except Failed as failed:
            reason = str(failed)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        outcomes[name] = Outcome(not reason, reason, time.perf_counter() - begun)
    return Result(case.name, outcomes, tested.facts, time.perf_counter() - start)


def run_apart(case: Case, timeout: float) -> Result:
    """Like :func:`run` in a forked process, so that a crash or an endless loop is the result of one model only."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(case, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return Result(case.name, {}, {"error": f"not finished after {timeout:g} seconds"}, timeout)
        result: Result = receiver.recv()
        return result
    except EOFError:
        process.join()
        return Result(case.name, {}, {"error": f"the process ended with exit code {process.exitcode}"}, 0.0)
    finally:
        process.kill()
        process.join()


def _send(case: Case, sender: Connection) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sender.send(run(case))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compatibility", description="Runs bitalloc on many models.")
    parser.add_argument("patterns", nargs="*", default=["*"], help="models, for example 'timm/*' (default: all)")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--markdown", type=Path, help="write the table into this page, between its markers, or as a new file")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if any check fails")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one model")
    arguments = parser.parse_args()
    provide_torchvision_operators()
    import timm  # noqa: F401
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    import benchmarks.compatibility.checks  # noqa: F401

    results = []
    for case in all_cases():
        if any(fnmatchcase(case.name, pattern) for pattern in arguments.patterns):
            results.append(run_apart(case, arguments.timeout))
            print(results[-1].line(), flush=True)
    print(summary(results))
    if arguments.json:
        arguments.json.write_text(as_json(results))
    if arguments.markdown:
        as_markdown(results, arguments.markdown)
    sys.exit(arguments.strict and not all(result.green for result in results))


if __name__ == "__main__":
    main()
