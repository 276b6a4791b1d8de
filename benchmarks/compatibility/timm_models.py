"""timm: one small model of each of more than forty families."""

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.compatibility.cases import CLASSES, Case, image

_CONVOLUTIONAL = {
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "cspdarknet53": 64,
    "davit_tiny": 64,
    "dla46_c": 64,
    "dpn48b": 64,
    "ecaresnet26t": 64,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "efficientnet_b0": 64,
    "efficientnetv2_rw_t": 128,
    "efficientvit_b0": 64,
    "ese_vovnet19b_slim_dw": 64,
    "fasternet_t0": 64,
    "fastvit_t8": 64,
    "ghostnet_050": 64,
    "ghostnetv2_100": 64,
    "hgnetv2_b0": 64,
    "hrnet_w18_small": 64,
    "inception_next_atto": 64,
    "lambda_resnet26t": 128,
    "lcnet_035": 64,
    "mambaout_femto": 64,
    "mixnet_s": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64,
    "mobileone_s0": 64,
    "mobilevit_xxs": 64,
    "nfnet_l0": 64,
    "nf_regnet_b0": 64,
    "poolformer_s12": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "repghostnet_050": 64,
    "repvgg_a0": 64,
    "repvit_m0_9": 64,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "resnet10t": 64,
    "resnetv2_50x1_bit": 64,
    "rexnet_100": 64,
    "selecsls42": 64,
    "seresnet18": 64,
    "skresnet18": 64,
    "starnet_s1": 64,
    "swiftformer_xs": 64,
    "tiny_vit_5m_224": 224,
    "tf_mobilenetv3_small_075": 64,
    "tresnet_m": 64,
    "xception41p": 96,
}
"""Model to image size, which such a network does not need to know."""
_FIXED_SIZE: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3},
    "botnet26t_256": {"img_size": 128},
    "cait_xxs24_224": {"img_size": 64},
    "coat_tiny": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 224},
    "convit_tiny": {"img_size": 64},
    "crossvit_tiny_240": {"img_size": 240},
    "deit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "gcvit_xxtiny": {"img_size": 224},
    "gmlp_s16_224": {"img_size": 64},
    "hiera_tiny_224": {"img_size": 224},
    "levit_128s": {"img_size": 224},
    "maxvit_rmlp_pico_rw_256": {"img_size": 256},
    "mixer_s32_224": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64},
    "nest_tiny": {"img_size": 64},
    "pit_ti_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "samvit_base_patch16": {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3},
    "sequencer2d_s": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 4},
    "tnt_s_patch16_224": {"img_size": 64},
    "twins_svt_small": {"img_size": 64},
    "visformer_tiny": {"img_size": 64},
    "vit_tiny_patch16_224": {"img_size": 64},
    "vit_relpos_small_patch16_224": {"img_size": 64},
    "volo_d1_224": {"img_size": 64},
    "xcit_nano_12_p16_224": {"img_size": 64},
}
"""Model to options; its image size is among them."""


def cases() -> list[Case]:
    """All models of timm."""
    free = [Case(f"timm/{name}", _made(name), image(size)) for name, size in _CONVOLUTIONAL.items()]
    fixed = [Case(f"timm/{name}", _made(name, **options), image(options["img_size"])) for name, options in _FIXED_SIZE.items()]
    return [*free, *fixed]


def _made(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return model

    return build
