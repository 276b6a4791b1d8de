"""The stages that train: the float model, the joint measurement, the fine-tuning."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bitalloc.errors import TrainingError
from bitalloc.files import replacing, write_json
from bitalloc.models import load_weights
from bitalloc.pipeline.finetune import FinetuneSettings, finetune
from bitalloc.pipeline.part import part
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.run_folder import damage
from bitalloc.pipeline.training_notes import training_notes
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Policy
from bitalloc.quantizers import cached_weights
from bitalloc.sensitivity import (
    Indicators,
    JointSettings,
    attribution_rank_damage,
    learned_scale_importance,
    output_divergence,
    widths_in_float,
)
from bitalloc.training import (
    CheckpointConfig,
    Entry,
    LossFunction,
    NamedJournal,
    WarmupCosine,
    cross_entropy_loss,
    device,
    distillation_loss,
    evaluate,
    fit,
    loss_step,
    sgd,
)
from bitalloc.wrap import prepare_joint, switch
from bitalloc.wrap.fold import fold_batch_norms
from bitalloc.wrap.quantize import check_policy


def train_float(work: Workspace, inputs: str) -> None:
    """Writes ``float.safetensors``: the given weights, trained further or anew, and ``float.json``."""
    section = work.recipe.float_
    model = work.new_model()
    weights = work.weights_path()
    if weights is not None:
        load_weights(model, weights)
    _check_finite(model, weights)
    steps = work.steps(section.epochs)
    seconds, notes = 0.0, training_notes((), 1)
    model.to(device())
    if steps:
        torch.manual_seed(work.recipe.seed)
        result = fit(
            model,
            work.splits.train,
            step=loss_step(cross_entropy_loss(section.label_smoothing)),
            optimizer=sgd(model, section.learning_rate, weight_decay=section.weight_decay),
            schedule=WarmupCosine(section.learning_rate, steps, work.steps(section.warmup_epochs)),
            total_steps=steps,
            engine=work.engine(),
            checkpoint=CheckpointConfig(work.folder.checkpoint("float", inputs), inputs),
            progress=work.progress,
            journal=NamedJournal(work.journal, "float"),
            name="float training",
        )
        seconds, notes = result.seconds, training_notes(result.retries, result.parts)
    top1 = evaluate(model, work.splits.valid, work.progress, "validate float").accuracy
    work.journal.write(Entry("float", "result", steps, {"valid_top1": top1}))
    _save(model.state_dict(), work.folder.path("float.safetensors"))
    write_json(work.folder.path("float.json"), {"valid_top1": top1, "seconds": seconds, "steps": steps, **notes})


def measure(work: Workspace, inputs: str) -> None:
    """The joint training. Writes ``joint.safetensors``, ``step_sizes.json`` and ``measure.json``."""
    section = work.recipe.measure
    description = work.description()
    loader = part(work.splits.train, section.fraction)
    settings = JointSettings(
        learning_rate=section.learning_rate,
        final_learning_rate=section.final_learning_rate,
        weight_decay=section.weight_decay,
        step_size_rate=section.step_size_rate,
        clip_value=section.clip_value,
        self_distillation=section.self_distillation,
        freeze_weights=section.freeze_weights,
        pinned_in_float=section.pinned_in_float,
        widths_per_step=None if section.widths_per_step == "all" else section.widths_per_step,
        share_stem=section.share_stem,
        quantizers=work.quantizers(),
        seed=work.recipe.seed,
    )
    result = learned_scale_importance(
        work.float_model(),
        description,
        work.space(description),
        loader,
        cross_entropy_loss(section.label_smoothing),
        steps=work.steps(section.epochs, loader),
        calibration=work.calibration(),
        settings=settings,
        engine=work.engine(),
        checkpoint=CheckpointConfig(work.folder.checkpoint("measure", inputs), inputs),
        progress=work.progress,
        journal=NamedJournal(work.journal, "measure"),
    )
    _save(result.model.state_dict(), work.folder.path("joint.safetensors"))
    notes = training_notes(result.retries, result.parts, result.findings)
    write_json(
        work.folder.path("measure.json"), {"seconds": result.seconds, "images": result.images, "losses": list(result.losses), **notes}
    )
    result.indicators.save(work.folder.path("step_sizes.json"))


def rate_importance(work: Workspace) -> None:
    """Writes ``importance.json``, by the recipe's metric, and the seconds that it took to ``metric.json``."""
    metric = work.recipe.measure.metric
    start = time.monotonic()
    if metric == "limpq":
        with damage(work.folder.path("step_sizes.json")):
            indicators = Indicators.load(work.folder.path("step_sizes.json"))
    else:
        joint, space = _joint(work, work.float_model()), work.space(work.description())
        if work.recipe.measure.pinned_in_float:  # as they were in the joint training
            switch(joint, widths_in_float(space))
        damage_of = output_divergence if metric == "divergence" else attribution_rank_damage
        indicators = damage_of(joint, space, work.calibration(), progress=work.progress)
    indicators.save(work.folder.path("importance.json"))
    write_json(work.folder.path("metric.json"), {"metric": metric, "seconds": time.monotonic() - start})


