"""Training on two processes (gloo, on the processor) gives what training in one process gives."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitalloc.errors import FileError
from bitalloc.training import CheckpointConfig, fit, loss_step, sgd


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


program, launch = module("two_ranks"), module("launch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    launch.run(Path(__file__).with_name("two_ranks.py"), folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def close(value: Any, expected: Any) -> None:
    """Equal but for the order of sums; nested."""
    if isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            close(value[key], expected[key])
    elif isinstance(expected, list) and expected and isinstance(expected[0], list):
        assert len(value) == len(expected)
        for each, other in zip(value, expected, strict=True):
            close(each, other)
    elif isinstance(expected, float) or (isinstance(expected, list) and expected and isinstance(expected[0], float)):
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected), rtol=2e-4, atol=2e-5)
    else:
        assert value == expected


def test_joint_training_gives_the_indicators_of_one_process(ranks: list[dict[str, Any]]) -> None:
    """The last batch of an epoch is a single image, so one rank has none of it."""
    alone = json.loads(json.dumps(program.measured()))
    assert ranks[0]["measured"] == ranks[1]["measured"]  # bit for bit: the ranks never drift apart
    assert len(alone["widths"]) == 10 * 4
    close(ranks[0]["measured"], alone)


def test_fine_tuning_and_evaluation_give_the_result_of_one_process(ranks: list[dict[str, Any]]) -> None:
    alone = json.loads(json.dumps(program.finetuned()))
    assert ranks[0]["finetuned"] == ranks[1]["finetuned"]
    assert alone["top1"][1] == program.IMAGES
    close(ranks[0]["finetuned"], alone)


def test_spread_weights_give_the_result_of_one_process(ranks: list[dict[str, Any]]) -> None:
    """Names and shapes of the state are those of one process."""
    alone = json.loads(json.dumps({"measured": program.measured(), "finetuned": program.finetuned()}))
    assert ranks[0]["spread"] == ranks[1]["spread"]
    close(ranks[0]["spread"], alone)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_resumed_run_of_two_ranks_ends_in_the_same_bits(ranks: list[dict[str, Any]], sharding: str, tmp_path: Path) -> None:
    found = [rank["interrupted"][sharding] for rank in ranks]
    assert found[0] == found[1]
    assert found[0]["resumed"] == found[0]["whole"]
    close(found[0]["whole"], json.loads(json.dumps(program.interrupted(tmp_path)["whole"])))


def test_ranks_that_calibrate_on_other_images_take_the_quantizers_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    """Zero points too, wherever the quantizers keep them: the outputs are the same."""
    assert ranks[0]["calibrated"] == ranks[1]["calibrated"]
    close(ranks[0]["calibrated"], json.loads(json.dumps(program.calibrated())))


def test_running_statistics_are_the_mean_over_ranks(ranks: list[dict[str, Any]]) -> None:
    """Each batch norm sees its rank's part; of 7 batches of 6 the mean of the halves' means is the whole batch's."""
    alone = program.normalised()
    assert ranks[0]["normalised"] == ranks[1]["normalised"]
    assert ranks[0]["normalised"]["images"] == alone["images"] == 42
    torch.testing.assert_close(torch.tensor(ranks[0]["normalised"]["mean"]), torch.tensor(alone["mean"]), rtol=1e-5, atol=1e-6)


def test_augmentation_differs_between_ranks_and_the_order_does_not_overlap(ranks: list[dict[str, Any]]) -> None:
    seen = [rank["augmented"]["seen"] for rank in ranks]
    for first, second in zip(*seen, strict=True):
        assert not set(first[0]) & set(second[0])
    assert [first[1] + second[1] for first, second in zip(*seen, strict=True)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ranks[0]["augmented"]["next"] == ranks[1]["augmented"]["next"]


def test_parts_are_as_many_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    """Weights that are spread are gathered in every pass; a rank that makes one more would wait for ever."""
    alone, found = program.in_parts(), [rank["in_parts"] for rank in ranks]
    assert found[0] == found[1]
    assert found[0]["hungry"]["parts"] == 2
    for kind in ("none", "full", "hungry"):
        close(found[0][kind]["losses"], list(alone[kind]["losses"]))


def test_a_journal_that_fails_on_rank_0_ends_the_run_on_all_with_the_cause(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["unwritten"] == "FileError: the disk is full"
    assert ranks[1]["unwritten"] == "TrainingError: rank 0 of 2 stopped: the disk is full"


def test_a_failure_on_one_rank_ends_the_run_on_all_with_the_cause(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["failing"] == {"error": "ValueError: no such colour", "calls": 3}
    assert ranks[0]["failing"] == {"error": "TrainingError: rank 1 of 2 stopped: no such colour", "calls": 3}


def test_a_checkpoint_of_another_number_of_ranks_is_refused(ranks: list[dict[str, Any]], folder: Path) -> None:
    model = program.network()
    config = CheckpointConfig(folder / "checkpoint", "the run")
    with pytest.raises(FileError, match="made by 2 processes, this run has one process: start it with as many as before"):
        fit(model, program.batches(), step=loss_step(program.LOSS), optimizer=sgd(model, 0.1), total_steps=3, checkpoint=config)
