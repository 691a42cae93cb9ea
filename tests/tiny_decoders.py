"""Tiny random diffusers pipelines, saved to a folder: the real classes, a few thousand weights, no network."""

from pathlib import Path

import torch

SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save_tiny_stable_diffusion(
    folder: str | Path, width: int = 32, text_length: int = 77, prediction_type: str = "epsilon"
) -> Path:
    """A Stable Diffusion of 32 x 32 pixels; conditioning: `text_length` x `width` (a multiple of 8)."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer, text_encoder = _clip(width, text_length)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_schedule(prediction_type), set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(pipeline, folder)


def save_tiny_text_to_video(folder: str | Path, width: int = 32, text_length: int = 77) -> Path:
    """A text-to-video pipeline; its folder's generation_defaults.json says 4 frames of 32 x 32 pixels."""
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(0)
    tokenizer, text_encoder = _clip(width, text_length)
    unet = UNet3DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    scheduler = DDIMScheduler(**_schedule(), set_alpha_to_one=False, steps_offset=1)
    pipeline = TextToVideoSDPipeline(
        vae=_vae(), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
    )
    folder = _save(pipeline, folder)
    (folder / "generation_defaults.json").write_text('{"height": 32, "width": 32, "num_frames": 4, "fps": 4}')
    return folder


def save_tiny_audioldm(folder: str | Path, width: int = 16) -> Path:
    """An AudioLDM of half a second at 4 kHz; conditioning: 1 x `width`."""
    from diffusers import AudioLDMPipeline, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    tokenizer = _roberta_tokenizer()
    text_config = ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length + 2,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=(16, 32),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=width,
        class_embeddings_concat=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vocoder_config = SpeechT5HifiGanConfig(
        model_in_dim=16,
        sampling_rate=4000,
        upsample_initial_channel=16,
        upsample_rates=[8, 4],
        upsample_kernel_sizes=[16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
        initializer_range=0.3,  # with the usual 0.01, random weights are silent
    )
    pipeline = AudioLDMPipeline(
        vae=_vae(channels=1),
        text_encoder=ClapTextModelWithProjection(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_schedule(), set_alpha_to_one=False, steps_offset=1),
        vocoder=SpeechT5HifiGan(vocoder_config),
    )
    return _save(pipeline, folder)


def _save(pipeline, folder: str | Path) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def _schedule(prediction_type: str = "epsilon") -> dict:
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": prediction_type,
    }


def _vae(channels: int = 3):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def tiny_clip_tokenizer(text_length: int):
    """A character-level CLIP tokenizer."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet), *SPECIAL]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=text_length)


def _clip(width: int, text_length: int):
    """Its tokenizer and a one-layer text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_clip_tokenizer(text_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, CLIPTextModel(config)


def _roberta_tokenizer():
    from transformers import RobertaTokenizer

    vocab = {token: index for index, token in enumerate([*ROBERTA_SPECIAL, *_byte_alphabet()])}
    return RobertaTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
