"""What is learned from the media of an answer: their conditioning, and the decoders' own denoising."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nextgpt import decoders as decoder_room
from nextgpt.errors import UserInputError

States = tuple[Tensor, Tensor]


class MediaLossesMixin:
    """The losses of a model with signal tokens, output projections and decoders."""

    def signal_states(self, modality: str, input_ids: Tensor, hidden_states: Tensor, embeddings: Tensor) -> States:
        """What the projection reads of every complete run of one modality in a batch.

        Args:
            input_ids: `[batch, length]`.
            hidden_states, embeddings: the LLM's last ones and its input, `[batch, length, hidden]` each.

        Returns:
            The runs' hidden states and embeddings, `[runs, signal_tokens, hidden]` each, in row-major order.
        """
        mask, size = self.signal_mask(input_ids, modality), len(self.vocabulary.runs[modality])
        shape = (-1, size, hidden_states.shape[-1])
        return hidden_states[mask].view(shape), embeddings[mask].view(shape)

    def media_losses(
        self,
        states: Mapping[str, States],
        conditioning_targets: Mapping[str, Mapping[str, Tensor]],
        media_latents: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The parts of the loss on media: `conditioning/<modality>/<tensor>`, `denoising/<modality>`.

        Args:
            states: output modality → `signal_states` of its runs.
            conditioning_targets, media_latents: as `forward` takes them.

        Raises:
            UserInputError: the targets are not of the decoder's shapes, or not one for each run.
        """
        losses = {}
        for modality, targets in conditioning_targets.items():
            conditioning = self.project(modality, *states[modality])
            _check_targets(modality, conditioning, targets)
            for name, tensor in conditioning.items():
                losses[f"conditioning/{modality}/{name}"] = F.mse_loss(tensor.float(), targets[name].float())
            if modality in media_latents:
                decoder = self.decoders[modality]
                losses[f"denoising/{modality}"] = decoder.denoising_loss(conditioning, media_latents[modality])
        return losses


def _check_targets(modality: str, conditioning: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    spec = {name: decoder_room.TensorSpec(tuple(tensor.shape[1:])) for name, tensor in conditioning.items()}
    advice = "Give as conditioning_targets what the decoder of this model encodes, one row for each signal run."
    try:
        decoder_room.check_conditioning(spec, targets, f"The {modality} output projection", advice)
    except ValueError as error:
        raise UserInputError(str(error)) from None
    runs, rows = (len(next(iter(each.values()))) for each in (conditioning, targets))
    if runs != rows:
        raise UserInputError(f"the batch has {runs} {modality} signal runs, conditioning_targets {rows} rows. {advice}")
