from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from bitalloc.placement import module_device, to_device

META = torch.device("meta")


@dataclass(frozen=True)
class Batch:
    images: Tensor
    name: str


class Movable:
    def __init__(self):
        self.place = None

    def to(self, place):
        self.place = place
        return self


def test_a_dataclass_is_moved_and_keeps_its_class():
    batch = Batch(torch.ones(2), "one")
    moved = to_device([batch], META)[0]
    assert isinstance(moved, Batch)
    assert (moved.images.device.type, moved.name) == ("meta", "one")
    assert batch.images.device.type == "cpu"


def test_objects_that_know_how_to_move_do_so():
    assert to_device({"x": Movable()}, META)["x"].place == META
    assert to_device(pack_sequence([torch.ones(2, 1)]), torch.device("cpu")).data.shape == (2, 1)
    model = nn.Linear(1, 1)
    assert to_device(model, META) is model
    assert module_device(model).type == "cpu"
    assert to_device(Batch, META) is Batch
