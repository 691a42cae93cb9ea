"""What a model says of answers: the probabilities of its own tokens, the states of its media; and its reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import IGNORED_LABEL
from nextgpt.signals import SignalVocabulary


def chosen_tokens(ids: np.ndarray, spoken: np.ndarray, vocabulary: SignalVocabulary) -> np.ndarray:
    """Where the last answer's tokens stand that the model chose itself.

    The rest of a run of signal tokens is forced (see `nextgpt.generation`): it has no probability of its own.

    Args:
        ids: `[length]`.
        spoken: bool `[length]`, true on what the assistant wrote, in earlier turns too.
    """
    others = np.flatnonzero(~spoken[: np.flatnonzero(spoken)[-1]]) if spoken.any() else []
    begins = others[-1] + 1 if len(others) else 0
    signals = (ids >= vocabulary.offset) & (ids < vocabulary.offset + vocabulary.num_signals)
    forced = signals & ~np.isin(ids, list(vocabulary.starts))
    return spoken & ~forced & (np.arange(len(ids)) >= begins)


class Reading(NamedTuple):
    """What a pass through the model says of a batch.

    Args:
        log_probabilities: `[rows, length]`, of each labelled token given what stands before it; 0 elsewhere.
        hidden_states, embeddings: `[rows, length, hidden]`.
    """

    log_probabilities: Tensor
    hidden_states: Tensor
    embeddings: Tensor


def read_answers(
    model: NextGPTForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    media_features: Tensor | None = None,
    temperature: float = 1.0,
) -> Reading:
    """A pass through the model over whole conversations, padded on the right.

    Args:
        labels: `[rows, length]`, -100 but on the tokens whose probability counts.
        media_features: of the media that are looked at, `[media, embed_dim]`.
        temperature: at which the tokens were drawn.
    """
    states: list[Tensor] = []
    model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        media_features=media_features,
        labels=torch.full_like(labels, IGNORED_LABEL),  # no loss of its own, and no head on positions that do not count
        signal_recorder=lambda *found: states.extend(found),
    )
    hidden_states, embeddings = states
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # a token's probability stands at the position before it
    counted = targets != IGNORED_LABEL
    logits = model.compute_logits(hidden_states[counted]).float() / temperature
    found = -F.cross_entropy(logits, targets[counted], reduction="none")
    log_probabilities = found.new_zeros(labels.shape).masked_scatter(counted, found)
    return Reading(log_probabilities.roll(1, dims=1), hidden_states, embeddings)


def run_starts(labels: Tensor, modality: str, vocabulary: SignalVocabulary) -> list[int]:
    """Where the runs of a kind begin in an answer; its own tokens are labelled in `labels` `[length]`."""
    return (labels == vocabulary.runs[modality][0]).nonzero().flatten().tolist()


def run_states(states: Tensor, places: Tensor, size: int) -> Tensor:
    """The states `[runs, size, hidden]` of signal runs, of `[rows, length, hidden]`.

    Args:
        places: `[runs, 2]`, row and column of each one's first token.
        size: tokens of a run.
    """
    columns = places[:, 1:] + torch.arange(size, device=places.device)
    return states[places[:, :1], columns]


class Reference:
    """The model as it was at the beginning: a copy of all that is trained, which takes the place of the present one."""

    def __init__(self, model: NextGPTForConditionalGeneration):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters = [(parameter, parameter.detach().clone()) for parameter in trained]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model is its reference, without gradients. To be left before anything is computed with them.

        Autocast keeps casts of parameters by the parameter, whatever lies in it: they are dropped on both sides.
        """
        now = [parameter.data for parameter, _ in self.parameters]
        try:
            torch.clear_autocast_cache()
            for parameter, then in self.parameters:
                parameter.data = then.to(parameter.device)
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), data in zip(self.parameters, now, strict=True):
                parameter.data = data
            torch.clear_autocast_cache()
