"""Labels that are no class of the model are told as such."""

import pytest
import torch
from torch import Tensor, nn

from bitalloc.errors import TrainingError
from bitalloc.training import LossFunction, cross_entropy_loss, distillation_loss


@pytest.mark.parametrize("labels", [torch.tensor([0, 26]), torch.tensor([-3, 1])])
@pytest.mark.parametrize("loss", [cross_entropy_loss(), cross_entropy_loss(0.0), distillation_loss(nn.Linear(4, 10))])
def test_the_error_names_the_classes_and_the_labels(loss: LossFunction, labels: Tensor) -> None:
    with pytest.raises(
        TrainingError, match=rf"gives 10 classes, expected labels from 0 to 9, but .* from {labels.min()} to {labels.max()}"
    ):
        loss(nn.Linear(4, 10), (torch.zeros(2, 4), labels))
