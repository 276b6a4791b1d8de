"""transformers: small random configurations of the usual encoders, decoders, vision and speech models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.compatibility.cases import BATCH, Case, image

_VOCABULARY = 128
_TOKENS = 16
_ENCODER: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": _VOCABULARY,
}
_LLAMA: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False}
_VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def cases() -> list[Case]:
    """All models of transformers."""
    return [
        _text("AlbertForMaskedLM", "AlbertConfig", **_ENCODER, embedding_size=32),
        _text("BertForSequenceClassification", "BertConfig", **_ENCODER),
        _text("BertForMaskedLM", "BertConfig", **_ENCODER),
        _text(
            "DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=_VOCABULARY, dim=64, n_layers=2, n_heads=4, hidden_dim=128
        ),
        _text("GemmaForCausalLM", "GemmaConfig", **_LLAMA, head_dim=16),
        _text("GPT2LMHeadModel", "GPT2Config", vocab_size=_VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=32, use_cache=False),
        _text("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
        _text("MambaForCausalLM", "MambaConfig", vocab_size=_VOCABULARY, hidden_size=64, num_hidden_layers=2, use_cache=False),
        _text("MixtralForCausalLM", "MixtralConfig", **_LLAMA, num_local_experts=4, experts_implementation="eager"),
        _text(
            "OPTForCausalLM",
            "OPTConfig",
            vocab_size=_VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            ffn_dim=128,
            num_attention_heads=4,
            word_embed_proj_dim=64,
            use_cache=False,
        ),
        _text("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA),
        _text("Qwen3ForCausalLM", "Qwen3Config", **_LLAMA, head_dim=16),
        _text("RobertaForSequenceClassification", "RobertaConfig", **_ENCODER),
        _text(
            "T5ForConditionalGeneration",
            "T5Config",
            decoder=True,
            vocab_size=_VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            use_cache=False,
        ),
        _vision("CLIPVisionModel", "CLIPVisionConfig", **_VISION),
        _vision("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 2, 1]),
        _vision(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=32,
            num_attention_heads=[1, 2, 3, 4],
        ),
        _vision(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        _vision("ViTForImageClassification", "ViTConfig", **_VISION),
        Case(
            "transformers/Wav2Vec2ForCTC",
            _made(
                "Wav2Vec2ForCTC",
                "Wav2Vec2Config",
                **_ENCODER,
                conv_dim=[32] * 3,
                conv_stride=[5, 2, 2],
                conv_kernel=[10, 3, 3],
                num_feat_extract_layers=3,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                apply_spec_augment=False,
            ),
            _waveform,
        ),
        Case("transformers/WhisperEncoder", _whisper_encoder, _spectrogram),
    ]


def _text(model: str, config: str, *, decoder: bool = False, **options: Any) -> Case:
    def inputs() -> dict[str, Any]:
        tokens = {
            "input_ids": torch.randint(3, _VOCABULARY, (BATCH, _TOKENS)),
            "attention_mask": torch.ones(BATCH, _TOKENS, dtype=torch.int64),
        }
        return tokens | ({"decoder_input_ids": torch.randint(3, _VOCABULARY, (BATCH, _TOKENS))} if decoder else {})

    return Case(f"transformers/{model}", _made(model, config, **options), inputs)


def _vision(model: str, config: str, **options: Any) -> Case:
    size = options.get("image_size", 64)
    return Case(f"transformers/{model}", _made(model, config, **options), lambda: {"pixel_values": image(size)()})


def _made(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made

    return build


def _whisper_encoder() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder: nn.Module = WhisperEncoder(
        WhisperConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, num_mel_bins=16, max_source_positions=32
        )
    )
    return encoder


def _waveform() -> dict[str, Any]:
    return {"input_values": torch.randn(BATCH, 800)}


def _spectrogram() -> dict[str, Any]:
    return {"input_features": torch.randn(BATCH, 16, 64)}
