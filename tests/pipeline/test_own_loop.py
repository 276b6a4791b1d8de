"""The library under a user's own model, loss and training loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import bitalloc as ba
from bitalloc.errors import TrainingError


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def _batches() -> DataLoader[Any]:
    """Is the upper half brighter than the lower one?"""
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[::2, :, :4] += 0.5
    return DataLoader(TensorDataset(images, (torch.arange(64) % 2 == 0).long()), batch_size=16)


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _train(model: nn.Module, loader: DataLoader[Any], rate: float, epochs: int) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = _loss(model, batch)
            loss.backward()
            optimizer.step()
    model.eval()
    return float(loss.detach())


def _accuracy(model: nn.Module, loader: DataLoader[Any]) -> float:
    with torch.no_grad():
        return sum(float((model(images).argmax(1) == labels).sum()) for images, labels in loader) / 64


def test_the_verbs_in_a_row(tmp_path: Path) -> None:
    model, loader = _model(), _batches()
    _train(model, loader, 0.1, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = next(iter(loader))[0][:1]

    description = ba.describe(model, example)
    assert [layer.name for layer in description.layers] == ["0", "3", "5", "8"]
    space = ba.search_space(description.layers, weight=(8, 4, 2), act=(6, 4), pins=ba.first_last_pins(description))
    measured = ba.learned_scale_importance(model, description, space, loader, _loss, steps=6, calibration=loader)
    found = ba.allocate(measured.indicators, description, space, {"bitops": "w4a4", "compression": 4})
    assert ba.BitOps().total(description.layers, found.policy.bits) <= found.solution.budgets[0].limit
    assert found.policy.bits["0"] == found.policy.bits["8"] == ba.Bits(8, 8)

    quantized = ba.quantize(model, found.policy, calibration=loader)
    _train(quantized, loader, 0.02, 4)
    assert _accuracy(quantized, loader) > 0.9
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())

    ba.save_checkpoint(tmp_path / "mixed.safetensors", quantized.state_dict(), found.policy)
    state, policy, _ = ba.load_checkpoint(tmp_path / "mixed.safetensors")
    assert policy.bits == found.policy.bits
    again = ba.quantize(model, policy)
    again.load_state_dict(state)
    assert torch.equal(again.eval()(example), quantized(example))

    deployed = ba.deploy(quantized, example, description.producers).model
    ba.export_onnx(deployed, example, tmp_path / "model.onnx")
    agreement = ba.verify_onnx(tmp_path / "model.onnx", deployed, loader)
    assert (agreement.images, agreement.agreement) == (64, 1.0)
    assert agreement.max_abs_diff < 1e-3


def test_fine_tuning_on_batches_that_are_dicts_with_labels() -> None:
    """Calibration, batch norms and the report on step sizes run the model as ``forward`` says: with the result of pairs."""
    model, loader = _model(), list(_batches())
    description = ba.describe(model, torch.zeros(1, 1, 8, 8))
    policy = ba.Policy.uniform(description.layers, ba.Bits(4, 2), ba.first_last_pins(description))
    named = [{"pixels": images, "labels": labels} for images, labels in loader]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["pixels"]), batch["labels"])

    found = ba.finetune(model, policy, named, loss, steps=8, calibration=named, forward=lambda model, batch: model(batch["pixels"]))
    pairs = ba.finetune(model, policy, loader, _loss, steps=8, calibration=loader)
    assert found.losses == pairs.losses
    assert found.findings == pairs.findings
    assert all(
        value.equal(other) for value, other in zip(found.model.state_dict().values(), pairs.model.state_dict().values(), strict=True)
    )
    with pytest.raises(TrainingError, match=r"the keys pixels, labels, which Sequential.forward does not take .* give a function forward"):
        ba.finetune(model, policy, named, loss, steps=1, calibration=named)


def test_fine_tuning_with_callbacks() -> None:
    model, loader = _model(), _batches()
    _train(model, loader, 0.1, 8)
    description = ba.describe(model, torch.zeros(1, 1, 8, 8))
    policy = ba.Policy.uniform(description.layers, ba.Bits(4, 4), ba.first_last_pins(description))
    result = ba.finetune(
        model, policy, loader, _loss, steps=8, calibration=loader, eval_fn=lambda trained: _accuracy(trained.eval(), loader)
    )
    assert len(result.losses) == 8
    assert result.score is not None
    assert result.score == _accuracy(result.model, loader)
    assert result.score > 0.9


def test_calibration_that_can_be_read_only_once_is_refused_before_the_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    policy = ba.Policy({"1": ba.Bits(4, 4)}, {"1": (3, 4)})
    batches = [(torch.randn(5, 4), torch.randint(3, (5,)))]
    with pytest.raises(TrainingError, match="read only once"):
        ba.finetune(model, policy, batches, _loss, steps=1, calibration=(batch for batch in batches))
