"""Makes torchvision's Python importable where its compiled operators do not fit the installed PyTorch.

A wheel of torchvision from PyPI is linked against PyTorch with CUDA. Beside a CPU-only PyTorch its library does not load, and
``import torchvision`` fails on the missing operator ``torchvision::nms``. For tests and benchmarks only.
"""

import torch
from torch import Tensor

_LIBRARY: list[torch.library.Library] = []
"""The definitions last as long as this object."""


def provide_torchvision_operators() -> None:
    """Defines ``torchvision::nms`` and ``torchvision::qnms`` in plain PyTorch, unless the compiled ones load. Call it before the import.

    RoI align needs nothing: torchvision has it in plain PyTorch and takes it when the compiled one is missing.
    """
    if _LIBRARY or _compiled_operators_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    _LIBRARY.append(library)
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", non_maximum_suppression, "CPU")
    import torchvision.extension

    # nms() asks this first. roi_align() has its own reference to the old function, and so takes the plain implementation.
    torchvision.extension._has_ops = lambda: True


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes (n, 4) that no better one overlaps by more than ``threshold`` (intersection over union), best first."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = scores.argsort(descending=True, stable=True)
    while left.numel():
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[left, :2], boxes[best, :2])
        high = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        left = left[shared / (area[left] + area[best] - shared) <= threshold]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _compiled_operators_load() -> bool:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # The failed import leaves its parts behind in sys.modules, but not the package; the next import runs it again.
        return False
    return True
