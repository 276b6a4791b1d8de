"""What test_launchers.py has real launchers start: two steps of training; each rank writes down what it got."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.training import cross_entropy_loss, fit, loss_step, sgd
from bitalloc.training.ranks import rank, world_size


def trained():
    """Losses and weights after two steps on batches of 6, of which each of two ranks has 3 images. Ranks begin with other weights."""
    torch.manual_seed(rank())
    model = nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(12, 4, generator=generator), torch.arange(12) % 3)
    result = fit(model, DataLoader(data, batch_size=6), step=loss_step(cross_entropy_loss()), optimizer=sgd(model, 0.1), total_steps=2)
    return {"ranks": world_size(), "losses": result.losses, "weight": model.weight.tolist()}


if __name__ == "__main__":
    found = trained()
    Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps(found))
