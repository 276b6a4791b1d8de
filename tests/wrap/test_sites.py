from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitalloc.coupling import couple, requantizations
from bitalloc.layers import Description, Group, Meeting, Site, by_name
from bitalloc.policy import Bits
from bitalloc.wrap.describe import describe


def names(description: Description) -> list[str]:
    return [site.name for site in description.sites]


def reads(description: Description) -> dict[str, str]:
    return {layer.name: layer.site for layer in description.layers}


def test_a_residual_network_by_hand(networks: SimpleNamespace) -> None:
    found = describe(networks.Residual(), torch.zeros(2, 1, 4, 4))
    assert found.sites == (
        Site("input", "input", 16, ("stem",), 0, 1),
        Site("stem", "conv2d", 64, ("conv1",), 1, 4),
        Site("relu", "relu", 64, ("conv2",), 2, 3),
        Site("bn2", "batch_norm", 64, (), 3, 4),
        Site(":relu", "relu", 64, (), 4, 5),
        Site(":mean", "mean", 4, ("head",), 5, 6),
        Site("head", "linear", 3, (), 6, 6),
    )
    assert found.meetings == (Meeting(":relu", "add", ("stem", "bn2"), ":relu"),)
    assert found.groups == ()
    assert found.producers == {"bn1": "conv1", "bn2": "conv2"}
    assert found.graph == "trace"


def test_what_is_read_in_between_is_not_fused() -> None:
    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.after = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.after(F.relu(self.norm(y))), y

    found = describe(Taps(), torch.zeros(1, 1, 2, 2))
    assert names(found) == ["input", "conv", ":relu", "after"]
    assert (found.sites[1].born, found.sites[1].dies) == (1, 3)  # it is an output, and lives to the end


def test_views_are_one_site_and_parts_of_a_tensor_too() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.first(x.transpose(1, 2).contiguous()).chunk(2, -1)
            return self.left(left.flip(1).double().float()) - self.right(right.reshape(-1, 3)).view_as(left[..., :2])

    found = describe(Parts(), torch.zeros(1, 4, 5))
    assert reads(found) == {"first": "input", "left": "first", "right": "first"}
    assert found.meetings == (Meeting(":sub", "add", ("left", "right"), ":sub"),)


def test_written_memory_is_followed() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            same = y.view(-1, 4)
            y.sigmoid_()
            kept = torch.zeros(1, 4)
            kept[:, 1:3] = self.b(same)[:, :2]
            return self.c(kept)

    found = describe(Writes(), torch.zeros(1, 4))
    assert reads(found) == {"a": "input", "b": ":sigmoid", "c": ":write"}
    assert by_site(found)[":sigmoid"].made_by == "sigmoid"


def by_site(description: Description) -> dict[str, Site]:
    return {site.name: site for site in description.sites}


def test_concatenation_and_depthwise_followed_by_pointwise(networks: SimpleNamespace) -> None:
    found = describe(networks.Concatenated(), torch.zeros(1, 2, 4, 4))
    assert found.meetings == (Meeting(":concat", "concat", ("input", "grow"), ":concat"),)
    assert found.groups == (Group("depthwise-pointwise", ("depthwise", "pointwise")),)
    assert reads(found) == {"grow": "input", "depthwise": ":concat", "pointwise": "act"}
    assert by_site(found)["act"].made_by == "hardswish"


def test_no_pair_when_something_else_reads_the_depthwise_result(networks: SimpleNamespace) -> None:
    class Gated(networks.Concatenated):
        def forward(self, x: Tensor) -> Tensor:
            y = self.depthwise(torch.cat([x, self.grow(x)], 1))
            return self.pointwise(y) + y.mean()

    assert describe(Gated(), torch.zeros(1, 2, 4, 4)).groups == ()


@pytest.mark.parametrize("fused", [True, False])
def test_projections_of_one_attention_are_a_group(networks: SimpleNamespace, fused: bool) -> None:
    found = describe(networks.Attention(fused), torch.zeros(1, 5, 8))
    assert found.groups == (Group("qkv", ("q", "k", "v")),)
    assert by_site(found)["norm"].readers == ("q", "k", "v")
    assert reads(found)["out"] == (":attention" if fused else ":matmul#2")
    assert found.meetings == (Meeting(":add", "add", ("input", "out"), ":add"),)
    left_out = {entry.name: entry.macs for entry in found.not_counted}
    assert left_out[""] == 2 * 2 * 5 * 5 * 4  # two products, two heads


