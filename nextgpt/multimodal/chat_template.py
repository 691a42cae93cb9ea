"""The chat of transformers' processors: `apply_chat_template`, plain texts with media, and answers made readable.

What it does not know is refused by name: in transformers that reaches the template or the tokenizer, here it would be lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.modeling_outputs import ModelOutput
from transformers.utils.chat_template_utils import _get_template_variables

from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.modalities import MODALITIES

ROLES = ("system", "user", "assistant")
MESSAGE_KEYS = ("role", "content")
PART_KEYS = ("type", "text", "path", "url", "base64", "image_url", "caption", "seed")  # and the modalities
PLURALS = {"images": "image", "videos": "video", "audio": "audio"}  # as transformers' processors call them
# What every call is told by its own argument, so that it cannot come as a variable of the template.
_NO_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}


class ChatTemplateMixin:
    """What transformers' processors share; expects `_render`, `tokenizer`, `chat_template`, `vocabulary` and `__call__`."""

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        tools: list | None = None,
        documents: list | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: dict | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """One conversation or a list of them, as the LLM reads it; the arguments are those of transformers' processors.

        Args:
            chat_template: in place of the processor's own.
            tools, documents, load_audio_from_video: not taken.
            continue_final_message: leave the last message open, so that the answer goes on with it.
            return_assistant_tokens_mask: also `assistant_masks`, 1 where the assistant wrote.
            tokenize: give tensors (`return_dict`: all that the model takes; else `input_ids` alone) in place of text.
            processor_kwargs: arguments of `__call__`.
            sanitize_control_tokens: whatever it is, words in a message never become control tokens.
            kwargs: variables of the template, or arguments of `__call__`.

        Raises:
            UserInputError: an argument, a message or a part is not known; it is named.
        """
        for name, given in (("tools", tools), ("documents", documents), ("load_audio_from_video", load_audio_from_video)):
            if given:
                raise UserInputError(
                    f"apply_chat_template: {name} is given, which NExT-GPT's chat does not take: leave it out"
                )
        if continue_final_message and add_generation_prompt:
            raise UserInputError("continue_final_message and add_generation_prompt are both set: choose one")
        if continue_final_message not in (True, False, "content"):
            raise UserInputError(f"continue_final_message is {continue_final_message!r}: a message goes on with its content")
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise UserInputError("return_assistant_tokens_mask needs tokenize=True and return_dict=True")
        conversations = self._as_conversations(conversation)
        _check_part_keys(conversations)
        template = chat_template or self.chat_template
        variables, processor_kwargs = self._sort_keywords(template, kwargs, processor_kwargs or {})
        rendering = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        rendering |= {"chat_template": template, "template_kwargs": variables}
        if not tokenize:
            texts = [self._text_of(self._render(each, **rendering)[0]) for each in conversations]
            return texts if isinstance(conversation[0], (list, tuple)) else texts[0]
        processor_kwargs |= {"return_tensors": return_tensors} if return_tensors != "auto" else {}
        wants_labels = processor_kwargs.pop("return_labels", False)
        inputs = self(
            conversation, **rendering, return_labels=wants_labels or return_assistant_tokens_mask, **processor_kwargs
        )
        if return_assistant_tokens_mask:
            labels = inputs["labels"] if wants_labels else inputs.pop("labels")
            inputs["assistant_masks"] = (labels >= 0).long()
        return inputs if return_dict else inputs["input_ids"]

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list:
        """What the model's `generate` gave in a mode, made readable.

        Args:
            generated_outputs: token ids `[batch, length]` or media, or what holds them (`return_dict_in_generate`).
            skip_special_tokens: in text.
            generation_mode: as given to `generate`.
            kwargs: of the tokenizer's `decode`, in text.

        Returns:
            One for each row: texts, PIL images, sounds (float32 `[samples]`) or clips (uint8 `[frames, height, width, 3]`).

        Raises:
            UserInputError: the processor knows no such mode.
        """
        if generation_mode in (None, "text"):
            ids = generated_outputs["sequences"] if isinstance(generated_outputs, ModelOutput) else generated_outputs
            return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode not in self.vocabulary.runs:
            known = ", ".join(("text", *self.vocabulary.runs))
            raise UserInputError(f"generation_mode is {generation_mode!r}: this model's modes are {known}")
        media = generated_outputs["media"] if isinstance(generated_outputs, ModelOutput) else generated_outputs
        media = [np.asarray(each) for each in media.cpu()]
        return [Image.fromarray(each) if each.ndim == 3 else each for each in media]  # sounds have one dimension, clips four

    def _sort_keywords(self, template: str, keywords: dict, processor_kwargs: dict) -> tuple[dict, dict]:
        """Keywords → the template's variables, and the arguments of `__call__`."""
        variables = set(_get_template_variables(template)) - _NO_VARIABLES
        known = _keywords(self.__call__) - _keywords(self.apply_chat_template) - {"template_kwargs", *PLURALS, "text"}
        for name in (*keywords, *processor_kwargs):
            if name not in known and not (name in keywords and name in variables):
                every = {*known, *variables, *_keywords(self.apply_chat_template)}
                hint = did_you_mean(name, every, "neither the processor nor its chat template has it")
                raise UserInputError(f"apply_chat_template got {name!r}, which is not known; {hint}")
        for name in variables & set(keywords):
            if isinstance(keywords[name], str) and self._control_tokens.search(keywords[name]):
                raise UserInputError(f"{name} is {keywords[name]!r}: it holds a control token; leave it out")
        given = {name: value for name, value in keywords.items() if name in variables}
        return given, {name: value for name, value in keywords.items() if name not in variables} | processor_kwargs

    def _text_of(self, pieces: list) -> str:
        return "".join(piece.text if piece.text is not None else self.tokenizer.decode(piece.token_ids) for piece in pieces)

    def _given(self, messages: Any, text: Any, **media: Any) -> Any:
        """Chat messages as they are; plain texts with media become one user's message each, the media first."""
        media = {name: given for name, given in media.items() if given is not None}
        if messages is not None:
            if text is not None or media:
                raise UserInputError(f"messages come with {', '.join(media) or 'text'}: put all into the messages")
            return messages
        if text is None and not media:
            raise UserInputError("messages is missing: give a list of messages with role and content")
        texts = text if isinstance(text, (list, tuple)) else [text]
        columns = {name: given if isinstance(text, (list, tuple)) else [given] for name, given in media.items()}
        for name, column in columns.items():
            if not isinstance(column, (list, tuple)) or len(column) != len(texts):
                raise UserInputError(f"{name} has to be a list with one entry for each of the {len(texts)} texts")
        conversations = []
        for i, words in enumerate(texts):
            content = []
            for name, column in columns.items():
                values = column[i] if isinstance(column[i], list) else [column[i]]
                content += [{"type": PLURALS[name], PLURALS[name]: value} for value in values if value is not None]
            if words is not None:
                self._check_not_rendered(words)
                content.append({"type": "text", "text": words})
            conversations.append([{"role": "user", "content": content}])
        return conversations

    def _check_not_rendered(self, text: Any) -> None:
        """A prompt that was rendered already would be read as a user's words."""
        marks = self.vocabulary.strings[self.vocabulary.num_signals :]
        begins = (self.tokenizer.bos_token,) if self.tokenizer.bos_token else ()
        if isinstance(text, str) and (text.startswith(begins) or any(mark in text for mark in marks)):
            raise UserInputError(
                "text is a prompt that was rendered already: give the messages themselves, or "
                "apply_chat_template(messages, tokenize=True, return_dict=True)"
            )

    def _as_conversations(self, messages: Any) -> list[list[dict]]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise UserInputError(f"messages is {short(messages)}: expected a list of messages with role and content")
        if isinstance(messages[0], (list, tuple)):
            return [self._check_conversation(each) for each in messages]
        return [self._check_conversation(messages)]

    def _check_conversation(self, conversation: Sequence) -> list[dict]:
        for i, message in enumerate(conversation):
            if not isinstance(message, dict):
                raise UserInputError(f"message {i} is {short(message)}: expected a dictionary with role and content")
            if "role" not in message:
                raise UserInputError(f"message {i} has no role: give one of {', '.join(ROLES)}")
            if message["role"] not in ROLES:
                raise UserInputError(f"message {i} has role {message['role']!r}: expected one of {', '.join(ROLES)}")
            if "content" not in message:
                raise UserInputError(f"message {i} ({message['role']}) has no content: give a text or a list of parts")
            if unknown := [key for key, value in message.items() if key not in MESSAGE_KEYS and value is not None]:
                raise UserInputError(
                    f"message {i} ({message['role']}) has {', '.join(map(str, unknown))}, which this model cannot read: "
                    "a message has role and content"
                )
        if not conversation:
            raise UserInputError("the conversation is empty: give at least one message")
        return list(conversation)


def short(value: Any) -> str:
    """A value for an error's message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def openai_part(part: Any) -> Any:
    """OpenAI's picture in a message becomes Hugging Face's; other parts stay as they are."""
    if not isinstance(part, dict) or part.get("type") != "image_url" or "image_url" not in part:
        return part
    address = part["image_url"]
    return {"type": "image", "url": address.get("url") if isinstance(address, dict) else address}


def _check_part_keys(conversations: list[list[dict]]) -> None:
    """Refuses what other models read in a part (sizes, frame rates) and this one would lose."""
    part_keys = {*PART_KEYS, *MODALITIES}
    for conversation in conversations:
        for i, message in enumerate(conversation):
            parts = message["content"] if isinstance(message["content"], (list, tuple)) else ()
            known = [part for part in parts if isinstance(part, dict) and part.get("type") in part_keys]
            for key, value in (pair for part in known for pair in part.items()):
                if key not in part_keys and value is not None:
                    raise UserInputError(
                        f"message {i}: a part has {key} {short(value)}, which this model cannot read; leave it out"
                    )


def _keywords(function: Callable) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)} - {"messages"}
