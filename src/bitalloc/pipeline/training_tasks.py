"""The stages that train: the float model, the joint measurement, the fine-tuning."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bitalloc.errors import FileError, TrainingError
from bitalloc.files import replacing, write_json
from bitalloc.models import load_weights
from bitalloc.pipeline.recipe import LevelSection
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Policy
from bitalloc.quantizers import is_step_size
from bitalloc.sensitivity import JointSettings, learned_scale_importance
from bitalloc.training import (
    CheckpointConfig,
    LossFunction,
    WarmupCosine,
    cross_entropy_loss,
    device,
    distillation_loss,
    evaluate,
    fit,
    loss_step,
    reestimate_batchnorm,
    sgd,
    sgd_with_scales,
)
from bitalloc.wrap import inherit, prepare_joint, quantize


def train_float(work: Workspace, inputs: str) -> None:
    """Writes ``float.safetensors``: the given weights, trained further or anew, and ``float.json``."""
    section = work.recipe.float_
    model = work.new_model()
    weights = work.weights_path()
    if weights is not None:
        load_weights(model, weights)
    _check_finite(model, weights)
    steps = work.steps(section.epochs)
    seconds = 0.0
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
            checkpoint=CheckpointConfig(work.folder.checkpoint("float", inputs), inputs),
            progress=work.progress,
            name="float training",
        )
        seconds = result.seconds
    top1 = evaluate(model, work.splits.valid, work.progress, "validate float").accuracy
    _save(model.state_dict(), work.folder.path("float.safetensors"))
    write_json(work.folder.path("float.json"), {"valid_top1": top1, "seconds": seconds, "steps": steps})


def measure(work: Workspace, inputs: str) -> None:
    """Writes ``importance.json`` and, where the fine-tuning starts from it, ``joint.safetensors``."""
    section = work.recipe.measure
    description = work.description()
    settings = JointSettings(
        learning_rate=section.learning_rate,
        final_learning_rate=section.final_learning_rate,
        weight_decay=section.weight_decay,
        step_size_rate=section.step_size_rate,
        clip_value=section.clip_value,
        self_distillation=section.self_distillation,
        freeze_weights=section.freeze_weights,
        pinned_in_float=section.pinned_in_float,
        quantizers=work.quantizers(),
        seed=work.recipe.seed,
    )
    result = learned_scale_importance(
        work.float_model(),
        description,
        work.space(description),
        work.splits.train,
        cross_entropy_loss(section.label_smoothing),
        steps=work.steps(section.epochs, section.fraction),
        calibration=work.calibration(),
        settings=settings,
        checkpoint=CheckpointConfig(work.folder.checkpoint("measure", inputs), inputs),
        progress=work.progress,
    )
    if work.recipe.finetune.start == "joint":
        _save(result.model.state_dict(), work.folder.path("joint.safetensors"))
    write_json(work.folder.path("measure.json"), {"seconds": result.seconds, "losses": list(result.losses)})
    result.indicators.save(work.folder.path("importance.json"))


def finetune(work: Workspace, level: LevelSection, kind: str, inputs: str) -> None:
    """Writes ``<kind>.safetensors`` and ``<kind>_finetune.json`` of one level from ``<kind>``'s policy."""
    from bitalloc.export import save_checkpoint

    section = work.recipe.finetune
    policy = Policy.load(work.folder.level_path(level, policy_file(kind)))
    float_model = work.float_model()
    model = _start(work, float_model, policy)
    task = f"finetune/{level.name}/{kind}"
    steps = work.steps(section.epochs)
    losses: tuple[float, ...] = ()
    seconds = 0.0
    if steps:
        torch.manual_seed(work.recipe.seed)
        result = fit(
            model,
            work.splits.train,
            step=loss_step(_finetune_loss(work, float_model)),
            optimizer=sgd_with_scales(
                model, section.learning_rate, section.step_size_rate, is_step_size, weight_decay=section.weight_decay
            ),
            schedule=WarmupCosine(section.learning_rate, steps, min(work.steps(section.warmup_epochs), steps)),
            total_steps=steps,
            checkpoint=CheckpointConfig(work.folder.checkpoint(task, inputs), inputs),
            progress=work.progress,
            name=f"fine-tuning {level.name} {kind}",
        )
        losses, seconds = result.losses, result.seconds
    if section.batchnorm_images:
        reestimate_batchnorm(model, work.splits.calibration, section.batchnorm_images, work.progress)
    top1 = evaluate(model, work.splits.valid, work.progress, f"validate {level.name} {kind}").accuracy
    save_checkpoint(work.folder.level_path(level, f"{kind}.safetensors"), model.state_dict(), policy, work.quantizers().to_json())
    report = {"valid_top1": top1, "seconds": seconds, "steps": steps, "losses": list(losses)}
    write_json(work.folder.level_path(level, f"{kind}_finetune.json"), report)


def policy_file(kind: str) -> str:
    """The file name of a policy: ``mixed``, ``uniform`` or ``reversed``."""
    return "policy.json" if kind == "mixed" else f"{kind}_policy.json"


def _start(work: Workspace, float_model: nn.Module, policy: Policy) -> nn.Module:
    model = quantize(float_model, policy, calibration=work.calibration(), settings=work.quantizers())
    if work.recipe.finetune.start == "joint":
        description = work.description()
        joint = prepare_joint(float_model, work.space(description), description, work.quantizers())
        load_weights(joint, work.folder.path("joint.safetensors"))
        inherit(model, joint)
    return model


def _finetune_loss(work: Workspace, float_model: nn.Module) -> LossFunction:
    section = work.recipe.finetune
    if not section.distillation:
        return cross_entropy_loss(section.label_smoothing)
    return distillation_loss(
        float_model, temperature=section.temperature, weight=section.distillation, label_smoothing=section.label_smoothing
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


def read_report(path: Path) -> dict[str, Any]:
    """A small JSON report of a stage. Raises FileError if it is missing or damaged."""
    import json

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read ({error}): delete it to do its stage again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds a {type(value).__name__}, expected a JSON object: delete it to do its stage again.")
    return value
