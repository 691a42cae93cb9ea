"""The NExT-GPT model: frozen encoder → input projection → LLM (+ adapter) → signal states → output projections.

Messages and files are the processor's, diffusion is the decoders'; sampling is `GenerationMixin`'s, through `generation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput

from nextgpt import decoders as decoder_room
from nextgpt import encoders as encoder_room
from nextgpt.adapters import Adapter, Pass, PrefixBridge, input_bridge, run
from nextgpt.checkpoint import TRAINED_FILE, CheckpointMixin
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.context.dynamic import DynamicPositions
from nextgpt.context.settings import rope_type
from nextgpt.errors import ModelLoadError, UserInputError, first_line
from nextgpt.generation import InterleavedGenerationMixin
from nextgpt.hub.fingerprints import check_fingerprints
from nextgpt.hub.loading import check_keywords, load_frozen_encoder, load_language_model
from nextgpt.hub.parts import fetch_model
from nextgpt.modalities import MODALITIES, take_values
from nextgpt.multimodal.features import MediaFeaturesMixin, check_finite
from nextgpt.multimodal.generation_modes import GenerationModesMixin
from nextgpt.multimodal.media_losses import MediaLossesMixin, States
from nextgpt.projections import OutputProjection, SignalRows
from nextgpt.signals import SignalVocabulary
from nextgpt.values import ValueHeads


@dataclass
class NextGPTOutput(ModelOutput):
    """Output of [`NextGPTForConditionalGeneration`].

    Args:
        loss: weighted sum of `losses`; present when something to learn from was given.
        losses: name → unweighted part: `text`, `conditioning/<modality>/<tensor>`, `denoising/<modality>`.
        logits: `[batch, kept positions, vocab_size]`; absent when `labels` are given (only labelled positions are
            computed then).
        past_key_values: the LLM's cache, an adapter's virtual tokens included; nothing else counts these.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    past_key_values: object | None = None


