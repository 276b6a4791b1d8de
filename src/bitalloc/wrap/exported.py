"""Describes an exported programme."""

from typing import Any

import torch

from bitalloc.errors import DescribeError
from bitalloc.layers import Description
from bitalloc.wrap.describe import arguments_of, batch_size, description_of
from bitalloc.wrap.replay import replay
from bitalloc.wrap.trace import tensors_in


def describe_exported(program: torch.export.ExportedProgram, example_inputs: Any = None) -> Description:
    """The description of an exported programme, such as a ``.pt2`` file that ``torch.export.load`` read.

    It is what :func:`~bitalloc.wrap.describe.describe` gives for the model that was exported, with the names that modules and parameters
    had there; a module that the programme no longer mentions is not listed.

    Args:
        program: the programme; export the model in evaluation mode.
        example_inputs: as in :func:`~bitalloc.wrap.describe.describe`; by default those that the programme was exported with.

    Raises:
        DescribeError: there are no example inputs, the programme does not run on them, or there is no layer.
    """
    args, kwargs = _example_of(program) if example_inputs is None else arguments_of(example_inputs)
    inputs = list(tensors_in((args, kwargs)))
    batch = batch_size(inputs, args)
    try:
        found = replay(program, args, kwargs)
    except Exception as error:
        raise DescribeError(
            f"the exported programme failed on its example input: {type(error).__name__}: {error}. "
            "Give inputs of the shapes it was exported with."
        ) from error
    return description_of(found, batch, "the exported programme")


def _example_of(program: torch.export.ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if program.example_inputs is None:
        raise DescribeError("the exported programme holds no example inputs: give some.")
    args, kwargs = program.example_inputs
    return tuple(args), dict(kwargs)
