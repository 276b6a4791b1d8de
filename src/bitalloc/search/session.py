"""One run of HiGHS on one integer programme."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import highspy

from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search.programme import Programme

_TOLERANCE: Final = 1e-9
_CHOSEN: Final = 0.5
"""A binary column above this is 1: HiGHS returns values within its tolerance of 0 and 1."""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What HiGHS found.

    Attributes:
        bits: the best assignment found, ``None`` if there is none or none was found in time.
        bound: no assignment of the programme has a lower score, in the score's own unit.
        complete: the search ended by itself, not by the time limit.
        infeasible: it is proven that there is no assignment.
    """

    bits: Mapping[str, Bits] | None
    bound: float
    complete: bool
    infeasible: bool


def run(programme: Programme, gap: float, deadline: float) -> Answer:
    """Solves ``programme`` to the relative gap ``gap``, until ``deadline`` (of ``time.perf_counter``) at most.

    Raises:
        BitallocError: HiGHS refused the programme or stopped for another reason than its end or the time limit.
    """
    solver = configured(gap, deadline)
    if solver.passModel(_model(programme)) == highspy.HighsStatus.kError:
        raise BitallocError("HiGHS refused the integer programme: the scores or the budgets differ by too many orders of magnitude.")
    finish(solver)
    if solver.getModelStatus() == highspy.HighsModelStatus.kSolveError:  # what presolve made of scores of 1e8 beside ones below 1
        solver.setOptionValue("presolve", "off")
        finish(solver)
    status = solver.getModelStatus()
    if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kTimeLimit):
        raise BitallocError(f"HiGHS stopped with the status {solver.modelStatusToString(status)!r}: check the scores and the budgets.")
    info = solver.getInfo()
    bits: Mapping[str, Bits] | None = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        values = solver.getSolution().col_value[: len(programme.columns)]
        bits = {name: choice for (name, choice), value in zip(programme.columns, values, strict=True) if value > _CHOSEN}
    # Where HiGHS was stopped before it had a bound: no layer can be better than at its best choice.
    bound = max(info.mip_dual_bound, programme.offset) * programme.scale
    complete = status != highspy.HighsModelStatus.kTimeLimit
    return Answer(bits, bound, complete, status == highspy.HighsModelStatus.kInfeasible)


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


def _model(programme: Programme) -> highspy.HighsLp:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(programme.columns) + programme.switches, len(programme.rows)
    lp.offset_ = programme.offset
    lp.col_cost_ = [*programme.objective, *[0.0] * programme.switches]
    lp.col_lower_ = [0.0] * lp.num_col_
    lp.col_upper_ = [*(1.0 if usable else 0.0 for usable in programme.open), *[1.0] * programme.switches]
    lp.integrality_ = [highspy.HighsVarType.kInteger] * lp.num_col_
    lp.row_lower_ = [row.lower for row in programme.rows]
    lp.row_upper_ = [row.upper for row in programme.rows]
    matrix = lp.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = lp.num_col_, lp.num_row_
    starts = [0]
    for row in programme.rows:
        starts.append(starts[-1] + len(row.coefficients))
    matrix.start_ = starts
    matrix.index_ = [i for row in programme.rows for i in row.coefficients]
    matrix.value_ = [value for row in programme.rows for value in row.coefficients.values()]
    return lp
