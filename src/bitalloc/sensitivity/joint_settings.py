"""The options of LIMPQ's joint training."""

from dataclasses import dataclass, field

from bitalloc.wrap import QuantizerSettings


@dataclass(frozen=True, slots=True)
class JointSettings:
    """How the joint training runs; the defaults are the published ones.

    Attributes:
        learning_rate: of SGD, annealed by a cosine to ``final_learning_rate``.
        final_learning_rate: at the last step.
        momentum: of SGD.
        weight_decay: of weights; step sizes, biases and batch norms have none, so that the decay does not bias the indicators.
        step_size_rate: largest share by which a step size changes in one optimiser step, see
            :class:`~bitalloc.training.SGDWithScales`. 0 trains step sizes by SGD like the weights, as published; the steps of
            wide weights then are unstable on small data and those of activations hardly leave their start (``docs/results.md``).
        clip_value: every gradient value is clipped to plus and minus this, after the passes are summed.
        self_distillation: the widest pass learns from the loss, the others from its detached soft output. Off as published.
        freeze_weights: only step sizes and batch norms learn.
        pinned_in_float: layers without a choice run in floating point meanwhile, as published.
        widths_per_step: how many of the uniform passes a step does, drawn at random, each with its loss scaled up so that the expected
            gradient is that of all; the mixed pass is done always. None, the default, does all, as published.
        share_stem: compute the layers in front of the first one with a choice once a step instead of once a pass, see
            :class:`~bitalloc.sensitivity.shared_stem.SharedStem`. The gradients are the same; batch norms there update their running
            statistics once a step. Switch it off for a loss function that differentiates with respect to these layers by itself.
        quantizers: see :class:`~bitalloc.wrap.QuantizerSettings`.
        seed: of the drawn widths; set before training starts.
    """

    learning_rate: float = 0.01
    final_learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 2.5e-5
    step_size_rate: float = 0.01
    clip_value: float = 1.0
    self_distillation: bool = False
    freeze_weights: bool = False
    pinned_in_float: bool = True
    widths_per_step: int | None = None
    share_stem: bool = True
    quantizers: QuantizerSettings = field(default_factory=QuantizerSettings)
    seed: int = 0
