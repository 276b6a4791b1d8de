"""What test_two_ranks.py runs on two ranks, and on one to compare."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bitalloc import describe, search_space
from bitalloc.data import ImageBatches
from bitalloc.errors import FileError, TrainingError
from bitalloc.pipeline.finetune import FinetuneSettings, finetune
from bitalloc.policy import Bits, Policy
from bitalloc.sensitivity import JointSettings, learned_scale_importance
from bitalloc.training import CheckpointConfig, Engine, Journal, cross_entropy_loss, evaluate, fit, loss_step, sgd
from bitalloc.training.ranks import rank
from bitalloc.wrap import active_bits

LOSS = cross_entropy_loss()
IMAGES = 43  # in batches of 6: 7 of them and one of a single image, which one of two ranks has to do without


def images():
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(IMAGES) % 3
    pixels = torch.randint(0, 100, (IMAGES, 1, 8, 8), generator=generator)
    pixels[torch.arange(IMAGES), 0, 2 * labels + 1] += 150
    return pixels.to(torch.uint8), labels


def batches(**options):
    return ImageBatches(*images(), 6, (0.2,), (0.2,), shuffle=True, crop_padding=1, flip=True, **options)


def network(norm=False):
    torch.manual_seed(1)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), *middle, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 3)
    )


def measured(engine=None):
    """The joint training: losses, indicators, drawn widths, weights."""
    model, widths = network(), []
    description = describe(model, torch.zeros(1, 1, 8, 8))

    def loss(joint, batch):
        widths.append([str(bits) for bits in active_bits(joint).values()])
        return LOSS(joint, batch)

    result = learned_scale_importance(
        model,
        description,
        search_space(description, [4, 3, 2], [4, 2]),
        batches(),
        loss,
        steps=10,
        calibration=list(batches())[:2],
        settings=JointSettings(seed=3),
        engine=engine,
    )
    return {"losses": result.losses, "indicators": result.indicators.to_json(), "widths": widths, "weights": weights(result.model)}


def finetuned(engine=None):
    """Fine-tuning from a DataLoader that shuffles, and the evaluation of the result."""
    model = network()
    description = describe(model, torch.zeros(1, 1, 8, 8))
    policy = Policy.uniform(description.layers, Bits(4, 4))
    settings = FinetuneSettings(batchnorm_images=0, seed=2)
    result = finetune(model, policy, loader(), LOSS, steps=10, calibration=list(loader())[:2], settings=settings, engine=engine)
    top1 = evaluate(result.model, DataLoader(plain_set(), batch_size=6))
    return {"losses": result.losses, "weights": weights(result.model), "top1": [top1.correct, top1.total]}


def plain_set():
    pixels, labels = images()
    return TensorDataset(pixels.float() / 255, labels)


def loader():
    torch.manual_seed(4)
    return DataLoader(plain_set(), batch_size=6, shuffle=True)


def calibrated():
    """Indicators without training, although each rank calibrates on other images: signed ones on rank 1, so the zero points differ too."""
    model = network()
    description = describe(model, torch.zeros(1, 1, 8, 8))
    batch = next(iter(batches()))[0] + 3 * (1 - rank())
    space = search_space(description, [4, 2], [4, 2])
    result = learned_scale_importance(model, description, space, batches(), LOSS, steps=0, calibration=[batch])
    return {"indicators": result.indicators.to_json(), "weights": weights(result.model), "out": result.model.eval()(batch[:1] * 0).tolist()}


def spread():
    """The joint training and the fine-tuning with weights spread over the ranks."""
    engine = Engine(sharding="full")
    return {"measured": measured(engine), "finetuned": finetuned(engine)}


def in_parts():
    """Losses of trainings in parts: of 2 and 3 images a rank in up to 3 parts; and of a rank that has memory for one image less."""

    def train(engine, size, step):
        model = network()
        data = ImageBatches(*images(), size, (0.2,), (0.2,))
        result = fit(model, data, step=step, optimizer=sgd(model, 0.1), total_steps=8, engine=engine)
        return {"losses": result.losses, "parts": result.parts}

    def hungry(model, batch):
        if rank() == 1 and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("full")
        return loss_step(LOSS)(model, batch)

    uneven = {kind: train(Engine(sharding=kind, accumulate=3), 5, loss_step(LOSS)) for kind in ("none", "full")}
    return {**uneven, "hungry": train(Engine(split_on_memory=True), 6, hungry)}


def unwritten():
    """The error that every rank gets if the journal of rank 0 fails at step 2."""

    class Full(Journal):
        def write(self, entry):
            if entry.step == 2:
                raise FileError("the disk is full")

    model = network()
    try:
        fit(model, batches(), step=loss_step(LOSS), optimizer=sgd(model, 0.1), total_steps=5, journal=Full())
    except (TrainingError, FileError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def interrupted(folder, engine=None):
    """Six steps at once, and six after a stop in the middle; clipped, with momentum. Names and shapes in the checkpoint."""

    def train(name, steps):
        model = network()
        config = CheckpointConfig(folder / name, "the run")
        optimizer = sgd(model, 0.1, weight_decay=1e-3)
        result = fit(
            model,
            batches(),
            step=loss_step(LOSS),
            optimizer=optimizer,
            total_steps=steps,
            clip_norm=0.5,
            clip_value=0.2,
            engine=engine or Engine(),
            checkpoint=config,
        )
        momenta = [value["momentum_buffer"].flatten().tolist() for value in optimizer.state.values()]
        return {"losses": result.losses, "weights": weights(model), "momenta": momenta}

    name = "plain" if engine is None else "spread"
    whole = train(f"{name} whole", 6)
    train(name, 3)
    return {"whole": whole, "resumed": train(name, 6)}


def normalised():
    """Running statistics of a batch norm after training at a rate that leaves the weights as they are."""
    model = network(norm=True)
    result = fit(model, batches(), step=loss_step(LOSS), optimizer=sgd(model, 1e-12), total_steps=7)
    return {"mean": model[1].running_mean.tolist(), "variance": model[1].running_var.tolist(), "images": result.images}


class Noisy(Dataset):
    """Every sample is a random number, as if it were augmented."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(1), torch.tensor(index)


