"""From a user's chat messages to the model's tensors, and back from token ids to messages.

It owns the chat template, the tokenizer and the encoder's preprocessing; it never sees weights. Text that comes from a
message is always tokenized as plain text: only the template and the processor itself write control tokens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AddedToken, AutoProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from nextgpt import encoders as encoder_room
from nextgpt.configuration_nextgpt import NextGPTConfig, encoder_config_from_dict
from nextgpt.errors import ConversationTooLong, ModelLoadError, NextGPTError, UserInputError, first_line, refuse_upload
from nextgpt.hub.parts import fetch_model
from nextgpt.media import load_media
from nextgpt.media.text import check_characters
from nextgpt.modalities import MODALITIES
from nextgpt.multimodal.chat_template import ChatTemplateMixin, openai_part, short
from nextgpt.signals import SignalVocabulary

IGNORED_LABEL = -100
PROCESSOR_FILE = "processor_config.json"

# Vicuna v1.5, as published with FastChat ("vicuna_v1.1" conversation): one line, turns closed by the end of sequence.
VICUNA_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% set system = 'A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' %}{% endif %}"
    "{{ system }}{{ ' ' + answer_only if answer_only else '' }}"  # `nextgpt.signals.answer_only`
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    "{{ ' ' if loop.first or loop.previtem['role'] == 'user' else '' }}USER: {{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('a system message can only come first') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

# Message parts travel through the chat template as these; what they stand for is put in only after rendering.
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass
class Piece:
    """A stretch of a prompt: plain text, one control token, one placeholder or one signal run.

    Args:
        text: for plain text.
        token_ids: for everything else.
        learned: whether the assistant wrote it.
    """

    text: str | None = None
    token_ids: list[int] = field(default_factory=list)
    learned: bool = False


class NextGPTProcessor(ChatTemplateMixin, ProcessorMixin):
    """Turns chat messages into inputs of [`NextGPTForConditionalGeneration`].

    Args:
        tokenizer: the LLM's tokenizer; the added tokens are put in here.
        encoder_config: configuration of the frozen encoder, which fixes how media are prepared.
        signal_tokens: output modality → tokens of one run.
        input_modalities: what may stand in a prompt.
        token_offset: id of the first added token; by default the tokenizer's length.
        chat_template: Jinja template; by default the tokenizer's own, or Vicuna v1.5's where it has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder_config=None,
        signal_tokens: dict[str, int] | None = None,
        input_modalities: Sequence[str] | None = None,
        token_offset: int | None = None,
        chat_template: str | None = None,
    ):
        template = chat_template or tokenizer.chat_template or VICUNA_CHAT_TEMPLATE
        super().__init__(tokenizer, chat_template=template)
        self.encoder_config = encoder_config
        self.preprocessor = encoder_room.preprocessor_for(encoder_config)
        if input_modalities is None:
            input_modalities = [m for m in MODALITIES if m in encoder_config.modalities]
        offset = len(tokenizer) if token_offset is None else token_offset
        self.vocabulary = SignalVocabulary.create(signal_tokens or {}, input_modalities, offset)
        self.vocabulary.add_to(tokenizer)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._control_tokens = _control_token_pattern(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._control_ids = set(tokenizer.all_special_ids) | {i for i, token in added if _is_control(token)}

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_config(cls, config: NextGPTConfig) -> NextGPTProcessor:
        """A processor for a new model, with the tokenizer of the frozen LLM that `config` names."""
        part = config.part("language_model")
        tokenizer = AutoTokenizer.from_pretrained(config.location("language_model"), revision=part.revision)
        return cls(
            tokenizer,
            encoder_config=config.encoder_config,
            signal_tokens=config.signal_tokens,
            input_modalities=config.input_modalities,
            token_offset=config.token_offset,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> NextGPTProcessor:
        """Loads a saved processor: preset name, folder or Hub repository."""
        patterns = ["*.json", "*.jinja", "*.model"]
        location = fetch_model(pretrained_model_name_or_path, kwargs.get("revision"), patterns)
        file = location / PROCESSOR_FILE
        if not file.is_file():
            raise ModelLoadError(f"{location} holds no {PROCESSOR_FILE}: it is not a saved NExT-GPT processor")
        template = location / "chat_template.jinja"
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            settings.pop("processor_class", None)
            return cls(
                AutoTokenizer.from_pretrained(location),
                encoder_config=encoder_config_from_dict(settings.pop("encoder_config")),
                chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
                **settings,
            )
        except NextGPTError as error:
            raise ModelLoadError(f"{file}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"the processor in {location} is damaged ({first_line(error)}): copy it again") from error

    def save_pretrained(self, save_directory: str | os.PathLike, **unused) -> None:
        """Writes the tokenizer, the chat template and `processor_config.json`."""
        refuse_upload(unused)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.chat_template = None  # kept in its own file, once
        self.tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        settings = {
            "processor_class": type(self).__name__,
            "encoder_config": self.encoder_config.to_dict(),
            "signal_tokens": dict(self.vocabulary.signal_tokens),
            "input_modalities": list(self.vocabulary.input_modalities),
            "token_offset": self.vocabulary.offset,
        }
        (folder / PROCESSOR_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------ messages → tensors

    def __call__(
        self,
        messages: list[dict] | list[list[dict]] | None = None,
        *,
        text: str | list[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_kwargs: dict | None = None,
        return_labels: bool = False,
        load_media: bool = True,
        max_length: int | None = None,
        padding_side: str | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepares one conversation or a list of them.

        Args:
            messages: Hugging Face chat messages (see the README); a part of a user's message may be text, image, audio
                or video; the assistant's own media become its signal tokens.
            text, images, videos, audio: in place of `messages`: what one user says and shows; or a list of texts, and for
                each of them a piece of media or a list.
            add_generation_prompt: end with the opening of the assistant's answer.
            continue_final_message: end with the last message, without what closes it.
            chat_template, template_kwargs: another template; variables of the template.
            return_labels: also `labels`, -100 everywhere but on what the assistant wrote.
            load_media: whether to read and prepare the media; without it only their placeholders stand in `input_ids`.
            max_length: refuse longer prompts, in tokens.
            padding_side: by default left, as generation needs it.
            padding, return_tensors: rows are always padded to the longest, and tensors are PyTorch's.

        Returns:
            `input_ids`, `attention_mask` (and `labels`), `[batch, length]`, and for each input modality present
            `<modality>_values`, stacked in the row-major order of its placeholders.

        Raises:
            UserInputError: a message, a part or a file is not what it should be; the message names it.
        """
        for name, given, known in (
            ("padding", padding, (True, "longest")),
            ("return_tensors", return_tensors, ("pt", None)),
        ):
            if given not in known:
                raise UserInputError(f"{name} is {given!r}: this processor knows {known[0]!r} only")
        conversations = self._as_conversations(self._given(messages, text, images=images, videos=videos, audio=audio))
        rendering = (add_generation_prompt, continue_final_message, chat_template, template_kwargs)
        rows, media = [], {modality: [] for modality in self.vocabulary.input_modalities}
        for conversation in conversations:
            pieces, parts = self._render(conversation, *rendering)
            rows.append(self._encode(pieces))
            for modality, value in parts:
                media[modality].append(self.prepare_media(modality, value) if load_media else None)
        self._check_length(rows, max_length)
        data = self._pad(rows, padding_side or "left", return_labels)
        if load_media:
            data |= {f"{modality}_values": torch.stack(values) for modality, values in media.items() if values}
        return BatchFeature(data)

    def prepare_media(self, modality: str, value: Any) -> torch.Tensor:
        """One piece of media (path, address, bytes or ready-made) → the encoder's input, without a batch dimension."""
        return self.preprocessor.prepare(modality, load_media(modality, value))

    def _render(
        self,
        conversation: list[dict],
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_kwargs: dict | None = None,
    ) -> tuple[list[Piece], list]:
        """A conversation → the prompt in pieces, and the media of its placeholders in order."""
        marked, pieces, media = [], [], []
        for i, message in enumerate(conversation):
            content = ""
            for piece, part in self._message_pieces(message, i):
                content += f"\ue000{len(pieces)}\ue001"
                pieces.append(piece)
                if part is not None:
                    media.append(part)
            marked.append({"role": message["role"], "content": content})
        try:
            rendered = self.tokenizer.apply_chat_template(
                marked,
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **(template_kwargs or {}),
            )
        except TemplateError as error:
            raise UserInputError(f"the model's chat template refuses this conversation: {error}") from None
        if continue_final_message:
            if not marked[-1]["content"]:
                raise UserInputError("continue_final_message is set, but the last message has no content to go on with")
            rendered = rendered[: rendered.rindex("\ue001") + 1]
        return self._join(rendered, pieces), media

    def _message_pieces(self, message: dict, index: int):
        """Yields `(piece, None)` or, for a placeholder, `(piece, (modality, value))`."""
        learned = message["role"] == "assistant"
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise UserInputError(f"message {index} has content {short(content)}: expected a text or a list of parts")
        for part in map(openai_part, parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                if not isinstance(part.get("text"), str):
                    raise UserInputError(f"message {index}: a text part has text {short(part.get('text'))}, not a string")
                check_characters(part["text"], f"message {index}: the text")
                yield Piece(text=part["text"], learned=learned), None
            elif kind in MODALITIES:
                yield self._media_piece(part, kind, message["role"], index)
            else:
                raise UserInputError(
                    f"message {index}: unknown part type {short(kind if isinstance(part, dict) else part)}; "
                    f"expected text, {', '.join(MODALITIES)}"
                )

    def _media_piece(self, part: dict, modality: str, role: str, index: int):
        if role == "assistant":
            if modality not in self.vocabulary.runs:
                raise UserInputError(f"message {index}: this model's answers hold no {modality}")
            return Piece(token_ids=list(self.vocabulary.runs[modality]), learned=True), None
        if role == "system":
            raise UserInputError(f"message {index}: a system message holds text only, found {modality}")
        if modality not in self.vocabulary.placeholders:
            known = ", ".join(self.vocabulary.placeholders) or "no media"
            raise UserInputError(f"message {index}: this model takes {known} as input, not {modality}")
        values = [part[key] for key in ("path", "url", modality) if part.get(key) is not None]
        if part.get("base64") is not None:
            values.append(f"data:;base64,{part['base64']}")
        if len(values) != 1:
            raise UserInputError(
                f"message {index}: the {modality} part needs one of path, url or {modality} (or base64), found {len(values)}"
            )
        return Piece(token_ids=[self.vocabulary.placeholders[modality]]), (modality, values[0])

    def _join(self, rendered: str, pieces: list[Piece]) -> list[Piece]:
        """Puts the pieces back where their marks stand; what is left of the rendering is the template's own words.

        The first control token after the assistant's words closes its turn, so it is learned too; so is the white space
        between the opening of its turn and its words.
        """
        joined: list[Piece] = []
        spoken = False
        for i, stretch in enumerate(_MARK.split(rendered)):
            if i % 2:
                piece = pieces[int(stretch)]
                if piece.learned and not spoken and joined and joined[-1].text:
                    bare = joined[-1].text.rstrip()
                    space, joined[-1].text = joined[-1].text[len(bare) :], bare
                    joined.append(Piece(text=space, learned=True))
                joined.append(piece)
                spoken = piece.learned
                continue
            for j, words in enumerate(self._control_tokens.split(stretch)):
                if not words:
                    continue
                if j % 2:
                    joined.append(Piece(token_ids=[self.tokenizer.convert_tokens_to_ids(words)], learned=spoken))
                    spoken = False
                else:
                    joined.append(Piece(text=words, learned=False))
        return [piece for piece in joined if piece.text != ""]

    def _encode(self, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
        """Pieces → token ids and whether each was written by the assistant. Neighbouring texts are tokenized together."""
        ids: list[int] = []
        learned: list[bool] = []
        stretch: list[Piece] = []
        for piece in [*pieces, None]:
            if piece is not None and piece.text is not None:
                stretch.append(piece)
                continue
            if stretch:
                text_ids, text_learned = self._encode_text(stretch)
                ids += text_ids
                learned += text_learned
                stretch = []
            if piece is not None:
                ids += piece.token_ids
                learned += [piece.learned] * len(piece.token_ids)
        return ids, learned

    def _encode_text(self, stretch: list[Piece]) -> tuple[list[int], list[bool]]:
        text = "".join(piece.text for piece in stretch)
        spans, start = [], 0
        for piece in stretch:
            if piece.learned:
                spans.append((start, start + len(piece.text)))
            start += len(piece.text)
        ids, offsets = self._plain(text)
        if self._control_ids.intersection(ids):  # an added token that is not special: broken in two, it is text again
            ids, offsets, start = [], [], 0
            cuts = [match.start() + 1 for match in self._control_tokens.finditer(text)]
            for stop in [*cuts, len(text)]:
                more, their_offsets = self._plain(text[start:stop])
                ids += more
                offsets += [(low + start, high + start) for low, high in their_offsets]
                start = stop
        if self._control_ids.intersection(ids):
            raise UserInputError("a message holds a control token that the tokenizer cannot read as plain text; remove it")
        return ids, [any(low < stop and start < high for low, high in spans) for start, stop in offsets]

    def _plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of plain text, and the characters that each stands for."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return encoded["input_ids"], encoded["offset_mapping"]

    def _check_length(self, rows: list, max_length: int | None) -> None:
        for i, (ids, _) in enumerate(rows):
            if max_length is not None and len(ids) > max_length:
                which = f"conversation {i}" if len(rows) > 1 else "the conversation"
                raise ConversationTooLong(f"{which} has {len(ids)} tokens, the model takes {max_length}: shorten it")

    def _pad(self, rows: list, side: str, return_labels: bool) -> dict[str, torch.Tensor]:
        length = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        data = {
            "input_ids": torch.full((len(rows), length), pad),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        }
        if return_labels:
            data["labels"] = torch.full((len(rows), length), IGNORED_LABEL)
        for i, (ids, learned) in enumerate(rows):
            where = slice(length - len(ids), length) if side == "left" else slice(0, len(ids))
            row = torch.tensor(ids)
            data["input_ids"][i, where] = row
            data["attention_mask"][i, where] = 1
            if return_labels:
                data["labels"][i, where] = row.masked_fill(~torch.tensor(learned), IGNORED_LABEL)
        return data

    # ------------------------------------------------------------------ token ids → messages

    def decode_parts(self, token_ids: Sequence[int]) -> list[dict]:
        """An answer's ids → message parts in order: `{"type": "text", "text"}` and `{"type": <modality>}` per run."""
        parts: list[dict] = []
        text: list[int] = []

        def close_text():
            words = self.tokenizer.decode(text, skip_special_tokens=True)
            words = words if parts else words.lstrip()
            if words.strip():
                parts.append({"type": "text", "text": words})
            text.clear()

        signals = {token for run in self.vocabulary.runs.values() for token in run}
        for token in token_ids:
            if token in self.vocabulary.starts:
                close_text()
                parts.append({"type": self.vocabulary.starts[token]})
            elif token not in signals:
                text.append(token)
        close_text()
        if parts and parts[-1]["type"] == "text":
            parts[-1]["text"] = parts[-1]["text"].rstrip()
        return parts


def _is_control(token: AddedToken) -> bool:
    """White space may be an added token too (Gemma's line breaks); it is ordinary text."""
    return token.special or bool(token.content.replace("▁", " ").strip())


def _control_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Matches what the template writes as control tokens: special and added tokens, the longest first."""
    tokens = set(tokenizer.all_special_tokens)
    tokens |= {token.content for token in tokenizer.added_tokens_decoder.values() if _is_control(token)}
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")")


AutoProcessor.register(NextGPTConfig, NextGPTProcessor, exist_ok=True)
