"""One joint training step of ResNet-20 as the published LIMPQ code does it, beside the library's and a plain float step.

    OMP_NUM_THREADS=1 python benchmarks/published_step.py [--steps 5] [--batch-size 128]

The published side is written anew in plain tensor operations from the description of its quantizer and loop (Tang et al.,
"Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022; quantizer: Esser et al., "Learned Step Size
Quantization", ICLR 2020): rounding and gradient scale are compositions with ``detach``, every layer has a step size a candidate and side,
every batch norm behind a quantized layer a branch a candidate, and a step is one forward and backward pass a candidate, one at drawn
widths, clipping and SGD. It quantizes the same layers at the same widths as the library: all but the first and the last.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence

import torch
from measuring import median_seconds
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc import JointSettings, describe, first_last_pins, search_space
from bitalloc.models import resnet20
from bitalloc.sensitivity import JointStep
from bitalloc.training import cross_entropy_loss, device, loss_step, sgd
from bitalloc.wrap import calibrate, prepare_joint

CANDIDATES = (6, 5, 4, 3, 2)
RATE, CLIP, SMOOTHING = 0.01, 1.0, 0.1
Batch = tuple[Tensor, Tensor]


def grad_scale(x: Tensor, scale: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``scale``."""
    scaled = x * scale
    return (x - scaled).detach() + scaled


def round_pass(x: Tensor) -> Tensor:
    """``x`` rounded, whose gradient passes."""
    return (x.round() - x).detach() + x


def quantized(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The published quantizer: ``step * round(clip(x / step))``, the gradient of the step scaled by ``1 / sqrt(high * numel)``."""
    step = grad_scale(step, 1.0 / math.sqrt(high * x.numel()))
    return round_pass((x / step).clamp(low, high)) * step


class PublishedConv(nn.Module):
    """A convolution with one step size a candidate for its weights and one for what it reads (not negative, behind a relu)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        weight = conv.weight.detach()
        reach = max(abs(weight.mean() - 3 * weight.std()), abs(weight.mean() + 3 * weight.std()))
        self.weight_steps = nn.ParameterList(nn.Parameter((reach / 2 ** (bits - 1)).reshape(1)) for bits in CANDIDATES)
        self.act_steps = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in CANDIDATES)
        self.choice = (0, 0)  # candidates of weights and activations
        self.observing = False

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of the quantized tensors; while observing, of the given ones, whose mean sets the steps."""
        if self.observing:
            for bits, step in zip(CANDIDATES, self.act_steps, strict=True):
                step.data.fill_(2 * x.abs().mean() / math.sqrt(2**bits - 1))
            return self.conv(x)  # type: ignore[no-any-return]
        weight_bits, act_bits = (CANDIDATES[index] for index in self.choice)
        x = quantized(x, self.act_steps[self.choice[1]], 0, 2**act_bits - 1)
        weight = quantized(self.conv.weight, self.weight_steps[self.choice[0]], -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1)
        return F.conv2d(x, weight, None, self.conv.stride, self.conv.padding)


class PublishedNorm(nn.Module):
    """One copy of a batch norm a candidate."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(copy.deepcopy(norm) for _ in CANDIDATES)
        self.choice = 0

    def forward(self, x: Tensor) -> Tensor:
        """The chosen copy's output."""
        return self.branches[self.choice](x)  # type: ignore[no-any-return]


