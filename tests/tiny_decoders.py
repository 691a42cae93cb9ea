"""Tiny random diffusers pipelines, saved to a folder: the real classes, a few thousand weights, no network."""

from pathlib import Path

import torch

from tiny_text_encoders import tiny_clap_text, tiny_clip, tiny_t5


def save_tiny_stable_diffusion(
    folder: str | Path, width: int = 32, text_length: int = 77, prediction_type: str = "epsilon"
) -> Path:
    """A Stable Diffusion of 32 x 32 pixels; conditioning: `text_length` x `width` (a multiple of 8)."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer, text_encoder = tiny_clip(width, text_length)
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
    tokenizer, text_encoder = tiny_clip(width, text_length)
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

    torch.manual_seed(0)
    tokenizer, text_encoder = tiny_clap_text(width)
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
    pipeline = AudioLDMPipeline(
        vae=_vae(channels=1),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_schedule(), set_alpha_to_one=False, steps_offset=1),
        vocoder=_vocoder(),
    )
    return _save(pipeline, folder)


def save_tiny_stable_diffusion_xl(folder: str | Path) -> Path:
    """A Stable Diffusion XL of 32 x 32 pixels; conditioning: 77 x 24 and 12."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    (tokenizer, text_encoder), (tokenizer_2, text_encoder_2) = tiny_clip(8, layers=2), tiny_clip(16, projection=12, layers=2)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=24,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    return _save(pipeline, folder)


def save_tiny_stable_diffusion_3(folder: str | Path, encoders: int = 3, pooled: int = 8, width: int = 24) -> Path:
    """A Stable Diffusion 3 of 32 x 32 pixels with its first `encoders` text encoders.

    With one of them it has an autoencoder without a shift, as older models have.
    Conditioning: 333 x 24 and 20; of one text encoder alone 77 x 24 and 8, or of width `pooled` alone twice 1 x `pooled`.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    made = (tiny_clip(8, projection=pooled, layers=2), tiny_clip(16, projection=12, layers=2), tiny_t5(24, 77))
    parts = {}
    for index, number in enumerate(("", "_2", "_3")):
        tokenizer, text_encoder = made[index] if index < encoders else (None, None)
        parts |= {f"tokenizer{number}": tokenizer, f"text_encoder{number}": text_encoder}
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=width,
        pooled_projection_dim=pooled if encoders == 1 else 20,
        pos_embed_max_size=16,
    )
    pipeline = StableDiffusion3Pipeline(
        vae=_vae(shift_factor=None if encoders == 1 else 0.1),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
    )
    return _save(pipeline, folder)


def save_tiny_spectrograms(folder: str | Path) -> Path:
    """A Stable Diffusion 3 of spectrograms, 32 frames at 4 kHz: a quarter of a second; conditioning: 333 x 24 and 20."""
    folder = save_tiny_stable_diffusion_3(folder)
    _vae(channels=1, shift_factor=0.1).save_pretrained(folder / "vae")
    _vocoder().save_pretrained(folder / "vocoder")
    return folder


def save_tiny_clips(folder: str | Path) -> Path:
    """A Stable Diffusion 3 of clips of 4 frames of 8 x 8 pixels; conditioning: 333 x 24 and 20."""
    folder = save_tiny_stable_diffusion_3(folder)
    (folder / "generation_defaults.json").write_text('{"height": 8, "width": 8, "num_frames": 4, "fps": 4}')
    return folder


def save_tiny_stable_audio(folder: str | Path) -> Path:
    """A Stable Audio of half a second in stereo at 1 kHz; conditioning: 77 x 16.

    Its scheduler is the one that needs no further package.
    """
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    torch.manual_seed(0)
    tokenizer, text_encoder = tiny_t5(16, 77)
    transformer = StableAudioDiTModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[4, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=1000,
    )
    pipeline = StableAudioPipeline(
        vae=vae,
        text_encoder=text_encoder,
        projection_model=StableAudioProjectionModel(16, 16, min_value=0, max_value=32),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=50, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
    )
    return _save(pipeline, folder)


def save_tiny_wan(folder: str | Path) -> Path:
    """A Wan; conditioning: 77 x 16. Its folder's generation_defaults.json says 5 frames of 32 x 32 pixels."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    tokenizer, text_encoder = tiny_t5(16, 77, multilingual=True)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
    )
    folder = _save(pipeline, folder)
    (folder / "generation_defaults.json").write_text('{"height": 32, "width": 32, "num_frames": 5, "fps": 4}')
    return folder


def save_tiny_latte(folder: str | Path) -> Path:
    """A Latte of 4 frames; conditioning: 120 x 16. Its folder's generation_defaults.json says 32 x 32 pixels."""
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    torch.manual_seed(0)
    tokenizer, text_encoder = tiny_t5(16, 120)
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=16,
        video_length=4,
    )
    scheduler = DDIMScheduler(**_schedule(), set_alpha_to_one=False, steps_offset=1)
    pipeline = LattePipeline(
        vae=_vae(), text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
    )
    folder = _save(pipeline, folder)
    (folder / "generation_defaults.json").write_text('{"height": 32, "width": 32, "num_frames": 4, "fps": 4}')
    return folder


TINY_DECODERS = {
    "stable-diffusion": save_tiny_stable_diffusion,
    "stable-diffusion-xl": save_tiny_stable_diffusion_xl,
    "stable-diffusion-3": save_tiny_stable_diffusion_3,
    "audioldm": save_tiny_audioldm,
    "stable-audio": save_tiny_stable_audio,
    "stable-diffusion-3-spectrograms": save_tiny_spectrograms,
    "stable-diffusion-3-clips": save_tiny_clips,
    "text-to-video": save_tiny_text_to_video,
    "latte": save_tiny_latte,
    "wan": save_tiny_wan,
}


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


def _vae(channels: int = 3, **options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **options,
    )


def _vocoder():
    """Spectrograms of 16 bands to waveforms at 4 kHz, 32 samples a frame."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
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
    return SpeechT5HifiGan(config)