def finetune_level(work: Workspace, level: LevelSection, kind: str, inputs: str) -> None:
    """Writes ``<kind>.safetensors`` and ``<kind>_finetune.json`` of one level from ``<kind>``'s policy."""
    from bitalloc.export import save_checkpoint

    task = f"finetune/{level.name}/{kind}"
    model = starting_model(work)
    policy = load_policy(work, level, kind)
    with damage(work.folder.level_path(level, policy_file(kind))):
        check_policy(model, policy)
    steps = work.steps(work.recipe.finetune.epochs)
    result = finetune(
        model,
        policy,
        work.splits.train,
        _finetune_loss(work),
        steps=steps,
        calibration=work.splits.calibration,
        eval_fn=_validation(work, f"validate {level.name} {kind}"),
        start_from=_joint(work, model) if work.recipe.finetune.start == "joint" else None,
        settings=_finetune_settings(work),
        engine=work.engine(),
        checkpoint=CheckpointConfig(work.folder.checkpoint(task, inputs), inputs),
        progress=work.progress,
        journal=NamedJournal(work.journal, task),
        name=f"fine-tuning {level.name} {kind}",
    )
    save_checkpoint(work.folder.level_path(level, f"{kind}.safetensors"), result.model.state_dict(), policy, work.quantizers().to_json())
    report = {"valid_top1": result.score, "seconds": result.seconds, "steps": steps, "losses": list(result.losses)}
    notes = training_notes(result.retries, result.parts, result.findings)
    work.journal.write(Entry(task, "result", steps, {} if result.score is None else {"valid_top1": result.score}))
    write_json(work.folder.level_path(level, f"{kind}_finetune.json"), {**report, **notes})


def starting_model(work: Workspace) -> nn.Module:
    """The float model that is quantized: with batch norms folded, if the recipe wants them so. The same at every call."""
    model = work.float_model()
    if not work.recipe.finetune.fold_batch_norms:
        return model
    return fold_batch_norms(model, work.splits.example, work.description().producers).model


def policy_file(kind: str) -> str:
    """The file name of a policy: ``mixed``, ``uniform`` or ``reversed``."""
    return "policy.json" if kind == "mixed" else f"{kind}_policy.json"


def load_policy(work: Workspace, level: LevelSection, kind: str) -> Policy:
    """A policy of the run. Raises FileError or PolicyError, naming the file, if it is damaged."""
    path = work.folder.level_path(level, policy_file(kind))
    with damage(path):
        return Policy.load(path)


def _joint(work: Workspace, float_model: nn.Module) -> nn.Module:
    description = work.description()
    joint = prepare_joint(float_model, work.space(description), description, work.quantizers())
    with damage(work.folder.path("joint.safetensors")):
        load_weights(joint, work.folder.path("joint.safetensors"))
    return joint


def _finetune_settings(work: Workspace) -> FinetuneSettings:
    section = work.recipe.finetune
    return FinetuneSettings(
        learning_rate=section.learning_rate,
        warmup_steps=work.steps(section.warmup_epochs),
        weight_decay=section.weight_decay,
        step_size_rate=section.step_size_rate,
        calibration_batches=work.recipe.calibration_batches,
        batchnorm_images=section.batchnorm_images,
        quantizers=work.quantizers(),
        seed=work.recipe.seed,
    )


def _validation(work: Workspace, name: str) -> Callable[[nn.Module], float]:
    def accuracy(model: nn.Module) -> float:
        with cached_weights():
            return evaluate(model, work.splits.valid, work.progress, name).accuracy

    return accuracy


def _finetune_loss(work: Workspace) -> LossFunction:
    section = work.recipe.finetune
    if not section.distillation:
        return cross_entropy_loss(section.label_smoothing)
    return distillation_loss(
        work.float_model(), temperature=section.temperature, weight=section.distillation, label_smoothing=section.label_smoothing
    )


def _check_finite(model: nn.Module, weights: Path | None) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(f"{weights or 'the model'}: the tensor {name} holds values that are not finite; load a sound checkpoint.")


def _save(state: dict[str, Tensor], path: Path) -> None:
    # Cloned, because safetensors refuses tensors that share memory.
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
