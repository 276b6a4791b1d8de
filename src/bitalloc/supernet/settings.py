"""The options of a differentiable search."""

from dataclasses import asdict, dataclass, field
from typing import Any

from bitalloc.errors import TrainingError
from bitalloc.supernet.prepare import SupernetSettings


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How a supernet is trained; the defaults are the published ones of GMPQ (arXiv 2108.02720, section 4.1) unless said otherwise.

    Attributes:
        learning_rate: of SGD for weights, biases and batch norms.
        logit_rate: of SGD for the architecture logits, which have no weight decay.
        momentum: of both.
        weight_decay: of parameters with two dimensions and more.
        decay_after: the rates fall by ``decay`` after each such share of the search; published every 10 of 25 epochs.
        decay: factor.
        scale_rate: largest share by which a step size or a clipping range changes in one step, see
            :class:`~bitalloc.training.SGDWithScales`; not published. 0 trains them by SGD at ``learning_rate``, as published.
        logit_clip: largest 2-norm of the loss's gradient of one logit vector. Usual ones are around 0.01, but a drawn network that
            fails can give ten, and one such step decides for good. Not published.
        supernet: see :class:`SupernetSettings`.
        seed: of the draws; set before training starts.
    """

    learning_rate: float = 0.1
    logit_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_after: float = 0.4
    decay: float = 0.1
    scale_rate: float = 0.01
    logit_clip: float = 1.0
    supernet: SupernetSettings = field(default_factory=SupernetSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.logit_clip > 0 or not 0 < self.decay_after <= 1 or not 0 <= self.momentum < 1:
            raise TrainingError(
                f"logit_clip is {self.logit_clip}, decay_after {self.decay_after}, momentum {self.momentum}; expected a positive number, "
                "a share of the search above 0, and a number from 0 to below 1."
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "supernet": self.supernet.to_json()}