class NextGPTForConditionalGeneration(
    CheckpointMixin,
    MediaFeaturesMixin,
    MediaLossesMixin,
    GenerationModesMixin,
    InterleavedGenerationMixin,
    PreTrainedModel,
    GenerationMixin,
):
    """Any mix of text and media in, text and signal states out (NExT-GPT, https://arxiv.org/abs/2309.05519).

    `NextGPTForConditionalGeneration(config)` builds everything with random weights (on the meta device too);
    `NextGPTForConditionalGeneration.from_parts(config)` loads the frozen parts and starts the trained ones afresh;
    `NextGPTForConditionalGeneration.from_pretrained(folder)` loads the trained ones as well.
    """

    config_class = NextGPTConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: NextGPTConfig,
        language_model: PreTrainedModel | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__(config)
        self.vocabulary = SignalVocabulary.create(config.signal_tokens, config.input_modalities, config.token_offset)
        self.encoder = encoder if encoder is not None else encoder_room.encoder_from_config(config.encoder_config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.language_model_config())
        for frozen in (self.encoder, language_model):
            frozen.requires_grad_(False).eval()
        base = config.part("language_model").source if config.language_model else None
        self.adapter = Adapter(language_model, config.adapter, base) if config.adapter else None
        self.language_model = self.adapter.model if self.adapter else language_model
        self.input_projection = input_bridge(config.input_bridge, self.encoder.embed_dim, language_model)
        is_dynamic = config.rope_parameters is not None and rope_type(config.text_config) == "dynamic"
        parts = language_model, self.adapter, self.input_projection
        self.dynamic_positions = DynamicPositions(*parts) if is_dynamic else None

        hidden_size = config.text_config.hidden_size
        self.output_projections = nn.ModuleDict(
            {
                modality: OutputProjection(hidden_size, shapes, **config.output_projection)
                for modality, shapes in config.conditioning_shapes.items()
            }
        )
        self.signal_rows = SignalRows(self.vocabulary.num_signals, hidden_size)
        self.value_heads: ValueHeads | None = None
        if config.value_weight is not None:
            self.add_value_heads(config.value_weight)
        self.generation_config = language_model.generation_config or GenerationConfig()
        self.decoders: dict[str, decoder_room.Decoder] = {}  # load on first use; set by training for the denoising loss
        self.post_init()

    def init_weights(self) -> None:
        """Every part initialises itself."""

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_parts(
        cls,
        config: NextGPTConfig,
        *,
        dtype: torch.dtype | str = torch.float32,
        device_map: str | dict | None = None,
        quantization_config: object | None = None,
        encoder: nn.Module | None = None,
    ) -> NextGPTForConditionalGeneration:
        """Loads the frozen parts that `config` names and starts the trained parts afresh.

        Args:
            dtype, device_map, quantization_config: as for `from_pretrained`.
            encoder: in place of the one that `config` names, e.g. an untrained one where features are cached.

        Raises:
            ModelLoadError: a frozen part is missing, unreadable or not the one that was trained with; it is named.
        """
        check_fingerprints(config)
        language_model = load_language_model(config, dtype, device_map, quantization_config)
        model = cls(config, language_model=language_model, encoder=encoder or load_frozen_encoder(config, dtype))
        own = language_model.get_input_embeddings()
        sample = own(torch.arange(config.text_config.vocab_size, device=own.weight.device)).cpu()
        model.signal_rows.initialize_from(sample, language_model.get_output_embeddings().weight.cpu())
        if isinstance(model.input_projection, PrefixBridge):
            model.input_projection.initialize_from(sample)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: NextGPTConfig | None = None,
        dtype: torch.dtype | str = torch.float32,
        device_map: str | dict | None = None,
        quantization_config: object | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        **others,
    ) -> NextGPTForConditionalGeneration:
        """Loads the frozen parts from where the configuration names them, and the trained tensors from this checkpoint.

        Args:
            pretrained_model_name_or_path: preset name, folder or Hub repository.
            dtype: of every part, or "auto" for the LLM's own.
            device_map, quantization_config: handed to the LLM's `from_pretrained` (4-bit and 8-bit loading).
            attn_implementation: of the LLM ("eager", "sdpa" …); where None, the LLM's own.
            revision: of the Hub repository.
            others: what the Auto classes add of their own; anything else is refused.

        Raises:
            UserInputError: an argument is not known.
            ModelLoadError: something is missing or its shape does not fit; the message names it.
        """
        dtype = others.pop("torch_dtype", dtype)  # its old name, which transformers still takes
        check_keywords(others)
        folder = fetch_model(pretrained_model_name_or_path, revision)
        config = config or NextGPTConfig.from_pretrained(folder)
        if config.base_folder is None:  # the Auto classes give one that names a repository
            config._name_or_path = str(folder)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        file = folder / TRAINED_FILE
        if not file.is_file():
            raise ModelLoadError(f"{folder} holds no {TRAINED_FILE} with trained weights: train one, or name another")
        try:
            model = cls.from_parts(config, dtype=dtype, device_map=device_map, quantization_config=quantization_config)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelLoadError(f"{folder}/config.json does not make a model: {first_line(error)}") from error
        model.load_trained(folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        device = model.get_input_embeddings().weight.device  # where device_map put the LLM's first layer
        model.encoder.to(device)
        for module in model.trained_modules().values():
            module.to(device, model.get_base_model().dtype)
        return model.eval()

    # ------------------------------------------------------------------ what is trained

    def add_value_heads(self, weight: float) -> None:
        """Adds value heads, unless it has them; `weight`: of a token's advantage in decoding."""
        self.config.value_weight = weight
        if self.value_heads is None:
            self.value_heads = ValueHeads(self.config.text_config.hidden_size, self.config.vocab_size)

    def train(self, mode: bool = True) -> NextGPTForConditionalGeneration:
        """Frozen means frozen: the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    # ------------------------------------------------------------------ embedding

    def get_base_model(self) -> PreTrainedModel:
        """The LLM itself, the adapter's layers included, without peft's wrapper."""
        return self.language_model.get_base_model() if self.adapter else self.language_model

    def get_decoder(self, *args, **kwargs) -> nn.Module:
        return self.get_base_model().get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.get_base_model().get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.get_base_model().get_output_embeddings()

    @torch.no_grad()
    def encode_media(self, input_ids: Tensor, **values: Tensor | None) -> Tensor | None:
        """Frozen encoder: `<modality>_values` (stacked per modality) → features `[media, embed_dim]`.

        The features come in the row-major order of the placeholders in `input_ids`.
        """
        given = {name.removesuffix("_values"): tensor for name, tensor in values.items() if tensor is not None}
        kinds = input_ids[self.get_placeholder_mask(input_ids)]  # [media]
        if not given and not len(kinds):
            return None
        features = torch.zeros(len(kinds), self.encoder.embed_dim, device=input_ids.device)
        for modality, placeholder in self.vocabulary.placeholders.items():
            count, found = int((kinds == placeholder).sum()), len(given.get(modality, ()))
            if count != found:
                raise UserInputError(
                    f"the prompt has {count} {modality} placeholders, but {found} {MODALITIES[modality].plural} came along"
                )
            if count:
                encoder_weight = next(self.encoder.parameters())
                encoded = self.encoder.encode(modality, given[modality].to(encoder_weight))
                features[kinds == placeholder] = encoded.to(features)
        return features

    def embed(self, input_ids: Tensor, media_features: Tensor | None = None) -> Tensor:
        """Token ids `[batch, length]` and media features `[media, embed_dim]` → embeddings `[batch, length, hidden]`.

        With a `PrefixBridge` the media stand beside them, `[batch, length, hidden + hidden + 1]`; see its `beside`.
        """
        offset, signals = self.vocabulary.offset, self.signal_mask(input_ids)
        placeholders = self.get_placeholder_mask(input_ids, () if media_features is None else media_features)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(signals | placeholders, 0))
        if self.vocabulary.num_signals:
            rows = F.embedding((input_ids - offset).clamp(0, self.vocabulary.num_signals - 1), self.signal_rows.input)
            embeddings = torch.where(signals[..., None], rows.to(embeddings), embeddings)
        projected = None
        if media_features is not None and len(media_features):
            check_finite(media_features)
            projected = self.input_projection(media_features.to(self.input_projection.weight.dtype))
        if isinstance(self.input_projection, PrefixBridge):
            return self.input_projection.beside(embeddings, placeholders, projected)
        if projected is not None:
            embeddings = embeddings.masked_scatter(placeholders[..., None], projected.to(embeddings))
        return embeddings

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` → `[..., vocab_size]`: the LLM's own head beside the signal rows; placeholders never score.

        What an LLM does to its logits in its own `forward`, by its configuration, is done here: the factors of Cohere's and
        Granite's, the soft cap of Gemma's.
        """
        config = self.config.text_config
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        logits = self.get_output_embeddings()(hidden_states)
        signal_logits = (hidden_states.to(self.signal_rows.output) @ self.signal_rows.output.T).to(logits)
        if factor != 1.0:
            logits, signal_logits = logits * factor, signal_logits * factor
        if softcap:
            logits, signal_logits = (torch.tanh(each / softcap) * softcap for each in (logits, signal_logits))
        logits = logits[..., : self.vocabulary.offset]  # a padded vocabulary has rows where ours begin
        logits = F.pad(logits, (0, self.config.vocab_size - logits.shape[-1]), value=torch.finfo(logits.dtype).min)
        ids = torch.arange(self.vocabulary.num_signals, device=logits.device) + self.vocabulary.offset
        return logits.index_copy(-1, ids, signal_logits)

    def project(self, modality: str, hidden_states: Tensor, token_embeddings: Tensor) -> dict[str, Tensor]:
        """One modality's signal states, `[N, signal_tokens, hidden]` each → its decoder's conditioning, by name."""
        return self.output_projections[modality](hidden_states, token_embeddings)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        media_features: Tensor | None = None,
        labels: Tensor | None = None,
        conditioning_targets: dict[str, dict[str, Tensor]] | None = None,
        media_latents: dict[str, Tensor] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        signal_recorder: Callable[[Tensor, Tensor], None] | None = None,
        signal_states: dict[str, States] | None = None,
        **more,
    ) -> NextGPTOutput:
        """One pass through the LLM, with the losses of all three stages.

        Args:
            input_ids: `[batch, length]`, signal tokens and placeholders included.
            attention_mask: `[batch, length]` (with a cache: of everything so far).
            media_features: `[media, embed_dim]` in row-major order of the placeholders; in place of the raw
                `<modality>_values` (`[media of that modality, …]`, what the processor makes), which are taken by that name.
            labels: `[batch, length]`, -100 where nothing is learned.
            conditioning_targets: output modality → tensor's name → `[runs, *shape]`, one per signal run of the batch in
                row-major order: what the frozen text encoders say of the caption.
            media_latents: output modality → `[runs, …]`, true latents for the decoders' own denoising loss.
            logits_to_keep: logits of the last so many positions only (0: all).
            signal_recorder: called with the signal states of this pass (see `nextgpt.generation`).
            signal_states: output modality → what an earlier pass made of the runs (see `MediaLossesMixin.signal_states`);
                the losses on media are computed of these, without another pass, and nothing else is.
        """
        if signal_states is not None:
            losses = self.media_losses(signal_states, conditioning_targets or {}, media_latents or {})
            return NextGPTOutput(loss=self._weighted(losses), losses=losses)
        if media_features is None:
            media_features = self.encode_media(input_ids, **take_values(more))
        embeddings = self.embed(input_ids, media_features)
        if labels is not None and past_key_values is None and position_ids is None:
            hidden_states = self._learn_from(input_ids, attention_mask, embeddings)
        else:
            hidden_states, past_key_values = self._run(
                embeddings,
                attention_mask,
                position_ids=position_ids,
                cache=past_key_values,
                use_cache=use_cache if labels is None else False,
            )
        embeddings = embeddings[..., : hidden_states.shape[-1]]  # without the media beside them
        if signal_recorder is not None:
            signal_recorder(hidden_states, embeddings)

        losses = {}
        if labels is not None:
            losses["text"] = self._text_loss(hidden_states, labels)
        targets = conditioning_targets or {}
        states = {modality: self.signal_states(modality, input_ids, hidden_states, embeddings) for modality in targets}
        losses |= self.media_losses(states, targets, media_latents or {})
        return NextGPTOutput(
            loss=self._weighted(losses),
            losses=losses or None,
            logits=self._decoding_logits(hidden_states[:, -logits_to_keep:]) if labels is None else None,
            past_key_values=past_key_values,
        )

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor | None:
        """The parts of the loss, each by its weight, as one; None where there is none."""
        return sum(self.config.loss_weight(name) * value for name, value in losses.items()) if losses else None

    def _decoding_logits(self, hidden_states: Tensor) -> Tensor:
        """The logits; with value heads, the policy's log-probabilities and each token's advantage (Snell et al. 2022)."""
        logits = self.compute_logits(hidden_states)
        if self.value_heads is None or not self.config.value_weight:
            return logits
        return logits + self.config.value_weight * self.value_heads.advantages(hidden_states).to(logits)

    def _run(self, *args, **kwargs) -> Pass:
        if self.dynamic_positions is not None:
            return self.dynamic_positions.run(*args, **kwargs)
        return run(self.get_base_model(), self.adapter, *args, **kwargs, bridge=self.input_projection)

    def _learn_from(self, input_ids: Tensor, attention_mask: Tensor | None, embeddings: Tensor) -> Tensor:
        """Last hidden states `[batch, length, hidden]` of whole conversations, padded on the right.

        Columns that are the same in all rows, as the system prompt is, go through the LLM once for all; columns that no
        gradient has to pass go through it without a graph.
        """
        count, length = input_ids.shape
        keeps_no_cache = getattr(self.get_base_model(), "is_activation_checkpointing", False)
        if keeps_no_cache or self.dynamic_positions is not None:  # the frequencies are those of the whole
            return self._run(embeddings, attention_mask, use_cache=False).hidden_states
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        free = self._columns_without_gradient(input_ids)
        shared = self._shared_columns(input_ids, mask)
        cache, states, start = None, [], 0
        for end, rows, learns in ((min(shared, free or shared), 1, not free), (free, count, False), (length, count, True)):
            if end <= start:
                continue
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                found, cache = self._run(
                    embeddings[:rows, start:end], mask[:rows, :end], cache=cache, use_cache=end < length
                )
            start = end
            if cache is not None and rows < count:
                cache.batch_repeat_interleave(count)
            states.append(found.expand(count, -1, -1))
        return torch.cat(states, dim=1)

    def _shared_columns(self, input_ids: Tensor, mask: Tensor) -> int:
        """How many columns from the left hold the same in all rows, and no media."""
        differ = (input_ids != input_ids[:1]) | (mask == 0) | self.get_placeholder_mask(input_ids)
        return _first_column(differ)

    def _columns_without_gradient(self, input_ids: Tensor) -> int:
        """How many columns from the left come before everything that is trained."""
        if not torch.is_grad_enabled() or any(parameter.requires_grad for parameter in self.language_model.parameters()):
            return 0
        trained = torch.zeros_like(input_ids, dtype=torch.bool)
        if self.input_projection.weight.requires_grad:
            trained |= self.get_placeholder_mask(input_ids)
        if self.signal_rows.input.requires_grad:
            trained |= self.signal_mask(input_ids)
        return _first_column(trained)

    def _text_loss(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Next-token loss; the head runs on labelled positions only, which saves most of its memory."""
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        learned = targets != -100
        if not learned.any():
            return hidden_states.sum() * 0.0
        return F.cross_entropy(self.compute_logits(hidden_states[learned]).float(), targets[learned])


def _first_column(mask: Tensor) -> int:
    """The first column of `[batch, length]` with something true in it, or the length."""
    columns = mask.any(0).nonzero()
    return int(columns[0]) if len(columns) else mask.shape[1]


NextGPTModel = NextGPTForConditionalGeneration  # its first name, which programs may import

AutoModel.register(NextGPTConfig, NextGPTForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(NextGPTConfig, NextGPTForConditionalGeneration, exist_ok=True)