def augmented():
    """The random numbers and samples that this rank's batches are made of, and whether reading them left the global generator alone."""
    model, seen = nn.Linear(1, 3), []

    def step(model, batch):
        seen.append([batch[0].flatten().tolist(), batch[1].tolist()])
        return loss_step(LOSS)(model, (batch[0], batch[1] % 3))

    fit(model, DataLoader(Noisy(), batch_size=4), step=step, optimizer=sgd(model, 0.1), total_steps=2)
    return {"seen": seen, "next": float(torch.rand(()))}


def failing():
    """The error that every rank gets if rank 1 fails in its third step."""
    model, calls = network(), [0]

    def step(model, batch):
        calls[0] += 1
        if calls[0] == 3 and rank() == 1:
            raise ValueError("no such colour")
        return loss_step(LOSS)(model, batch)

    try:
        fit(model, batches(), step=step, optimizer=sgd(model, 0.1), total_steps=5)
    except (TrainingError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "calls": calls[0]}
    return {"error": None}


def saved(folder):
    """Writes a checkpoint."""
    model = network()
    config = CheckpointConfig(folder / "checkpoint", "the run")
    fit(model, batches(), step=loss_step(LOSS), optimizer=sgd(model, 0.1), total_steps=3, checkpoint=config)


def weights(model):
    return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = {job.__name__: job() for job in (measured, finetuned, calibrated, normalised, augmented, failing, spread, in_parts, unwritten)}
    found["interrupted"] = {"none": interrupted(out), "full": interrupted(out, Engine(sharding="full"))}
    saved(out)
    (out / f"{rank()}.json").write_text(json.dumps(found))
