"""HiGHS, set up for reproducible answers and stoppable."""

import math
import time
from typing import Final

import highspy

_TOLERANCE: Final = 1e-9


def configured(gap: float, deadline: float) -> highspy.Highs:
    """HiGHS with our tolerances, silent, until ``deadline`` (of ``time.perf_counter``) at most."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    options: dict[str, bool | int | float | str] = {
        "output_flag": False,
        # Not `threads = 1`: that is a setting of the whole process, refused once anybody has solved with another number.
        "parallel": "off",
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": _TOLERANCE,
        "primal_feasibility_tolerance": _TOLERANCE,
        "dual_feasibility_tolerance": _TOLERANCE,
        # The default drops coefficients below 1e-9, which a small layer under a large budget can have.
        "small_matrix_value": 1e-12,
    }
    if deadline < math.inf:
        options["time_limit"] = max(deadline - time.perf_counter(), 0.0)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    return solver


def finish(solver: highspy.Highs) -> None:
    """Runs the solver in its own thread, so that Ctrl-C stops it and comes through."""
    solver.HandleUserInterrupt = True
    thread = solver.startSolve()
    try:
        while not solver.wait(0.1)[0]:
            pass
    except KeyboardInterrupt:
        solver.cancelSolve()  # type: ignore[no-untyped-call]
        thread.join()
        raise
