"""What does not depend on the widths is computed once a step, and the gradients are those of computing it in every pass."""

import copy
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from bitalloc.choices import search_space
from bitalloc.errors import TrainingError
from bitalloc.policy import Bits
from bitalloc.sensitivity import JointSettings, JointStep, learned_scale_importance
from bitalloc.sensitivity.shared_stem import SharedStem
from bitalloc.wrap import calibrate, prepare_joint, run_on_inputs
from bitalloc.wrap.describe import describe

EIGHT = Bits(8, 8)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.tail(self.bn(self.stem(x)))

    def tail(self, x):
        return self.head(F.relu(self.conv(F.relu(x))).mean((2, 3)))


class Modules(Plain):
    """All of the stem is made of modules: nothing but the tail runs in every pass."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 1), nn.GroupNorm(1, 3))

    def forward(self, x):
        return self.tail(self.front(self.bn(self.stem(x))))


class Indices(Plain):
    """A module of the stem that gives two tensors."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 1, return_indices=True)

    def forward(self, x):
        values, indices = self.pool(self.bn(self.stem(x)))
        return self.tail(values + indices / 36)


class InPlace(Plain):
    """The output of a shared module is written into, by a module and by an operator."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x += 0.25
        return self.tail(self.act(x))


class Skip(Plain):
    """Both outputs of a chain of shared modules are read by what follows; the last of them is also written into."""

    def forward(self, x):
        before = self.stem(x)
        after = self.bn(before)
        after.mul_(0.5)
        return self.tail(before.sin() + after)


class Twice(Plain):
    """One module on two tensors of a dict of inputs, and twice on one of them."""

    def forward(self, left, right):
        return self.tail(self.bn(self.stem(left)) - self.bn(self.stem(right)) * self.bn(self.stem(left)))


class Dropped(Plain):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.tail(self.drop(self.bn(self.stem(self.drop(x)))) + self.bn(self.stem(x)))


class Checkpointed(Plain):
    def forward(self, x):
        return checkpoint(lambda y: self.tail(self.bn(self.stem(y))), x, use_reentrant=False)


class Reentrant(Plain):
    """Computes the region first without gradients, then in the backward pass."""

    def forward(self, x):
        if not torch.is_grad_enabled():  # it warns there
            return self.tail(self.bn(self.stem(x)))
        return checkpoint(lambda y: self.tail(self.bn(y)), self.stem(x), use_reentrant=True)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Embedding(11, 4), nn.LayerNorm(4)
        self.conv, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, words):
        return self.head(torch.tanh(self.conv(self.bn(self.stem(words)))).mean(1))


def images(seed=0, *, dtype=torch.float64):
    return torch.randn(5, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 0, 1])
INPUTS = {
    Twice: {"left": images(), "right": images(1)},
    Words: {"words": torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(0))},
}


def loss_fn(model, batch):
    return F.cross_entropy(run_on_inputs(model, batch), LABELS)


def case(kind, *, pins=("stem", "head"), dtype=torch.float64, share=True, **settings):
    torch.manual_seed(1)
    batch = INPUTS.get(kind, images(dtype=dtype))
    model = kind().to(dtype)
    description = describe(model, batch)
    pinned = {name: Bits(8, 32) if kind is Words and name == "stem" else EIGHT for name in pins}
    space = search_space(description.layers, (6, 3, 2), pins=pinned)
    joint = prepare_joint(model, space, description).to(dtype)
    calibrate(joint, [batch])
    return JointStep(space, loss_fn, JointSettings(share_stem=share, **settings)), joint.train(), batch


def result(kind, **options):
    step, joint, batch = case(kind, **options)
    torch.manual_seed(7)
    loss = step(joint, batch)
    return loss, {name: parameter.grad for name, parameter in joint.named_parameters()}


NETWORKS = (Plain, Modules, Indices, InPlace, Skip, Twice, Dropped, Checkpointed, Reentrant, Words)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("settings", [{}, {"pinned_in_float": False}, {"self_distillation": True}, {"widths_per_step": 1}])
def test_loss_and_gradients_are_those_of_computing_everything_in_every_pass(kind, settings):
    loss, shared = result(kind, **settings)
    other, plain = result(kind, share=False, **settings)
    assert loss == pytest.approx(other, rel=1e-12)
    assert any(gradient is not None for name, gradient in plain.items() if name.startswith("stem"))
    for name, gradient in plain.items():
        assert (gradient is None) == (shared[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(shared[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_where_every_layer_has_a_choice():
    _, shared = result(Plain, pins=())
    _, plain = result(Plain, pins=(), share=False)
    for name, gradient in plain.items():
        torch.testing.assert_close(shared[name], gradient, rtol=0, atol=0, msg=name)


def test_gradients_with_a_frozen_stem():
    found = []
    for share in (True, False):
        step, joint, batch = case(InPlace, share=share)
        joint.stem.requires_grad_(False)
        joint.bn.requires_grad_(False)
        torch.manual_seed(7)
        step(joint, batch)
        found.append({name: parameter.grad for name, parameter in joint.named_parameters()})
    shared, plain = found
    assert shared["stem.weight"] is None
    for name, gradient in plain.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_in_bfloat16_are_summed_in_float32():
    """The sum of many small gradients: in bfloat16 it would stop growing."""
    found = []
    for share in (True, False):
        step, joint, batch = case(Modules, dtype=torch.float32, share=share)
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(7)
            step(joint, batch)
        found.append(joint.stem.weight.grad)
    torch.testing.assert_close(*found, rtol=0.05, atol=2e-3)


class Counting(TorchDispatchMode):
    """Counts the operations by name and the number of channels of their first tensor."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[
            func.overloadpacket.__name__, args[0].shape[1] if args and isinstance(args[0], torch.Tensor) and args[0].dim() > 1 else 0
        ] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("share", "expected"), [(True, 1), (False, 4)])
