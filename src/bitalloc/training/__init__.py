"""Training of any PyTorch model: fit, evaluate, distil, batch-norm statistics, checkpoints. Knows nothing of quantization."""

from bitalloc.training.batchnorm import reestimate_batchnorm
from bitalloc.training.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore
from bitalloc.training.device import backward, device
from bitalloc.training.distil import distillation_loss
from bitalloc.training.engine import Engine
from bitalloc.training.evaluate import Top1, cross_entropy_loss, evaluate, predict
from bitalloc.training.fit import FitResult, fit
from bitalloc.training.modes import evaluating, training_modes
from bitalloc.training.optim import below_two_dimensions, drop_unused_gradients, sgd
from bitalloc.training.progress import LogProgress, Progress, RichProgress, Silent, make_progress
from bitalloc.training.scales import SGDWithScales, sgd_with_scales
from bitalloc.training.schedule import Constant, Schedule, WarmupCosine
from bitalloc.training.steps import LossFunction, Stateful, TrainStep, loss_step
from bitalloc.training.stream import BatchStream, RandomAccess

__all__ = [
    "fit", "FitResult", "Engine", "TrainStep", "Stateful", "LossFunction", "loss_step", "backward",
    "Schedule", "Constant", "WarmupCosine", "sgd", "SGDWithScales", "sgd_with_scales", "below_two_dimensions", "drop_unused_gradients",
    "cross_entropy_loss", "distillation_loss", "evaluate", "predict", "Top1", "reestimate_batchnorm",
    "Checkpoint", "CheckpointConfig", "CheckpointStore", "BatchStream", "RandomAccess",
    "Progress", "Silent", "RichProgress", "LogProgress", "make_progress",
    "device", "evaluating", "training_modes",
]  # fmt: skip