def test_queries_and_keys_of_a_cross_attention_through_norms_and_rotary_positions() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.angle = nn.Parameter(torch.ones(8))

        def rotated(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, -1)
            return x * self.angle.cos() + torch.cat([-right, left], -1) * self.angle.sin()

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            q, k = self.rotated(self.norm(self.q(x))), self.rotated(self.k(memory))
            return F.scaled_dot_product_attention(q, k, self.v(memory))

    found = describe(Cross(), [torch.zeros(1, 3, 8), torch.zeros(1, 4, 8)])
    assert found.groups == (Group("qkv", ("k", "v")),)
    assert found.meetings == ()  # a rotation is one function of one tensor
    assert names(found)[:2] == ["input.x", "input.memory"]
    assert [site.made_by for site in found.sites if "rotary" in site.name] == ["rotary", "rotary"]


def test_constants_do_not_meet() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.position, self.token = nn.Linear(4, 4), nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token.expand(x.shape[0], -1, -1), self.layer(x) + self.position], 1)

    found = describe(Constants(), torch.zeros(2, 3, 4))
    assert found.meetings == ()
    assert names(found) == ["input", ":add", ":concat"]


@pytest.mark.parametrize("functional", [True, False])
def test_tied_embeddings(networks: SimpleNamespace, functional: bool) -> None:
    found = describe(networks.Language(functional), torch.zeros(1, 5, dtype=torch.long))
    layers = by_name(found.layers)
    if functional:  # one layer, which is looked up and multiplied with
        assert (layers["table"].kind, layers["table"].calls, layers["table"].macs) == ("linear", 2, 5 * 8 * 11)
        assert layers["table"].site == "block:add"
    else:
        assert (layers["table"].kind, layers["table"].weight_only) == ("embedding", True)
        assert layers["head"].same_weight_as == "table"
    assert found.first == ("table",)


def test_a_layer_that_reads_several_tensors_has_one_label() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.own = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.shared(x))
            return self.shared(y) + self.own(y)

    found = describe(Shared(), torch.zeros(1, 4))
    assert reads(found) == {"shared": "input", "own": "input"}
    assert by_site(found)[":relu"].readers == ("shared", "own")


def test_functions_in_several_steps_are_one_site() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.swish = Swish()

        def forward(self, x: Tensor) -> Tensor:
            x = self.two(self.swish(self.one(x)))
            x = x * torch.sigmoid(x)
            return self.three(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    found = describe(Steps(), torch.zeros(1, 4))
    assert [(site.name, site.made_by) for site in found.sites] == [
        ("input", "input"),
        ("swish", "silu"),
        (":silu", "silu"),
        (":mul", "mul"),
        ("three", "linear"),
    ]


def test_every_reader_and_every_life_is_consistent(network: tuple[nn.Module, Tensor]) -> None:
    found = describe(*network)
    sites = by_site(found)
    assert len(sites) == len(found.sites)
    assert all(layer.name in sites[layer.site].readers for layer in found.layers if not layer.weight_only)
    assert all(0 <= site.born <= site.dies for site in found.sites)
    assert [site.born for site in found.sites] == sorted(site.born for site in found.sites)
    for meeting in found.meetings:
        assert all(sites[operand].dies >= sites[meeting.result].born for operand in meeting.operands)


def test_max_pooling_keeps_the_scale_of_what_it_reads() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
            self.body, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return self.body(self.pool(x)) + self.pool(self.skip(x))

    found = describe(Stem(), torch.zeros(1, 3, 8, 8))
    pooled = [meeting.operands for meeting in found.meetings if meeting.kind == "max_pool"]
    assert pooled == [(":relu",), ("skip",)]
    # What skip reads has a quantizer of its own, and what the pooled tensor is read by another: one is brought to the other's scale.
    bits = {layer.name: Bits(4, 4) for layer in found.layers}
    assert requantizations(found, bits).operands == 1
    assert couple(found, "strict").act == (("body", "skip"),)
