import sys

import pytest
import torch
from torch import nn

from bitalloc.errors import ExportError, MissingDependencyError
from bitalloc.export import deploy, export_onnx, verify_onnx
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import quantize


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(32, 6)
    model = deploy(quantize(net, Policy({"0": Bits(8, 8)}, {"0": (4, 6)}), calibration=[x]), x).model
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(model, x, path)
    return model, path, x


class Altered(nn.Module):
    """The model with its logits turned round for the first ``count`` samples of a batch."""

    def __init__(self, model, count):
        super().__init__()
        self.model, self.count = model, count

    def forward(self, x):
        out = self.model(x)
        return torch.cat([-out[: self.count], out[self.count :]])


def test_agreement_is_the_share_of_equal_predictions_and_the_difference_is_the_largest(exported):
    model, path, x = exported
    labels = torch.zeros(len(x))
    same = verify_onnx(path, model, [(x[:20], labels[:20]), (x[20:], labels[20:])])
    assert (same.images, same.agreement) == (32, 1.0)
    assert same.max_abs_diff <= 1e-6
    other = verify_onnx(path, Altered(model, 8), [(x, labels)])
    assert other.agreement == 24 / 32
    assert other.max_abs_diff == pytest.approx(2 * float(model(x[:8]).abs().max()), rel=1e-5)


def test_the_mode_of_the_model_is_left_as_it_is(exported):
    model, path, x = exported
    altered = Altered(model, 1).train()
    verify_onnx(path, altered, [(x,)])
    assert altered.training


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(keep, exported, tmp_path):
    model, path, x = exported
    content = path.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(ExportError, match=r"cut\.onnx"):
        verify_onnx(cut, model, [(x,)])


def test_a_file_of_noise_is_an_error_that_names_it(exported, tmp_path):
    model, _, x = exported
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ExportError, match=r"noise\.onnx"):
        verify_onnx(noise, model, [(x,)])


def test_a_missing_file_is_an_error_that_names_it(exported, tmp_path):
    model, _, x = exported
    with pytest.raises(ExportError, match=r"absent\.onnx does not exist"):
        verify_onnx(tmp_path / "absent.onnx", model, [(x,)])


def test_an_empty_loader_is_an_error(exported):
    model, path, _ = exported
    with pytest.raises(ExportError, match="no image"):
        verify_onnx(path, model, [])


def test_a_logit_that_is_not_finite_is_an_error(exported):
    model, path, x = exported
    with pytest.raises(ExportError, match="not finite"):
        verify_onnx(path, nn.Sequential(model, nn.Threshold(1e9, float("nan"))), [(x,)])


def test_another_model_is_an_error(exported):
    model, path, x = exported
    with pytest.raises(ExportError, match="another model"):
        verify_onnx(path, nn.Sequential(model, nn.Unflatten(1, (2, 2))), [(x,)])


def test_inputs_of_another_shape_are_an_error(exported):
    _, path, _ = exported
    with pytest.raises(ExportError, match="cannot be run on a batch of shape"):
        verify_onnx(path, nn.Flatten(), [(torch.zeros(2, 5),)])


def test_missing_onnxruntime_is_a_sentence_that_says_what_to_install(exported, monkeypatch):
    model, path, x = exported
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'bitalloc\[onnx\]'"):
        verify_onnx(path, model, [(x,)])