def test_the_stem_is_computed_once(share, expected):
    step, joint, batch = case(Modules, share=share)
    with Counting() as counting:
        step(joint, batch)
    assert counting.seen["convolution", 2] == expected
    assert counting.seen["convolution", 3] == 4
    assert counting.seen["native_group_norm", 3] == expected
    assert counting.seen["max_pool2d_with_indices", 3] == expected
    assert int(joint.bn.num_batches_tracked) == expected


def test_activations_that_are_computed_without_gradients_are_not_held():
    model, seen = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(weakref.ref(args[0])))
    with SharedStem(model, ()).step(), torch.no_grad():
        model(images(dtype=torch.float32))
        assert seen[0]() is None


def test_every_step_computes_the_stem_anew():
    step, joint, batch = case(Plain)
    first = step(joint, batch)
    with torch.no_grad():
        joint.stem.weight.mul_(-1)
    assert step(joint, batch) != first
    assert int(joint.bn.num_batches_tracked) == 2


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_that_is_written_into_between_two_passes(share):
    """Its values at the first pass are needed by the shared backward pass."""
    step, joint, batch = case(Plain)

    def noisy(model, images):
        return loss_fn(model, images.mul_(1.5))

    step = JointStep(step._space, noisy, JointSettings(share_stem=share))
    if share:
        with pytest.raises(TrainingError, match="writes into its batch.*share_stem"):
            step(joint, batch.clone())
    else:
        step(joint, batch.clone())


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_function_that_makes_a_new_tensor_in_every_pass(share):
    step, joint, batch = case(Plain)
    step = JointStep(step._space, lambda model, images: loss_fn(model, images * 1.0), JointSettings(share_stem=share))
    torch.manual_seed(7)
    step(joint, batch)
    torch.testing.assert_close(joint.stem.weight.grad, result(Plain)[1]["stem.weight"], rtol=1e-9, atol=1e-12)
    assert int(joint.bn.num_batches_tracked) == 4


def test_modules_are_as_they_were_after_a_step_and_after_a_failure():
    step, joint, batch = case(Plain)
    step(joint, batch)
    assert all("forward" not in vars(module) for module in joint.modules())
    copy.deepcopy(joint)(batch)

    def failing(model, batch):
        model(batch)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        JointStep(step._space, failing, JointSettings())(joint, batch)
    assert all("forward" not in vars(module) for module in joint.modules())
    joint.zero_grad()
    torch.manual_seed(7)
    step(joint, batch)
    again = joint.stem.weight.grad
    torch.testing.assert_close(again, result(Plain)[1]["stem.weight"])


def test_backward_hooks_see_every_pass():
    """Such a module is computed in every pass."""
    step, joint, batch = case(Plain)
    seen = []
    joint.bn.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(module))
    step(joint, batch)
    assert len(seen) == 4


def test_sharing_changes_the_measurement_only_by_the_running_statistics():
    model = Plain()
    batch = images(dtype=torch.float32)
    description = describe(model, batch)
    space = search_space(description.layers, (6, 3, 2), pins={"stem": EIGHT, "head": EIGHT})
    shared, plain = (
        learned_scale_importance(
            model, description, space, [batch], loss_fn, steps=3, calibration=[batch], settings=JointSettings(share_stem=share)
        )
        for share in (True, False)
    )
    assert shared.losses == pytest.approx(plain.losses, rel=1e-4)
    for name, row in plain.indicators.weight.items():
        assert list(shared.indicators.weight[name].values()) == pytest.approx(list(row.values()), rel=1e-3)
    assert [int(found.model.bn.num_batches_tracked) for found in (shared, plain)] == [3, 12]
