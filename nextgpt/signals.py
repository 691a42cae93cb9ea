"""The tokens that NExT-GPT adds to a language model, and nothing about how they are embedded or learned.

Two kinds are added behind the LLM's own vocabulary:

- *signal tokens*: a fixed run per output modality (`[IMG0] [IMG1] …`) that the LLM emits where a piece of media stands
  in its answer (NExT-GPT, section 4);
- *placeholders*: one token per input modality that stands for one piece of media in the prompt. They have no
  row in the language model's head, so they can never be emitted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nextgpt import modalities
from nextgpt.media.text import listed
from nextgpt.modalities import BUILT_IN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODALITIES = BUILT_IN  # those of the package, which nano knows; the table has those of plug-ins too


def answer_only(kinds: Collection[str]) -> str:
    """The sentence that tells a language model which kinds an answer may hold; it stands at the end of the system prompt."""
    return f"Answer with {listed([kind for kind in ('text', *modalities.MODALITIES) if kind in kinds])} only."


@dataclass(frozen=True)
class SignalVocabulary:
    """Token strings and ids, in the order they are added: all signal tokens, then all placeholders.

    Args:
        signal_tokens: how many signal tokens make one run of each output modality, e.g. `{"image": 4}`.
        input_modalities: the modalities that may stand in a prompt.
        offset: id of the first added token.
    """

    signal_tokens: tuple[tuple[str, int], ...]
    input_modalities: tuple[str, ...]
    offset: int

    @classmethod
    def create(cls, signal_tokens: dict[str, int], input_modalities: Iterable[str], offset: int) -> SignalVocabulary:
        """Puts the modalities in their fixed order, whatever order a JSON file kept them in."""
        table, given = modalities.MODALITIES, set(input_modalities)
        modalities.check_known(given | set(signal_tokens), "tokens for")
        ordered = tuple((modality, signal_tokens[modality]) for modality in table if modality in signal_tokens)
        return cls(ordered, tuple(modality for modality in table if modality in given), offset)

    @cached_property
    def runs(self) -> dict[str, tuple[int, ...]]:
        """Modality → the token ids of one run, in order."""
        runs, start = {}, self.offset
        for modality, count in self.signal_tokens:
            runs[modality] = tuple(range(start, start + count))
            start += count
        return runs

    @cached_property
    def starts(self) -> dict[int, str]:
        """Id of a run's first signal token → its modality."""
        return {ids[0]: modality for modality, ids in self.runs.items()}

    @property
    def num_signals(self) -> int:
        return sum(count for _, count in self.signal_tokens)

    @cached_property
    def placeholders(self) -> dict[str, int]:
        """Input modality → the id of its placeholder."""
        first = self.offset + self.num_signals
        return {modality: first + i for i, modality in enumerate(self.input_modalities)}

    @property
    def num_tokens(self) -> int:
        return self.num_signals + len(self.input_modalities)

    @property
    def strings(self) -> list[str]:
        """The added tokens as text, in the order of their ids."""
        rows = modalities.MODALITIES
        signals = [rows[modality].signal_token(i) for modality, count in self.signal_tokens for i in range(count)]
        return signals + [rows[modality].placeholder for modality in self.input_modalities]

    def template_variables(self, kinds: Collection[str] | None) -> dict[str, str] | None:
        """What the chat template gets where an answer may hold these kinds only; None where they are all that there are."""
        is_limited = kinds is not None and not set(self.runs) <= set(kinds)
        return {"answer_only": answer_only(kinds)} if is_limited else None

    def add_to(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Adds the tokens to `tokenizer` and checks that they land on the ids the model expects.

        Raises:
            ValueError: the tokenizer gives another id to one of the tokens.
        """
        tokenizer.add_tokens(self.strings, special_tokens=True)
        for expected, token in enumerate(self.strings, start=self.offset):
            found = tokenizer.convert_tokens_to_ids(token)
            if found != expected:
                raise ValueError(
                    f"token {token} has id {found} in the tokenizer, the model expects {expected}: "
                    "the tokenizer and the configuration (token_offset) do not belong together"
                )
