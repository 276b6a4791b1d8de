"""Quantized inputs and weights are not kept for the backward pass, and nobody can tell by the gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bitalloc as ba
from bitalloc.quantizers import use_fake_quantize

SHAPES = {
    "conv1d": (nn.Conv1d(4, 6, 3), (5, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 9, 9)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (5, 4, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (5, 4, 9, 9)),
    "linear": (nn.Linear(7, 6), (5, 7)),
    "tokens": (nn.Linear(7, 6), (5, 3, 7)),
}


def quantized(module, x, widths="w4a4"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU(), copy.deepcopy(module))
    description = ba.describe(network, x[:1])
    policy = ba.Policy.uniform(description.layers, ba.Bits.parse(widths), {})
    return ba.quantize(network, policy, calibration=[x]).train()


def gradients(network, x, run=None):
    network.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = (run or network)(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [x.grad, *(parameter.grad for parameter in network.parameters())]


def kept(network, x):
    """The same pass with everything kept, as PyTorch does by itself."""
    with disable_saved_tensors_hooks("everything is kept"):
        return gradients(network, x)


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_tensors_that_were_kept_bit_for_bit(name, mode):
    module, shape = SHAPES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with use_fake_quantize(mode):
        network = quantized(module, x)
        found, expected = gradients(network, x), kept(network, x)
    assert len(found) > 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_channels_last_and_half_precision_products_keep_their_gradients(mode):
    x = torch.randn(5, 4, 9, 9).to(memory_format=torch.channels_last)
    with use_fake_quantize(mode), torch.autocast("cpu", torch.bfloat16):
        network = quantized(SHAPES["conv2d"][0], x).to(memory_format=torch.channels_last)
        found, expected = gradients(network, x), kept(network, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_deep_network_holds_no_quantized_copies_after_the_forward_pass():
    layers, x = 6, torch.randn(4, 16, 32, 32)
    blocks = [module for _ in range(layers) for module in (nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))]
    network = nn.Sequential(*blocks)
    policy = ba.Policy.uniform(ba.describe(network, x[:1]).layers, ba.Bits.parse("w4a4"), {})
    network = ba.quantize(network, policy, calibration=[x]).train()
    with disable_saved_tensors_hooks("everything is kept"):
        everything = held_bytes(network, x)
    dropped = everything - held_bytes(network, x)
    copies = layers * (x.numel() + 16 * 16 * 9) * 4
    assert copies * 0.99 <= dropped <= copies * 1.01


def held_bytes(network, x):
    """What a forward pass allocates and still holds at its end, by PyTorch's own count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = network(x)
    assert out.requires_grad  # held while it is counted
    return sum(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


def test_the_gradient_of_a_gradient_goes_through():
    x = torch.rand(3, 4, 6, 6) + 0.1
    network = quantized(nn.Conv2d(4, 5, 3), x)

    def slopes():
        network.zero_grad()
        inputs = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(network(inputs).square().sum(), inputs, create_graph=True)
        grad.square().sum().backward()
        return [inputs.grad, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]

    found = slopes()
    with disable_saved_tensors_hooks("everything is kept"):
        expected = slopes()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].abs().sum() > 0


def test_the_width_of_the_forward_pass_counts_though_it_was_switched_before_the_backward_pass():
    x = torch.randn(5, 4, 9, 9)
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3))
    description = ba.describe(network, x[:1])
    joint = ba.wrap.prepare_joint(network, ba.search_space(description, (8, 2)), description)
    ba.calibrate(joint, [x])

    def after(switched):
        joint.zero_grad()
        ba.wrap.switch(joint, {"1": ba.Bits(2, 2)})
        out = joint(x).square().sum()
        ba.wrap.switch(joint, {"1": ba.Bits(switched, switched)})
        out.backward()
        return joint[1].weight.grad.clone()

    assert torch.equal(after(8), after(2))


def test_activation_checkpointing_around_a_layer_saves_what_it_saves_without_us():
    x = torch.randn(5, 4, 9, 9)
    network = quantized(SHAPES["conv2d"][0], x)
    found = gradients(network, x, lambda x: checkpoint(network, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(found, kept(network, x), strict=True))
    seen = []
    with saved_tensors_hooks(lambda tensor: seen.append(tensor.shape) or tensor.detach(), lambda tensor: tensor):
        network(x.requires_grad_())
    assert seen.count(x.shape) >= 2  # what the quantizer keeps, and the quantized copy too
    with save_on_cpu():
        offloaded = gradients(network, x)
    assert all(torch.equal(a, b) for a, b in zip(offloaded, found, strict=True))


@pytest.mark.parametrize("wanted", ["everything", "weight", "input"])
@pytest.mark.parametrize("changed", ["input", "weight"])
def test_what_is_changed_in_place_before_the_backward_pass_is_an_error_as_it_is_without_quantization(changed, wanted):
    x = torch.randn(5, 4, 9, 9)
    network = quantized(nn.Conv2d(4, 6, 3), x)
    layer, inputs = network[1], x.relu().requires_grad_()
    again = inputs * 1
    out = layer(again)
    with torch.no_grad():
        (again if changed == "input" else layer.weight).mul_(2)
    asked = {"everything": [inputs, layer.weight], "weight": [layer.weight], "input": [inputs]}[wanted]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), asked)


def test_a_quantized_input_that_a_hook_changes_counts_as_changed():
    x = torch.randn(5, 4, 9, 9)
    network = quantized(nn.Conv2d(4, 6, 3), x)
    network[1].input_quantizer.register_forward_hook(lambda module, args, out: out.mul_(2))
    found, expected = gradients(network, x), kept(network, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_distributed_tensor_goes_through_a_quantized_layer():
    """Its storage cannot be asked for an address."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

        mesh = init_device_mesh("cpu", (1,))
        x = torch.randn(5, 7)
        network = quantized(nn.Linear(7, 6), x)
        expected = gradients(network, x)
        for parameter in list(network.parameters()):
            parameter.grad = None
        torch.distributed.tensor.distribute_module(network, mesh)
        out = network(distribute_tensor(x, mesh, [Replicate()]))
        (out.full_tensor() * torch.linspace(-1, 1, out.numel()).view_as(x[:, :6])).sum().backward()
        weight = network[1].weight.grad.full_tensor()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(weight, dict(zip([name for name, _ in network.named_parameters()], expected[1:], strict=True))["1.weight"])


def test_a_layer_with_one_side_in_floating_point_is_left_alone():
    x = torch.randn(5, 4, 9, 9)
    network = quantized(nn.Conv2d(4, 6, 3), x, "w4a32")
    inputs = x.relu().requires_grad_()
    out = network[1](inputs)
    weight = network[1].weight_quantizer(network[1].weight)
    assert torch.equal(out, F.conv2d(inputs, weight, network[1].bias))
    with torch.no_grad():
        inputs.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
