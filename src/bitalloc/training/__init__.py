"""Training of any PyTorch model: fit, evaluate, distil, batch-norm statistics, checkpoints. Knows nothing of quantization."""

from bitalloc.training.allocator import keep_freed_memory
from bitalloc.training.batchnorm import reestimate_batchnorm
from bitalloc.training.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore, Retry
from bitalloc.training.device import backward, device
from bitalloc.training.distil import distillation_loss
from bitalloc.training.engine import Engine
from bitalloc.training.evaluate import Top1, cross_entropy_loss, evaluate, predict
from bitalloc.training.fit import FitResult, fit
from bitalloc.training.guards import DivergenceError
from bitalloc.training.journal import Entry, Journal, Journals, JsonLines, NamedJournal, NoJournal, read_journal
from bitalloc.training.modes import evaluating, training_modes
from bitalloc.training.optim import below_two_dimensions, drop_unused_gradients, sgd
from bitalloc.training.progress import LogProgress, Progress, RichProgress, Silent, make_progress
from bitalloc.training.ranks import is_main, rank, world_size
from bitalloc.training.reduction import agree_on_model
from bitalloc.training.scales import SGDWithScales, sgd_with_scales
from bitalloc.training.schedule import Constant, Schedule, StepDecay, WarmupCosine
from bitalloc.training.shares import Divisible
from bitalloc.training.steps import LossFunction, Stateful, TrainStep, learn, loss_step
from bitalloc.training.stream import BatchStream, RandomAccess
from bitalloc.training.trackers import open_trackers

__all__ = [
    "fit", "FitResult", "Retry", "DivergenceError", "Engine", "TrainStep", "Stateful", "LossFunction", "loss_step", "learn", "backward",
    "Schedule", "Constant", "StepDecay", "WarmupCosine", "sgd", "SGDWithScales", "sgd_with_scales", "below_two_dimensions",
    "drop_unused_gradients",
    "cross_entropy_loss", "distillation_loss", "evaluate", "predict", "Top1", "reestimate_batchnorm",
    "Checkpoint", "CheckpointConfig", "CheckpointStore", "BatchStream", "RandomAccess",
    "rank", "world_size", "is_main", "agree_on_model", "Divisible",
    "Journal", "NoJournal", "JsonLines", "Journals", "NamedJournal", "Entry", "read_journal", "open_trackers",
    "Progress", "Silent", "RichProgress", "LogProgress", "make_progress",
    "device", "keep_freed_memory", "evaluating", "training_modes",
]  # fmt: skip
