"""The joint training step of LIMPQ: all candidate widths in one optimiser step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import TrainingError
from bitalloc.sensitivity.joint_settings import JointSettings
from bitalloc.sensitivity.joint_widths import draw, draw_passes, joint_passes, tied, widths_in_float
from bitalloc.sensitivity.shared_stem import SharedStem
from bitalloc.space import Candidates, SearchSpace
from bitalloc.training import LossFunction, drop_unused_gradients, learn
from bitalloc.wrap import Switch, quantized_layers, run_on_inputs

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is looked up in a model once."""

    model: nn.Module
    switch: Switch
    stem: SharedStem


class JointStep:
    """The forward and backward passes of one joint training step: |B| uniform passes and one mixed pass, gradients summed.

    The passes run from the widest to the narrowest candidate, then one with every layer's weight and activation width drawn
    at random and independently, so that layers at different widths meet. With ``widths_per_step`` only so many uniform passes are done,
    drawn at random, their losses scaled by |B| over that number; the gradient's expectation stays. What is the same in
    all passes is computed once, see :class:`~bitalloc.sensitivity.shared_stem.SharedStem`.

    Raises:
        TrainingError: ``widths_per_step`` is not from 1 to the number of uniform passes.
    """

    def __init__(self, space: SearchSpace, loss_fn: LossFunction, settings: JointSettings, forward: Forward = run_on_inputs) -> None:
        self._space, self._settings = space, settings
        self._pinned = widths_in_float(space) if settings.pinned_in_float else space.pinned
        self._free: Mapping[str, Candidates] = {name: space.candidates[name] for name in space.free}
        self._passes = joint_passes(self._free)
        count = len(self._passes)
        self._drawn = count if settings.widths_per_step is None else settings.widths_per_step
        if not 1 <= self._drawn <= count:
            raise TrainingError(f"widths_per_step is {self._drawn}, expected 1 to {count}: the candidates make {count} uniform passes.")
        self._loss_fn, self._forward = loss_fn, forward
        self._prepared: _Prepared | None = None

    def __call__(self, model: nn.Module, batch: Any) -> float:
        """Leaves the summed gradients in ``.grad``; returns the mean loss over the passes, of which drawn ones stand for all."""
        prepared, loss_fn = self._on(model), self._loss_fn
        scale = len(self._passes) / self._drawn
        passes = [(self._passes[index], scale) for index in draw_passes(len(self._passes), self._drawn)]
        passes.append((tied(draw(self._free), self._space), 1.0))
        losses = []
        with prepared.stem.step():
            for bits, weight in passes:
                if self._settings.self_distillation and loss_fn is self._loss_fn and bits is not self._passes[0]:
                    loss_fn = self._imitating(prepared, batch)
                prepared.switch({**self._pinned, **bits})
                losses.append(learn(loss_fn, model, batch, weight))
                prepared.stem.end_pass()
        drop_unused_gradients(model)
        # One transfer from the device a step, not one a pass.
        values = torch.stack(losses).tolist()
        return float(sum(weight * value for (_, weight), value in zip(passes, values, strict=True))) / (len(self._passes) + 1)

    def _imitating(self, prepared: _Prepared, batch: Any) -> LossFunction:
        """The loss of learning from the soft output of the network at its widest."""
        prepared.switch({**self._pinned, **self._passes[0]})
        with torch.no_grad():
            teacher = F.softmax(self._forward(prepared.model, batch), dim=1)

        def loss(student: nn.Module, images: Any) -> Tensor:
            return F.cross_entropy(self._forward(student, images), teacher)

        return loss

    def _on(self, model: nn.Module) -> _Prepared:
        if self._prepared is None or self._prepared.model is not model:
            layers = quantized_layers(model)
            quantizers = [quantizer for name in self._free for quantizer in (layers[name].weight_quantizer, layers[name].input_quantizer)]
            stem = SharedStem(model, quantizers) if self._settings.share_stem else SharedStem(nn.Identity(), ())
            self._prepared = _Prepared(model, Switch(model), stem)
        return self._prepared
