"""ImageBind: six transformer towers into one embedding space.

The architecture follows Girdhar et al. 2023, "ImageBind: One Embedding Space To Bind Them All", section 3 and the
reference implementation (github.com/facebookresearch/ImageBind). Parameter names are those of its checkpoints.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from nextgpt.encoders.base import Encoder
from nextgpt.encoders.imagebind.configuration import ImageBindConfig, imagebind_huge_config
from nextgpt.encoders.imagebind.processing import ImageBindPreprocessor

OFFICIAL_FILE = "imagebind_huge.pth"

MAX_LOGIT_SCALE = 100.0
LOGIT_SCALES = {"text": 1 / 0.07, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
CLIPPED = ("video", "audio")  # an item of these is several views or clips, whose embeddings are averaged


class Attention(nn.Module):
    """Multi-head self-attention, optionally with one learned extra key and value for every sequence.

    The parameters are named as in `torch.nn.MultiheadAttention`, which the reference uses.
    """

    def __init__(self, dim: int, num_heads: int, add_bias_kv: bool):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.bias_k = nn.Parameter(torch.empty(1, 1, dim)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, dim)) if add_bias_kv else None
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor, attn_mask: Tensor | None) -> Tensor:
        n = hidden_states.shape[0]
        query, key, value = F.linear(hidden_states, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None:  # [N, L, D] -> [N, L + 1, D]
            key = torch.cat([key, self.bias_k.expand(n, -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(n, -1, -1)], dim=1)
        query, key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)  # [N, heads, L, D / heads]
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The feed-forward part of a block, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, add_bias_kv: bool):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, add_bias_kv)
        self.norm_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, hidden_states: Tensor, attn_mask: Tensor | None) -> Tensor:
        hidden_states = hidden_states + self.attn(self.norm_1(hidden_states), attn_mask)
        return hidden_states + self.mlp(self.norm_2(hidden_states))


class Trunk(nn.Module):
    """The blocks of one tower. Only vision normalises before them; all but vision and text have key/value biases."""

    def __init__(self, tower: str, dim: int, num_blocks: int, num_heads: int):
        super().__init__()
        add_bias_kv = tower not in ("vision", "text")
        if tower == "vision":
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(dim, eps=1e-6))
        else:
            self.pre_transformer_layer = nn.Identity()
        self.blocks = nn.ModuleList(Block(dim, num_heads, add_bias_kv) for _ in range(num_blocks))

    def forward(self, tokens: Tensor, attn_mask: Tensor | None) -> Tensor:
        hidden_states = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            hidden_states = block(hidden_states, attn_mask)
        return hidden_states


class RepeatToFrames(nn.Module):
    """[N, C, T, H, W] with T = 1 (an image) or T = `frames` -> [N, C, `frames`, H, W]."""

    def __init__(self, frames: int):
        super().__init__()
        self.frames = frames

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.expand(-1, -1, self.frames, -1, -1)


class PatchStem(nn.Module):
    """Cuts the input into patches and embeds them: [N, C, ..., H, W] -> [N, patches, D]."""

    def __init__(self, proj: nn.Module, norm_dim: int | None):
        super().__init__()
        self.proj = proj
        self.norm_layer = nn.LayerNorm(norm_dim) if norm_dim else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return self.norm_layer(self.proj(values).flatten(2).transpose(1, 2))


class PositionEmbedding(nn.Module):
    """Learned positions, apart from the tokens because the checkpoints name them so."""

    def __init__(self, num_tokens: int, dim: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, dim))


def _prepend(cls_token: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], dim=1)  # [N, L, D] -> [N, 1 + L, D]


class PatchTokens(nn.Module):
    """The tokens of vision, audio, depth and thermal: a class token, then the patches, plus positions."""

    def __init__(self, stem_name: str, stem: PatchStem, num_patches: int, dim: int):
        super().__init__()
        self.stem_name = stem_name  # "depth_stem" for depth, "rgbt_stem" for the others, as in the checkpoints
        self.add_module(stem_name, stem)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embedding_helper = PositionEmbedding(1 + num_patches, dim)

    def forward(self, values: Tensor) -> Tensor:
        tokens = self.get_submodule(self.stem_name)(values)
        return _prepend(self.cls_token, tokens) + self.pos_embedding_helper.pos_embed


class TextTokens(nn.Module):
    """Token and position embeddings, and the causal mask that the reference keeps in its checkpoint."""

    def __init__(self, vocab_size: int, context_length: int, dim: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, context_length, dim))
        self.register_buffer("mask", torch.full((context_length, context_length), -math.inf).triu(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.pos_embed


class ImuTokens(nn.Module):
    """Accelerometer and gyroscope, [N, 6, samples], cut into windows of `kernel_size` samples."""

    def __init__(self, kernel_size: int, length: int, dim: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.imu_stem = nn.ModuleDict({"proj": nn.Linear(6 * kernel_size, dim, bias=False), "norm_layer": nn.LayerNorm(dim)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + length // kernel_size, dim))

    def forward(self, values: Tensor) -> Tensor:
        windows = values.unfold(-1, self.kernel_size, self.kernel_size)  # [N, 6, windows, kernel_size]
        tokens = self.imu_stem["proj"](windows.transpose(1, 2).flatten(2))
        return _prepend(self.cls_token, self.imu_stem["norm_layer"](tokens)) + self.pos_embed


class SelectFirst(nn.Module):
    """[N, L, D] -> [N, D]: the class token."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0]


