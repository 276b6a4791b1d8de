"""torchvision: classification (one a family), video, segmentation and detection."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compatibility.cases import BATCH, CLASSES, Case, image

_CLASSIFICATION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 32,
    "vit_b_16": 64,
    "wide_resnet50_2": 64,
}
"""Model to image size."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 64},
}
_SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
_SMALL = {"min_size": 64, "max_size": 64}
_FEW_PROPOSALS = {
    f"rpn_{when}_nms_top_n_{mode}": count for when, count in (("pre", 64), ("post", 16)) for mode in ("train", "test")
}  # fmt: skip
_DETECTION: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": _SMALL | _FEW_PROPOSALS,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _SMALL | _FEW_PROPOSALS,
    "maskrcnn_resnet50_fpn": _SMALL | _FEW_PROPOSALS,
    "retinanet_resnet50_fpn": _SMALL | {"topk_candidates": 32},
    "fcos_resnet50_fpn": _SMALL | {"topk_candidates": 32},
    "ssd300_vgg16": {"topk_candidates": 32},
    "ssdlite320_mobilenet_v3_large": {"topk_candidates": 32},
}
_VIDEO = {"r3d_18": (8, 32), "swin3d_t": (4, 64)}
"""Model to frames and image size."""


def cases() -> list[Case]:
    """All models of torchvision."""
    return [
        *(
            Case(f"torchvision/{name}", _made(name, num_classes=CLASSES, **_OPTIONS.get(name, {})), image(size))
            for name, size in _CLASSIFICATION.items()
        ),
        *(Case(f"torchvision/{name}", _made(name, num_classes=CLASSES), _clip(*sizes)) for name, sizes in _VIDEO.items()),
        *(Case(f"torchvision/{name}", _made(name, weights_backbone=None, num_classes=CLASSES), image(64)) for name in _SEGMENTATION),
        *(
            Case(f"torchvision/{name}", _made(name, weights_backbone=None, num_classes=CLASSES, **sizes), _images, _images_with_boxes(name))
            for name, sizes in _DETECTION.items()
        ),
    ]


def _made(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return model

    return build


def _clip(frames: int, size: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(BATCH, 3, frames, size, size)


def _images() -> Any:
    """A detector's input: one positional argument, a list of images."""
    return ([torch.rand(3, 64, 64) for _ in range(BATCH)],)


def _images_with_boxes(name: str) -> Callable[[], Any]:
    def inputs() -> Any:
        target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        if name.startswith("maskrcnn"):
            target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
        return (*_images(), [dict(target) for _ in range(BATCH)])

    return inputs
