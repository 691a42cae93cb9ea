"""What media in a prompt are to the model, by the names that transformers' multimodal models share."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nextgpt.errors import UserInputError


class MediaFeaturesMixin:
    """Masks and features of media; expects `vocabulary`, `encoder` and `input_projection`."""

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """What may stand in a prompt, text included."""
        return ("text", *self.vocabulary.placeholders)

    def get_placeholder_mask(self, input_ids: Tensor, media_features: Tensor | None = None) -> Tensor:
        """Where media stand in the prompt: `[batch, length]` of bool.

        Args:
            media_features: `[media, …]` that are to stand there, where their number is to be checked.

        Raises:
            UserInputError: the number of features is not that of the placeholders.
        """
        first = self.vocabulary.offset + self.vocabulary.num_signals
        mask = (input_ids >= first) & (input_ids < first + len(self.vocabulary.placeholders))
        if media_features is not None and (count := int(mask.sum())) != len(media_features):
            raise UserInputError(
                f"the prompt has {count} media placeholders, but {len(media_features)} media features came along"
            )
        return mask

    def signal_mask(self, input_ids: Tensor, modality: str | None = None) -> Tensor:
        """Where signal tokens (of one modality) stand: `[batch, length]` of bool."""
        start, stop = self.vocabulary.offset, self.vocabulary.offset + self.vocabulary.num_signals
        if modality is not None:
            start, stop = self.vocabulary.runs[modality][0], self.vocabulary.runs[modality][-1] + 1
        return (input_ids >= start) & (input_ids < stop)

    def get_image_features(self, image_values: Tensor) -> BaseModelOutputWithPooling:
        """Pictures `[N, 3, height, width]`, as the processor prepares them; see `get_media_features`."""
        return self.get_media_features("image", image_values)

    def get_audio_features(self, audio_values: Tensor) -> BaseModelOutputWithPooling:
        """Sounds `[N, clips, 1, mel bins, frames]`, as the processor prepares them; see `get_media_features`."""
        return self.get_media_features("audio", audio_values)

    def get_video_features(self, video_values: Tensor) -> BaseModelOutputWithPooling:
        """Clips `[N, views, 3, frames, height, width]`, as the processor prepares them; see `get_media_features`."""
        return self.get_media_features("video", video_values)

    def get_media_features(self, modality: str, values: Tensor) -> BaseModelOutputWithPooling:
        """Media of one modality through the frozen encoder and the input projection.

        Args:
            values: `[N, …]`, the processor's `<modality>_values`.

        Returns:
            `last_hidden_state` `[N, embed_dim]`, what the encoder gives (and what `media_features` takes), and
            `pooler_output` `[N, hidden]`, what stands in the LLM's sequence, or is added to its prefixes.

        Raises:
            UserInputError: the model does not take this modality.
        """
        if modality not in self.vocabulary.placeholders:
            raise UserInputError(f"this model takes {', '.join(self.input_modalities)} as input, not {modality}")
        with torch.no_grad():
            features = self.encoder.encode(modality, values.to(next(self.encoder.parameters())))
        projected = self.input_projection(features.to(self.input_projection.weight))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=projected)


def check_finite(features: Tensor) -> None:
    """Raises UserInputError where features of media `[media, embed_dim]` hold numbers that are none; it names the media."""
    finite = features.isfinite().all(-1)
    if not finite.all():
        bad = finite.logical_not().nonzero().flatten().tolist()
        raise UserInputError(
            f"the features of media {', '.join(str(i + 1) for i in bad)} of {len(features)} hold NaN or infinite numbers; "
            "check these media, or load the encoder with another dtype (float32)"
        )