class TextHead(nn.Module):
    """Reads a text at its end token, the highest id of CLIP's vocabulary."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, out_dim, bias=False))

    def forward(self, hidden_states: Tensor, input_ids: Tensor) -> Tensor:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return self.proj(hidden_states[rows, input_ids.argmax(dim=-1)])


class Normalize(nn.Module):
    """To unit length."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=-1)


class LogitScale(nn.Module):
    """Multiplies by a temperature, at most 100: a learned one for text, a constant of the architecture otherwise.

    Checkpoints hold the constants too, rounded to their own type; so the buffer is there, but is not what is used.
    """

    def __init__(self, scale: float, learnable: bool):
        super().__init__()
        self.scale = scale
        self.learnable = learnable
        log_scale = torch.tensor(math.log(scale))
        if learnable:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale)

    def forward(self, embeddings: Tensor) -> Tensor:
        if self.learnable:
            return self.log_logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * embeddings
        return self.scale * embeddings


def _patch_tokens(config: ImageBindConfig, tower: str) -> PatchTokens:
    dim = getattr(config, f"{tower}_embed_dim")
    if tower == "vision":
        conv = nn.Conv3d(3, dim, config.kernel_size, stride=config.kernel_size, bias=False)
        stem = PatchStem(nn.Sequential(RepeatToFrames(config.video_frames), conv), norm_dim=None)
        input_size, stride = (config.video_frames, config.image_size, config.image_size), config.kernel_size
        kernel = stride
    elif tower == "audio":
        kernel, stride = (config.audio_kernel_size,) * 2, (config.audio_stride,) * 2
        stem = PatchStem(nn.Conv2d(1, dim, kernel, stride=stride, bias=False), norm_dim=dim)
        input_size = (config.audio_num_mel_bins, config.audio_target_len)
    else:
        kernel = stride = (getattr(config, f"{tower}_kernel_size"),) * 2
        stem = PatchStem(nn.Conv2d(1, dim, kernel, stride=stride, bias=False), norm_dim=dim)
        input_size = (config.image_size,) * 2
    num_patches = math.prod((size - k) // s + 1 for size, k, s in zip(input_size, kernel, stride, strict=True))
    return PatchTokens("depth_stem" if tower == "depth" else "rgbt_stem", stem, num_patches, dim)


def _tokens(config: ImageBindConfig, tower: str) -> nn.Module:
    if tower == "text":
        return TextTokens(config.text_vocab_size, config.text_context_length, config.text_embed_dim)
    if tower == "imu":
        return ImuTokens(config.imu_kernel_size, config.imu_length, config.imu_embed_dim)
    return _patch_tokens(config, tower)


def _head(config: ImageBindConfig, tower: str) -> nn.Module:
    dim = getattr(config, f"{tower}_embed_dim")
    if tower == "text":
        return TextHead(dim, config.out_embed_dim)
    dropout = [nn.Dropout(0.5)] if tower == "imu" else []
    return nn.Sequential(
        nn.LayerNorm(dim, eps=1e-6), SelectFirst(), *dropout, nn.Linear(dim, config.out_embed_dim, bias=False)
    )


def _postprocessor(config: ImageBindConfig, tower: str) -> nn.Module:
    if tower == "vision":
        return Normalize()
    scale = config.audio_logit_scale if tower == "audio" else LOGIT_SCALES[tower]
    return nn.Sequential(Normalize(), LogitScale(scale, learnable=tower == "text"))


class ImageBind(Encoder):
    """One embedding space for images, videos, sounds, texts, depth and thermal pictures and motion sensors.

    `embed` serves training (contrastive, by whoever trains one); `encode` is the frozen encoder's face.
    """

    config_class = ImageBindConfig
    preprocessor_class = ImageBindPreprocessor
    _no_split_modules = ["Block"]

    def __init__(self, config: ImageBindConfig):
        super().__init__(config)
        towers = config.towers
        self.modality_preprocessors = nn.ModuleDict({t: _tokens(config, t) for t in towers})
        self.modality_trunks = nn.ModuleDict(
            {
                t: Trunk(t, *(getattr(config, f"{t}_{field}") for field in ("embed_dim", "num_blocks", "num_heads")))
                for t in towers
            }
        )
        self.modality_heads = nn.ModuleDict({t: _head(config, t) for t in towers})
        self.modality_postprocessors = nn.ModuleDict({t: _postprocessor(config, t) for t in towers})
        self.post_init()

    @classmethod
    def claims(cls, source: str) -> bool:
        """The reference implementation's checkpoint, or a folder with it and no weights of transformers."""
        return official_checkpoint(source) is not None

    @classmethod
    def read_config(cls, source: str, revision: str | None, values: dict[str, Any]) -> ImageBindConfig:
        """The published sizes for the reference implementation's checkpoint, which has no configuration of its own."""
        return cls.config_class.from_dict(values) if values else imagebind_huge_config()

    @classmethod
    def read(
        cls, source: str, revision: str | None, config: ImageBindConfig | None, dtype: torch.dtype | None
    ) -> "ImageBind":
        """As for any encoder; the reference implementation's checkpoint key for key."""
        if checkpoint := official_checkpoint(source):
            from nextgpt.encoders.imagebind.checkpoint import load_imagebind_checkpoint

            return load_imagebind_checkpoint(checkpoint, config, dtype)
        return super().read(source, revision, config, dtype)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Attention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            if module.bias_k is not None:
                init.xavier_normal_(module.bias_k)
                init.xavier_normal_(module.bias_v)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, PositionEmbedding):
            init.normal_(module.pos_embed, std=module.pos_embed.shape[-1] ** -0.5)
        elif isinstance(module, PatchTokens):
            init.normal_(module.cls_token, std=module.cls_token.shape[-1] ** -0.5)
        elif isinstance(module, TextTokens):
            init.normal_(module.pos_embed, std=0.01)
            init.copy_(module.mask, torch.full_like(module.mask, -math.inf).triu(1))
        elif isinstance(module, ImuTokens):
            init.normal_(module.pos_embed, std=0.01)
            init.normal_(module.cls_token, std=module.cls_token.shape[-1] ** -0.5)
        elif isinstance(module, LogitScale):
            init.constant_(module.log_logit_scale, math.log(module.scale))
        else:
            super()._init_weights(module)

    def _item_shape(self, modality: str) -> tuple[int, ...]:
        """Shape of one view or clip of an item, as `embed` expects it."""
        c = self.config
        return {
            "image": (3, c.image_size, c.image_size),
            "video": (3, c.video_frames, c.image_size, c.image_size),
            "text": (c.text_context_length,),
            "audio": (1, c.audio_num_mel_bins, c.audio_target_len),
            "depth": (1, c.image_size, c.image_size),
            "thermal": (1, c.image_size, c.image_size),
            "imu": (6, c.imu_length),
        }[modality]

    def _check(self, modality: str, values: Tensor) -> None:
        if modality not in self.modalities:
            raise ValueError(f"modality is {modality!r}, this encoder knows {', '.join(self.modalities)}.")
        leading = 2 if modality in CLIPPED else 1
        item = self._item_shape(modality)
        if values.ndim != leading + len(item) or tuple(values.shape[leading:]) != item:
            wanted = ", ".join(["N", "views"][:leading] + [str(size) for size in item])
            raise ValueError(f"{modality} values have the shape {list(values.shape)}, expected [{wanted}].")

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Embed a batch, with gradients.

        Args:
            modality: one of `modalities`.
            values: image [N, 3, H, W]; video [N, views, 3, frames, H, W]; audio [N, clips, 1, mels, frames];
                text token ids [N, context]; depth and thermal [N, 1, H, W]; imu [N, 6, samples].

        Returns:
            [N, embed_dim]: L2-normalised, times the modality's logit scale (none for vision), then averaged over
            views or clips, as the reference's forward does.

        Raises:
            ValueError: for a modality without a tower, or values of another shape.
        """
        self._check(modality, values)
        if modality in CLIPPED:
            views = values.shape[1]
            return self._embed_views(modality, values.flatten(0, 1)).unflatten(0, (-1, views)).mean(dim=1)
        return self._embed_views(modality, values)

    def _embed_views(self, modality: str, values: Tensor) -> Tensor:
        tower = "vision" if modality in ("image", "video") else modality
        if modality == "image":
            values = values.unsqueeze(2)  # [N, 3, H, W] -> [N, 3, 1, H, W]
        tokens = self.modality_preprocessors[tower](values)
        attn_mask = self.modality_preprocessors["text"].mask if tower == "text" else None
        hidden_states = self.modality_trunks[tower](tokens, attn_mask)  # [N, L, D]
        head = self.modality_heads[tower]
        pooled = head(hidden_states, values) if tower == "text" else head(hidden_states)
        return self.modality_postprocessors[tower](pooled)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`embed` for several modalities at once: modality -> values in, modality -> [N, embed_dim] out."""
        return {modality: self.embed(modality, values) for modality, values in inputs.items()}

    @torch.no_grad()
    def encode(self, modality: str, values: Tensor) -> Tensor:
        """`embed` without gradients; the values may be on any device and of any floating type."""
        dtype = values.dtype if modality == "text" else self.dtype
        return self.embed(modality, values.to(self.device, dtype))


def official_checkpoint(source: str) -> Path | None:
    """The reference implementation's checkpoint at a source, if that is what stands there."""
    path = Path(source)
    if path.suffix == ".pth":
        return path
    inside = path / OFFICIAL_FILE
    return inside if inside.is_file() and not (path / "model.safetensors").exists() else None
