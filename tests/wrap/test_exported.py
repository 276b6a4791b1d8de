import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bitalloc.errors import DescribeError
from bitalloc.wrap.describe import describe
from bitalloc.wrap.exported import describe_exported


def test_export_and_trace_agree(network: tuple[nn.Module, Tensor]) -> None:
    model, example = network
    traced = describe(model.train(), example)
    exported = describe(model, example, graph="export")
    assert (traced.graph, exported.graph) == ("trace", "export")
    assert {entry.name: entry for entry in exported.not_counted} == {entry.name: entry for entry in traced.not_counted}
    assert dataclasses.replace(exported, graph="trace", not_counted=()) == dataclasses.replace(traced, not_counted=())
    assert model.training


def test_a_file_gives_what_the_model_gives(tmp_path: Path, networks: SimpleNamespace) -> None:
    model, example = networks.Residual().eval(), torch.zeros(2, 1, 4, 4)
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    found = describe_exported(program)
    assert found == dataclasses.replace(describe(model, example), graph="export")
    assert describe_exported(program, example) == found


def test_a_file_tells_tied_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(self.table(ids)))
            return out

    model, ids = Tied().eval(), torch.zeros(2, 3, dtype=torch.long)
    torch.export.save(torch.export.export(model, (ids,)), tmp_path / "model.pt2")
    found = describe_exported(torch.export.load(tmp_path / "model.pt2"))
    assert [(layer.name, layer.same_weight_as) for layer in found.layers] == [("table", ""), ("mix", ""), ("head", "table")]
    assert found == dataclasses.replace(describe(model, ids), graph="export")


def test_a_model_that_cannot_be_exported_is_one_clear_sentence() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(DescribeError, match='(?s)the export of Branches failed.*graph="trace"'):
        describe(Branches(), torch.ones(1, 2), graph="export")
    assert len(describe(Branches(), torch.ones(1, 2)).layers) == 1


def test_wrong_shapes_for_a_programme_are_one_clear_sentence() -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
    with pytest.raises(DescribeError, match="the exported programme failed.*shapes"):
        describe_exported(program, torch.zeros(1, 3))
