"""A search on two processes (gloo, on the processor) gives what it gives in one process."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


program = module(Path(__file__).with_name("two_ranks.py"))
launch = module(Path(__file__).parents[1] / "training" / "launch.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("two_ranks")
    launch.run(Path(__file__).with_name("two_ranks.py"), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("job", program.JOBS, ids=lambda job: job.__name__)
def test_both_ranks_end_in_the_same_bits_with_the_result_of_one_process(ranks, job):
    """Losses, prices, draws, logits and weights. The last batch of an epoch is a single image, so one rank has none of it."""
    alone = json.loads(json.dumps(job()))
    assert ranks[0][job.__name__] == ranks[1][job.__name__]
    torch.testing.assert_close(ranks[0][job.__name__], alone, rtol=2e-4, atol=2e-5)  # but for the order of sums


def test_a_single_path_is_drawn_anew_in_every_step(ranks):
    """The same on both ranks, as the shares are compared above."""
    draws = [[row.index(1.0) for row in shares] for shares in ranks[1]["single_path"]["shares"]]
    assert len(draws) == program.STEPS + 1  # one more before the training
    assert len({tuple(draw) for draw in draws}) > program.STEPS // 2


def test_the_attribution_term_is_in_what_the_ranks_learned(ranks):
    plain = json.loads(json.dumps(program.search(program.plain)))
    found, without = (result["log_probabilities"]["weight"]["2"]["6"] for result in (ranks[0]["gmpq"], plain))
    assert abs(found - without) > 10 * 2e-4 * abs(without)
