"""Going back to the last good checkpoint, and on at a lower learning rate, when a training diverges."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import final

import torch

from bitalloc.placement import to_device
from bitalloc.training.checkpoint import Retry
from bitalloc.training.guards import DivergenceError
from bitalloc.training.run import Run, Saver

_log = logging.getLogger(__name__)


@final
class Recovery:
    """Takes a run back when it diverges, as often as the engine allows.

    The state that it goes back to is the last checkpoint that is whole; before there is one, a copy of the start held in memory. It is
    saved again at once, with the retry in it, so a run that is killed afterwards keeps the lower rate.

    Args:
        run: at its start, or resumed.
        saver: of that run.
    """

    def __init__(self, run: Run, saver: Saver) -> None:
        self._run, self._saver = run, saver
        # A copy, as a snapshot holds the tensors of the model itself; in main memory, where there is more of it.
        self._start = deepcopy(to_device(run.snapshot(), torch.device("cpu"))) if run.engine.retries and not saver.has_saved else None

    def go_back(self, error: DivergenceError) -> int:
        """Takes the run back and lowers its rate; gives the number of steps that are to be done again.

        Raises:
            DivergenceError: there is no retry left; it tells what was tried.
        """
        run = self._run
        if len(run.retries) >= run.engine.retries:
            raise DivergenceError(f"{error}{_history(run.retries)}", error.step) from error
        done, started = run.done, run.started
        saved = self._saver.last() or deepcopy(self._start)
        assert saved is not None
        retries = (*run.retries, Retry(error.step, saved.step, run.rate * run.engine.retry_rate, str(error)))
        run.restore(saved)
        run.retries, run.started = retries, started
        self._saver.save(again=True)
        _log.warning(
            "%s Retry %d of %d: back to step %d, learning rate times %.4g.", error, len(retries), run.engine.retries, run.done, run.rate
        )
        return done - run.done


def _history(retries: Sequence[Retry]) -> str:
    if not retries:
        return ""
    before = [1.0, *(retry.rate for retry in retries)]
    tried = "; ".join(
        f"step {retry.step} at {rate:.4g} of the learning rate, back to step {retry.back_to}"
        for retry, rate in zip(retries, before, strict=False)
    )
    return f" It failed before: {tried}; this time at {before[-1]:.4g} of the learning rate. No retry is left (engine.retries)."
