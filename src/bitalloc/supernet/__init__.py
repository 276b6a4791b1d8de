"""Differentiable search: a supernet of mixtures, its expected cost, and the controller that steers it to the budgets."""

from bitalloc.supernet.choice import WidthChoice, draw, entropy, is_architecture_logit
from bitalloc.supernet.controller import Controller, DualAscent, FixedLambda, Reading
from bitalloc.supernet.expectation import ExpectedBits, ExpectedCost, expected_bits, expected_cost
from bitalloc.supernet.fill import fillings
from bitalloc.supernet.log_probabilities import LogProbabilities
from bitalloc.supernet.prepare import SupernetSettings, prepare_supernet
from bitalloc.supernet.relaxation import GumbelSoftmax, Relaxation, SinglePath, Softmax
from bitalloc.supernet.search import SupernetResult, supernet_search
from bitalloc.supernet.settings import SearchSettings
from bitalloc.supernet.trace import Trace

__all__ = [
    "Controller",
    "DualAscent",
    "ExpectedBits",
    "ExpectedCost",
    "FixedLambda",
    "GumbelSoftmax",
    "LogProbabilities",
    "Reading",
    "Relaxation",
    "SearchSettings",
    "SinglePath",
    "Softmax",
    "SupernetResult",
    "SupernetSettings",
    "Trace",
    "WidthChoice",
    "draw",
    "entropy",
    "expected_bits",
    "expected_cost",
    "fillings",
    "is_architecture_logit",
    "prepare_supernet",
    "supernet_search",
]
