"""Precision, layout and compilation: asked for once, in force in every step, undone afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitalloc import Bits, Policy, quantize
from bitalloc.errors import TrainingError
from bitalloc.training import Engine, cross_entropy_loss, fit, loss_step, sgd


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        if not torch.compiler.is_compiling():
            self.seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return self.head(x.mean((2, 3)))


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)) for _ in range(3)]


def _quantized() -> Net:
    torch.manual_seed(0)
    model = Net()
    shapes = {"first": (8, 3, 3, 3), "second": (8, 8, 3, 3), "head": (4, 8)}
    policy = Policy(dict.fromkeys(shapes, Bits(4, 4)), shapes)
    quantized = quantize(model, policy, calibration=_batches())
    assert isinstance(quantized, Net)
    quantized.seen.clear()
    return quantized


def _trained(engine: Engine) -> tuple[Net, tuple[float, ...]]:
    model = _quantized()
    optimizer = sgd(model, 0.05)
    result = fit(model, _batches(), step=loss_step(cross_entropy_loss()), optimizer=optimizer, total_steps=6, engine=engine)
    return model, result.losses


def test_bfloat16_computes_products_in_bfloat16_and_keeps_everything_learned_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    exact, losses = _trained(Engine())
    half, half_losses = _trained(Engine(precision="bfloat16"))
    assert {dtype for dtype, _ in exact.seen} == {torch.float32}
    assert {dtype for dtype, _ in half.seen} == {torch.bfloat16}
    assert {value.dtype for value in half.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert half_losses == pytest.approx(losses, rel=0.05)
    assert half_losses != losses
    emulated = not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    assert ("emulates" in caplog.text) == emulated
    assert half(_batches()[0][0]).dtype == torch.float32  # outside of the training


def test_channels_last_is_the_layout_of_every_step_and_of_none_after_it() -> None:
    plain, losses = _trained(Engine())
    laid_out, other = _trained(Engine(channels_last=True))
    assert not any(last for _, last in plain.seen)
    assert all(last for _, last in laid_out.seen)
    assert other == pytest.approx(losses, rel=1e-4)
    assert all(parameter.is_contiguous() for parameter in laid_out.parameters())


def test_channels_last_leaves_layouts_as_it_found_them_and_other_dimensions_alone() -> None:
    torch.manual_seed(0)
    volumes = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(2), nn.Unflatten(2, (2, 4)), nn.Conv2d(4, 4, 2))
    volumes[3].to(memory_format=torch.channels_last)
    model = nn.Sequential(volumes, nn.Flatten(), nn.Linear(12, 3))
    batch = torch.randn(4, 1, 4, 4, 4), torch.tensor([0, 1, 2, 0])
    fit(model, [batch], step=loss_step(cross_entropy_loss()), optimizer=sgd(model, 0.1), total_steps=1, engine=Engine(channels_last=True))
    assert volumes[0].weight.is_contiguous()
    assert volumes[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not volumes[3].weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it
def test_a_compiled_model_learns_the_same_and_is_not_compiled_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    model, losses = _trained(Engine(compile=True))
    assert graphs
    assert losses == pytest.approx(_trained(Engine())[1], rel=1e-4)
    count = len(graphs)
    model(torch.zeros(5, 3, 8, 8))
    assert len(graphs) == count
    assert model.seen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "float16"}, "there is no precision 'float16'"),
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"retry_rate": 1.0}, "retry_rate is 1.0"),
        ({"sharding": "half"}, "there is no sharding 'half'"),
        ({"sharding": "full", "compile": True}, "does not go together with compile"),
        ({"sharding": "full", "split_on_memory": True}, "does not go together with split_on_memory"),
    ],
)
def test_options_that_do_not_exist_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Engine(**wrong)