class PublishedStep:
    """|B| passes at one width each, one pass with the width of every layer drawn (weights and activations share it), one SGD step."""

    def __init__(self, floating: nn.Module, few: Tensor) -> None:
        self.model = copy.deepcopy(floating)
        self.pairs: list[tuple[PublishedConv, PublishedNorm]] = []
        for block in [block for stage in ("layer1", "layer2", "layer3") for block in getattr(self.model, stage)]:
            for index in (1, 2):
                pair = PublishedConv(getattr(block, f"conv{index}")), PublishedNorm(getattr(block, f"bn{index}"))
                setattr(block, f"conv{index}", pair[0])
                setattr(block, f"bn{index}", pair[1])
                self.pairs.append(pair)
        self.model.to(few.device)
        self._initialise(few)
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE, momentum=0.9, weight_decay=2.5e-5)
        self.loss = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def __call__(self, batch: Batch) -> float:
        """The mean loss over the passes."""
        images, labels = batch
        self.optimizer.zero_grad()
        uniform = [[index] * len(self.pairs) for index in range(len(CANDIDATES))]
        mixed: list[int] = torch.randint(len(CANDIDATES), (len(self.pairs),)).tolist()
        losses = []
        for choices in (*uniform, mixed):
            self._choose(choices)
            loss = self.loss(self.model(images), labels)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_value_(self.model.parameters(), CLIP)
        for parameter in self.model.parameters():
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None  # not drawn: neither momentum nor decay moves it
        self.optimizer.step()
        return sum(losses) / len(losses)

    def _choose(self, choices: Sequence[int]) -> None:
        for (conv, norm), index in zip(self.pairs, choices, strict=True):
            conv.choice, norm.choice = (index, index), index

    @torch.no_grad()
    def _initialise(self, few: Tensor) -> None:
        for observing in (True, False):
            for conv, _ in self.pairs:
                conv.observing = observing
            if observing:
                self.model.eval()(few)
        self.model.train()


def random_batch(batch_size: int) -> Batch:
    """Images (N, 3, 32, 32) and labels."""
    torch.manual_seed(0)
    return torch.randn(batch_size, 3, 32, 32, device=device()), torch.randint(10, (batch_size,), device=device())


def joint_steps(batch: Batch) -> dict[str, Callable[[], float]]:
    """One training step with its optimiser, by side; each gives its loss.

    ``float``, ``ours``, ``published``, ``channels last``: ours with that layout, and ``two drawn``: so too, with two of the widths drawn a
    step.
    """
    torch.manual_seed(1)
    floating = resnet20().to(device())
    description = describe(floating, batch[0][:1])
    space = search_space(description.layers, CANDIDATES, pins=first_last_pins(description))
    few = (batch[0][:8], batch[1][:8])  # so that it does not set the peak of memory
    joint, inner, drawn = (prepare_joint(floating, space, description) for _ in range(3))
    for model in (joint, inner, drawn):
        calibrate(model, [few])
    for model in (inner, drawn):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    laid_out = (batch[0].contiguous(memory_format=torch.channels_last), batch[1])
    loss_fn = cross_entropy_loss(SMOOTHING)
    published = PublishedStep(floating, few[0])
    return {
        "float": _with_optimizer(floating, loss_step(loss_fn), batch),
        "ours": _with_optimizer(joint, JointStep(space, loss_fn, JointSettings()), batch),
        "channels last": _with_optimizer(inner, JointStep(space, loss_fn, JointSettings()), laid_out),
        "two drawn": _with_optimizer(drawn, JointStep(space, loss_fn, JointSettings(widths_per_step=2)), laid_out),
        "published": lambda: published(batch),
    }


def _with_optimizer(model: nn.Module, step: Callable[[nn.Module, Batch], float], batch: Batch) -> Callable[[], float]:
    optimizer = sgd(model.train(), RATE)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = step(model, batch)
        nn.utils.clip_grad_value_(model.parameters(), CLIP)
        optimizer.step()
        return loss

    return run


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """The figures from the median seconds of each side."""
    passes = len(CANDIDATES) + 1
    return {
        "joint_over_6_float": seconds["ours"] / seconds["float"] / passes,
        "published_joint_over_ours": seconds["published"] / seconds["ours"],
        "published_joint_over_channels_last": seconds["published"] / seconds["channels last"],
        "published_joint_over_two_drawn": seconds["published"] / seconds["two drawn"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    medians = median_seconds(joint_steps(random_batch(arguments.batch_size)), arguments.steps)
    for name, value in {**medians, **ratios(medians)}.items():
        print(f"{name:28} {value:8.3f}")


if __name__ == "__main__":
    main()
