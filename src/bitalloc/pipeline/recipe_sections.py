"""The sections of a recipe, one class each."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from bitalloc.coupling import Coupling
from bitalloc.pipeline.recipe_types import BitsText, EntryPoint, Section, Width, Widths, matching

SectionT = TypeVar("SectionT", bound=Section)


def _check_warmup(section: SectionT, warmup_epochs: float, epochs: float) -> SectionT:
    if epochs and warmup_epochs > epochs:
        raise ValueError(f"warmup_epochs {warmup_epochs} is more than epochs {epochs}: set a shorter warm-up")
    return section


class FloatSection(Section):
    """Where the float model comes from: given weights, training, or both in this order.

    Attributes:
        weights: safetensors or ``.pt`` file with a state dict, relative to the data root or absolute; empty for a new network.
        epochs: epochs of float training (or fine-tuning of the given weights); 0 keeps the weights as they are.
        learning_rate: of SGD with momentum 0.9 after warm-up, annealed to 0 by a cosine.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of weights; biases and normalisations have none.
        label_smoothing: of the cross-entropy.
    """

    weights: str = ""
    epochs: float = Field(default=0, ge=0)
    learning_rate: float = Field(default=0.1, gt=0)
    warmup_epochs: float = Field(default=0, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        return _check_warmup(self, self.warmup_epochs, self.epochs)


class SpaceSection(Section):
    """Candidate widths and what is not searched.

    Attributes:
        weight: candidate weight widths.
        act: candidate activation widths; the weight candidates when left out.
        first_last: widths of the first and last layers, ``w8a8`` as published; empty to search them like the others.
        first_last_candidates: widths to search for the first and last layers; by default they are pinned at ``first_last``. The uniform
            policy, and a budget written like one, keep them at ``first_last`` all the same.
        first_act: width of the network's input where it differs from ``first_last``; 32 leaves the input in floating point.
        pins: layer pattern to widths.
        include: patterns of the layers to quantize.
        exclude: patterns of layers left in floating point.
        coupling: which layers share a width or a quantizer: ``strict``, ``shared-input`` or ``free``, see :func:`bitalloc.couple`.
        fused_qkv: one weight width for the Q, K and V projections of an attention; by default only if ``strict``.
        depthwise_pointwise: the same widths for a depthwise convolution and the pointwise one after it.
        allowed_pairs: pairs of widths that the hardware has; all by default. Pins are not restricted by them.
        minimum: layer pattern to the fewest bits that it may get.
        max_widths: at most that many different weight widths, and activation widths, in the whole network; no limit by default.
    """

    weight: Widths = Field(default=(6, 5, 4, 3, 2), min_length=1)
    act: Widths | None = Field(default=None, min_length=1)
    first_last: Literal[""] | BitsText = "w8a8"
    first_last_candidates: Widths = ()
    first_act: Width | None = None
    pins: dict[str, BitsText] = Field(default_factory=dict)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    coupling: Coupling = "shared-input"
    fused_qkv: bool | None = None
    depthwise_pointwise: bool = False
    allowed_pairs: tuple[BitsText, ...] | None = Field(default=None, min_length=1)
    minimum: dict[str, BitsText] = Field(default_factory=dict)
    max_widths: int | None = Field(default=None, ge=1)


class QuantizerSection(Section):
    """See :class:`bitalloc.wrap.QuantizerSettings`."""

    per_channel: bool = False
    act_gradient: Literal["features", "batch"] = "features"
    act_grids: dict[str, Literal["auto", "unsigned", "signed", "asymmetric"]] = Field(default_factory=dict)


class MeasureSection(Section):
    """The joint training, see :class:`bitalloc.sensitivity.JointSettings`, and what is read out of it.

    Attributes:
        metric: ``limpq`` takes the learned step sizes as importance, as published; ``divergence`` narrows one layer of the jointly
            trained network at a time and measures how far its output moves, ``attribution`` how far the order of what it looks at does.
        epochs: epochs over the chosen part of the data; fractions are allowed; 0 reads the initial step sizes.
        fraction: share of the batches of each epoch that is used; ``epochs`` counts epochs of this share.
        widths_per_step: how many of the candidate widths a step trains, drawn at random; ``all`` as published.
        share_stem: compute the layers in front of the first one with a choice once a step instead of once a width.
        alpha: weight of the weights' half in the score; ``auto`` balances the halves.
        projection: how a non-monotone indicator is treated: ``isotonic`` (default), ``erase`` as published, or ``none``.
    """

    metric: Literal["limpq", "divergence", "attribution"] = "limpq"
    epochs: float = Field(default=3, ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    learning_rate: float = Field(default=0.01, gt=0)
    final_learning_rate: float = Field(default=1e-5, ge=0)
    step_size_rate: float = Field(default=0.01, ge=0, lt=1)
    weight_decay: float = Field(default=2.5e-5, ge=0)
    clip_value: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    self_distillation: bool = False
    freeze_weights: bool = False
    pinned_in_float: bool = True
    widths_per_step: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    share_stem: bool = True
    alpha: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    projection: Literal["isotonic", "erase", "none"] = "isotonic"

    @model_validator(mode="after")
    def _anneals(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(f"final_learning_rate {self.final_learning_rate} is above learning_rate {self.learning_rate}")
        return self


class SupernetSection(Section):
    """A differentiable search in the place of the joint training, see :class:`bitalloc.supernet.SearchSettings`; one for every level.

    Attributes:
        method: ``gmpq`` keeps the order of what the float model looks at, ``edmips`` does not.
        epochs: epochs over the chosen part of the data; fractions are allowed.
        fraction: share of the batches of each epoch that is used; ``epochs`` counts epochs of this share.
        pair: the quantizers: ``pact`` as published, or ``lsq``.
        relaxation: from logits to mixtures: ``softmax`` as published, ``gumbel`` or ``single-path``.
        step_size_rate: largest share by which a step size or clipping range changes in one step; 0 trains them by SGD, as published.
        range_start: of the clipping ranges of ``pact``; ``auto`` takes each from the calibration data.
        price: of bits: ``steered`` leads the expected costs to the level's budgets; a number is the published fixed lambda on
            BitOps in units of the first layer's MACs.
        least_use: share of the nearest budget that the final policy must use, see :func:`bitalloc.supernet.fillings`; 0 takes the most
            probable policy inside the budgets.
        eta: weight of the attribution term.
        power: of the float model's map: ``adaptive`` as published, or a number.
        ranking: ``power`` as published, or ``spearman`` on soft ranks.
        attribution: what a map is.
        layers: patterns of the modules that ``gradcam`` explains; by default the last feature map.
    """

    method: Literal["gmpq", "edmips"] = "gmpq"
    epochs: float = Field(default=25, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    pair: Literal["pact", "lsq"] = "pact"
    relaxation: Literal["softmax", "gumbel", "single-path"] = "softmax"
    learning_rate: float = Field(default=0.1, gt=0)
    logit_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay_after: float = Field(default=0.4, gt=0, le=1)
    decay: float = Field(default=0.1, gt=0, le=1)
    step_size_rate: float = Field(default=0.01, ge=0, lt=1)
    logit_clip: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    pinned_in_float: bool = True
    range_start: Literal["auto"] | Annotated[float, Field(gt=0)] = 6.0
    price: Literal["steered"] | Annotated[float, Field(ge=0)] = "steered"
    least_use: float = Field(default=0.98, ge=0, le=1)
    eta: float = Field(default=40.0, ge=0)
    power: Literal["adaptive"] | Annotated[float, Field(gt=0)] = "adaptive"
    ranking: Literal["power", "spearman"] = "power"
    attribution: Literal["gradcam", "input-gradient", "gradient-times-input"] = "gradcam"
    layers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_layers_to_explain(self) -> Self:
        if self.layers and self.attribution != "gradcam":
            raise ValueError(f'layers are those that "gradcam" explains, but attribution is {self.attribution!r}: leave them out')
        return self


class SourceSection(Section):
    """The dataset that the widths are scored on, where it is another one: the recipe's values in their place, in ``<run>/source``.

    Attributes:
        model: by default the recipe's. The layers must be the same, but for the last ones.
        model_options: in the place of the recipe's, which are not merged in.
        data: see :class:`Recipe`.
        data_options: in the place of the recipe's.
        input_shape: by default the data's example.
        batch_size: by default the recipe's.
        names: layer of the recipe's model to layer of the source's, where they differ.
        float: the float model of the source.
    """

    model: EntryPoint | None = None
    model_options: dict[str, Any] | None = None
    data: EntryPoint
    data_options: dict[str, Any] = Field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    batch_size: int | None = Field(default=None, gt=0)
    names: dict[str, str] | None = None
    float_: FloatSection = Field(alias="float")


class LevelSection(Section):
    """One operating point.

    Attributes:
        name: names the level in the summary, and the folder of every level but the first.
        budgets: ``bitops``, ``compression``, ``peak_activation_bytes`` and so on, or the name of a table, to a limit, see
            :func:`bitalloc.resolve_budgets`.
        uniform: widths of the uniform policy to compare with; by default those that a budget names, else the largest that fit.
        reversed: also fine-tune the reversed assignment, as a sanity check of the metric.
    """

    name: Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "letters, digits, '_', '.' and '-', as it names a folder")]
    budgets: dict[str, float | str] = Field(min_length=1)
    uniform: BitsText | None = None
    reversed: bool = False


class FinetuneSection(Section):
    """Fine-tuning at the chosen widths; the uniform and the reversed policy get the same.

    Attributes:
        epochs: epochs over the training data; fractions are allowed.
        learning_rate: of SGD after warm-up, annealed to 0 by a cosine; 0.04 as published for ImageNet.
        warmup_epochs: epochs of linear warm-up.
        step_size_rate: largest share by which a step size changes in one step; 0 trains them by SGD like the weights.
        weight_decay: of weights; step sizes, biases and normalisations have none.
        label_smoothing: of the cross-entropy.
        distillation: weight of the float model's soft output in the loss, 0 to 1; 0 learns from labels only.
        temperature: of the distillation.
        start: ``float`` starts from the float weights, ``joint`` from the joint training's.
        fold_batch_norms: fold batch norms into the layers in front of them before the fine-tuning, where that is exact; they are
            folded at export in any case.
        batchnorm_images: training images that batch-norm statistics are estimated on anew at the end; 0 keeps the running ones.
    """

    epochs: float = Field(default=90, ge=0)
    learning_rate: float = Field(default=0.04, gt=0)
    warmup_epochs: float = Field(default=5, ge=0)
    step_size_rate: float = Field(default=0.01, ge=0, lt=1)
    weight_decay: float = Field(default=2.5e-5, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    start: Literal["float", "joint"] = "float"
    fold_batch_norms: bool = False
    batchnorm_images: int = Field(default=4096, ge=0)

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        return _check_warmup(self, self.warmup_epochs, self.epochs)

    @model_validator(mode="after")
    def _has_what_it_starts_from(self) -> Self:
        if self.fold_batch_norms and self.start == "joint":
            raise ValueError('fold_batch_norms needs start = "float": the joint training has batch norms, which a folded network lacks')
        return self


class EvaluateSection(Section):
    """What is looked at beside top-1, see :func:`bitalloc.attribution.attribution_rank_distance`.

    Attributes:
        attribution_images: test images on which the maps of every fine-tuned network are compared with the float model's, by Grad-CAM or
            the attribution that ``[supernet]`` names; 0 does without.
        attribution_pictures: test images in ``attribution.png``, a row each; 0 draws none.
    """

    attribution_images: int = Field(default=0, ge=0)
    attribution_pictures: int = Field(default=0, ge=0)


class EngineSection(Section):
    """How all trainings of the run compute, see :class:`bitalloc.training.Engine`; and who follows them.

    A run has a process of its own, so ``keep_freed_memory`` is on.

    Attributes:
        trackers: experiment trackers that get the losses, rates and results, see :func:`bitalloc.training.open_trackers`.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    accumulate: int = Field(default=1, ge=1)
    split_on_memory: bool = False
    retries: int = Field(default=0, ge=0)
    retry_rate: float = Field(default=0.5, gt=0, lt=1)
    loss_limit: Literal[0] | Annotated[float, Field(ge=1)] = 100.0
    sharding: Literal["none", "full"] = "none"
    keep_freed_memory: bool = True
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
