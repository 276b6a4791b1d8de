"""What a person reads: nothing is cut in 80 columns, and everything that is left out is named."""

import io
from typing import Any

import pytest
from rich.console import Console

from bitalloc.pipeline import tables

WIDTHS = (80, 120)
LONG = "backbone.stages.3.blocks.11.mobile_inverted_conv.depthwise_conv.0.layer"


def _text(view: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def _joined(text: str) -> str:
    return "".join(text.split())


def _layer(name: str, **changed: Any) -> dict[str, Any]:
    base = {"name": name, "kind": "conv2d", "weight_shape": [2048, 1024, 1, 1], "macs": 102_760_448, "weight_numel": 2_097_152}
    shares = {"macs_share": 0.25, "bitops_share": 0.125, "weight_bytes_share": 0.5}
    return {**base, **shares, "groups": 1, "calls": 1, "tied_weights": [], "tied_activations": [], "note": "", **changed}


def _layers(layers: list[dict[str, Any]], not_counted: list[dict[str, Any]]) -> dict[str, Any]:
    count = {"operands": 3, "width_changes": 1, "numel": 4096}
    return {
        "layers": layers,
        "not_counted": not_counted,
        "meetings": [{"kind": "add"}, {"kind": "max_pool"}, {"kind": "concat"}],
        "requantizations": count,
    }


def _level(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "budgets": [{"name": "bitops", "limit": 55_313_000_000.0, "unit": "bitops", "used": 55_312_999_424.0}],
        "policy_edited": False,
        "search_status": "optimal",
        "search_seconds": 0.35,
        "mean_weight_bits": 3.25,
        "mean_act_bits": 4.5,
        "weight_bytes": 8_123_456.0,
        "bitops": 55_312_999_424.0,
        "mixed_top1": 0.769,
        "uniform_top1": 1.0,
        "reversed_top1": None,
        "onnx_agreement": 0.99951,
        "alpha": 2.25,
        "alpha_reason": "ranges 9 / 4",
        "projected": ["conv1 act at 4 bits: 0.1 to 0.2"],
        "supernet": None,
        "attribution_distance": None,
        **changed,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("levels", [["w3a4"], ["w3a4_12x", "w2a2_size", "w8a8"], ["[a] very long name of a level for a table"] * 2])
def test_the_summary(width: int, levels: list[str]) -> None:
    convention = "BitOps = sum over 54 layers of MACs x weight bits x activation bits; pinned: conv1 at w8a8"
    summary = {"name": "imagenet_resnet50", "float_top1": 0.775, "levels": list(map(_level, levels)), "bitops_convention": convention}
    summary["training_notes"] = []
    summary["scoring"] = {"method": "limpq", "source": None, "seconds": 4321.0, "images": 3_000_000}
    text = _text(tables.summary_table(summary), width)
    for part in ("76.90 %", "100.00 %", "3.25", "4.50", "8,123,456", "55,312,999,424", "optimal", "99.95 %", "ONNX Runtime agrees"):
        assert part in text, part
    assert "alpha 2.25 (ranges 9 / 4)" in " ".join(text.split())
    assert "monotone: conv1 act at 4 bits: 0.1 to 0.2" in " ".join(text.split())
    assert "55,312,999,424 of at most 55,313,000,000 bitops" in " ".join(text.split())
    assert all(_joined(part) in _joined(text) for part in (convention, "imagenet_resnet50: float model 77.50 % top-1"))
    assert "reversed" not in text
    if len(levels) < 3:
        return
    assert "reversed" in _text(tables.summary_table({**summary, "levels": [_level("a", reversed_top1=0.5)]}), width)
    assert "edited by hand" in _text(tables.summary_table({**summary, "levels": [_level("a", policy_edited=True)]}), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_layers(width: int) -> None:
    norms = [{"name": f"layer{k}.bn", "type": "BatchNorm2d", "reason": "normalisation", "macs": 0} for k in range(40)]
    other = [{"name": "", "type": "Net", "reason": "its own parameter scale", "macs": 1_234}]
    report = _layers([_layer("layer4.0.downsample.0"), _layer("fc", kind="linear", note="pinned at w8a8")], norms + other)
    text = _text(tables.layers_table(report), width)
    (line,) = (line for line in text.splitlines() if "downsample" in line)
    assert line.split() == ["layer4.0.downsample.0", "conv2d", "2048x1024x1x1", "102,760,448", "2,097,152", "12.5%", "50.0%"]
    # One paragraph a reason, with all names.
    assert text.count("not counted") == 2
    assert all(f"layer{k}.bn" in text for k in range(40))
    assert "not counted (Net, its own parameter scale): (the model itself), 1,234 MACs" in text
    assert "fc: pinned at w8a8" in text
    assert "2 additions and concatenations" in text
    assert "3 operands (4,096 elements)" in " ".join(text.split())
    assert "tie" not in text
    assert "groups" not in text
    assert "calls" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_layer_name_is_folded_and_never_cut(width: int) -> None:
    report = _layers([_layer(LONG, groups=960, calls=2)], [])
    text = _text(tables.layers_table(report), width)
    header = next(line for line in text.splitlines() if "kind" in line)
    assert LONG in "".join(line[: header.index("kind")].strip() for line in text.splitlines())
    assert "960" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_tied_layers_share_a_label_that_is_explained(width: int) -> None:
    query, key = _layer("query", tied_activations=["key"]), _layer("key", tied_activations=["query"], tied_weights=["head"])
    text = _text(tables.layers_table(_layers([query, key, _layer("head", tied_weights=["key"])], [])), width)
    rows = {name: next(line for line in text.splitlines() if line.split()[:1] == [name]).split() for name in ("query", "key", "head")}
    shared = next(label for label in rows["query"] if f"{label}: one activation width for query, key" in text)
    assert shared in rows["key"]
    assert shared not in rows["head"]
    assert "one weight width for key, head" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_widths_of_every_layer_and_level(width: int) -> None:
    def report(bits: str) -> dict[str, Any]:
        budgets = [{"name": "weight_bytes", "limit": 70.0, "unit": "weight_bytes", "used": 69.0}]
        changes = [{"layer": LONG, "side": "weight", "width": 3}]
        return {
            "changes": changes,
            "policy": {LONG: bits, "[fc]": "w8a8"},
            "status": "optimal",
            "objective": 0.25,
            "alpha": {"value": 1.5, "reason": "as requested"},
            "budgets": budgets,
        }

    text = _text(tables.policy_table({"w3a3": report("w2a4"), "w2a2": report("w3a2")}), width)
    assert "w2a4" in text
    assert "w3a2" in text
    assert "[fc]" in text
    assert "w2a2: optimal, importance 0.25, alpha 1.5" in text
    assert "w2a2: weight_bytes 69 of at most 70 weight_bytes" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_accuracies(width: int) -> None:
    levels = {"w3a3": {"mixed_top1": 0.9, "uniform_top1": 0.8, "reversed_top1": None}}
    text = _text(tables.accuracy_table({"float_top1": 0.95, "levels": levels}), width)
    (line,) = (line for line in text.splitlines() if "w3a3" in line)
    assert line.split() == ["w3a3", "90.00", "%", "80.00", "%", "-"]
    assert "float model 95.00 %" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_summary_of_a_search_on_another_dataset(width: int) -> None:
    end = {"name": "bitops", "expected": 101_000.0, "limit": 100_000.0, "unit": "bitops"}
    searched = {"method": "gmpq", "seconds": 12.0, "images": 900, "budgets": [end], "entropy": 0.25}
    level = _level("w3a4", alpha=None, alpha_reason=None, supernet=searched, attribution_distance={"mixed": 0.125, "uniform": 0.5})
    summary = {
        "name": "transfer",
        "float_top1": 0.5,
        "levels": [level],
        "bitops_convention": "counted",
        "training_notes": [],
        "scoring": {"method": "gmpq", "source": {"data": "bitalloc.data:cifar10"}, "seconds": 12.0, "images": 900},
    }
    text = " ".join(_text(tables.summary_table(summary), width).split())
    assert "gmpq ended at an expected bitops of 101,000, +1.0% from 100,000 bitops" in text
    assert "entropy of the choices 0.250" in text
    assert "gmpq took 12 s and 900 images on bitalloc.data:cifar10" in text
    assert "mixed, ARD 0.125" in text
    assert "alpha" not in text
