"""A model under test, and what is read from its output."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from benchmarks.compatibility.cases import Case, call
from bitalloc import Bits, Description, Policy, quantize


class Failed(Exception):
    """A check that came to its end and did not hold."""


@dataclass(slots=True)
class Subject:
    """A model under test, and what earlier checks found of it.

    Attributes:
        model: the float model, in evaluation mode.
        inputs: the example input.
        training: the input of a training step.
        description: from the first check.
        facts: numbers for the report.
    """

    model: nn.Module
    inputs: Any
    training: Any
    description: Description | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def described(self) -> Description:
        """The description; a check that needs it fails without."""
        if self.description is None:
            raise Failed("the model could not be described")
        return self.description

    def quantized(self, policy: Policy) -> nn.Module:
        """The model quantized as ``policy`` says, calibrated on the example input."""
        return quantize(self.model, policy, calibration=[self.inputs], forward=call)

    def uniform(self, bits: Bits) -> Policy:
        """The same widths everywhere."""
        return Policy.uniform(self.described.layers, bits, not_counted=[entry.name for entry in self.described.not_counted])


def subject(case: Case) -> Subject:
    """Builds the model as if it had been trained.

    No branch is silent, though many start with zeros in a layer scale or the last layer, and batch norms know the statistics of their
    inputs: else a quantizer that is calibrated in evaluation mode meets other tensors in training.
    """
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs()
    training = case.training_inputs() if case.training_inputs else inputs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.momentum is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            call(model.train(), training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return Subject(model.eval(), inputs, training)


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and mappings, which the outputs of transformers are too."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
