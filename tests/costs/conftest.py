"""A residual network that was described by hand."""

import pytest

from bitalloc.layers import Description, LayerInfo, Meeting, Site


@pytest.fixture(scope="session")
def residual() -> Description:
    """Stem, a block whose shortcut has its own convolution, a block with a plain shortcut, and a classifier.

    The second convolution of each block and its shortcut meet in an addition; what the pool averages no layer reads.
    """
    layers = (
        LayerInfo("stem", "conv2d", (4, 3, 3, 3), 6912, 192, 256, site="input"),
        LayerInfo("a.conv1", "conv2d", (8, 4, 3, 3), 4608, 256, 128, site="relu"),
        LayerInfo("a.conv2", "conv2d", (8, 8, 3, 3), 9216, 128, 128, site="a.relu1"),
        LayerInfo("a.down", "conv2d", (8, 4, 1, 1), 512, 256, 128, site="relu"),
        LayerInfo("b.conv", "conv2d", (8, 8, 3, 3), 9216, 128, 128, site="a.relu2"),
        LayerInfo("fc", "linear", (10, 8), 80, 8, 10, bias_numel=10, site="pool"),
    )
    sites = (
        Site("input", "input", 192, ("stem",), 0, 1),
        Site("relu", "relu", 256, ("a.conv1", "a.down"), 1, 4),
        Site("a.relu1", "relu", 128, ("a.conv2",), 2, 3),
        Site("a.conv2", "conv2d", 128, (), 3, 5),
        Site("a.down", "conv2d", 128, (), 4, 5),
        Site("a.relu2", "relu", 128, ("b.conv",), 5, 7),
        Site("b.conv", "conv2d", 128, (), 6, 7),
        Site("b.relu", "relu", 128, (), 7, 8),
        Site("pool", "mean", 8, ("fc",), 8, 9),
        Site("fc", "linear", 10, (), 9, 9),
    )
    meetings = (
        Meeting("a.relu2", "add", ("a.conv2", "a.down"), "a.relu2"),
        Meeting("b.relu", "add", ("b.conv", "a.relu2"), "b.relu"),
    )
    norms = {f"{name}.bn": name for name in ("stem", "a.conv1", "a.conv2", "a.down", "b.conv")}
    return Description(layers, (), norms, ("stem",), ("fc",), sites, meetings)
