"""From the messages of a request to the pipeline's: media fetched and decoded, the assistant's own found again."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from nextgpt.errors import UserInputError
from nextgpt.media import guess_modality
from nextgpt.serve.errors import ApiError, invalid, too_large
from nextgpt.serve.fetch import Fetcher, media_too_large
from nextgpt.serve.media_store import ID_LENGTH, KeptMedium, MediaStore
from nextgpt.serve.schema import AnswerPart, AssistantMessage, FilePart, Strict, SystemMessage
from nextgpt.serve.settings import ServerSettings

MEDIA_PATH = "/v1/media/"
BEFORE_ID = re.compile(r"\n{0,2}!?\[[^\[\]\n]{0,64}\]\([^()\s]{0,300}$")  # the beginning of a link
ID = re.compile(rf"([\w-]{{{ID_LENGTH}}})[^()\s]{{0,16}}\)\n{{0,2}}")  # and its end
WINDOW = 400  # characters before an id in which its link begins
READ_AT_ONCE = 4  # media of a request
ADDRESSED = {"image_url": "image", "video_url": "video", "audio_url": "audio"}  # part with an address → kind of media


class Budget:
    """How many bytes of media a conversation may still show; so many as a request's body may have."""

    def __init__(self, settings: ServerSettings):
        self.left = self.most = settings.max_body

    def spend(self, part: dict[str, Any], place: str) -> None:
        """Counts a part.

        Raises:
            ApiError: it is too much.
        """
        data = part[part["type"]]
        self.left -= len(data) if isinstance(data, bytes) else 0
        if self.left < 0:
            raise too_large(f"the media are larger than {self.most / 1e6:g} MB together (max_body)", place)


class ConversationReader:
    """Reads the messages of requests.

    Args:
        settings: the limits.
        fetcher: of media that are named by address.
        store: where the assistant's own media are.
    """

    def __init__(self, settings: ServerSettings, fetcher: Fetcher, store: MediaStore):
        self.settings, self.fetcher, self.store = settings, fetcher, store

    async def read(self, messages: Sequence[Strict], owner: str) -> list[dict[str, Any]]:
        """Messages as the pipeline takes them; the files that users show are in them as bytes.

        All that the system and the developer say comes first, for models are told once.

        Args:
            owner: whose request it is: media of other owners' answers are not found.

        Raises:
            ApiError: a limit is passed, a medium cannot be had, or an id is not known; its `param` names the part.
        """
        self._check_counts(messages)
        told = [text for message in messages if isinstance(message, SystemMessage) for text in _texts(message)]
        budget = Budget(self.settings)
        read = [{"role": "system", "content": [{"type": "text", "text": "\n\n".join(told)}]}] if told else []
        for i, message in enumerate(messages):
            if isinstance(message, SystemMessage):
                continue
            if isinstance(message, AssistantMessage):
                content = self._answer(message, owner, f"messages.{i}")
            elif isinstance(message.content, str):
                content = [{"type": "text", "text": message.content}]
            else:
                content = await self._parts(message.content, f"messages.{i}.content", budget)
            read.append({"role": message.role, "content": content})
        return read

    def _check_counts(self, messages: Sequence[Strict]) -> None:
        """The limits that span messages; how many of these there are, the schema checks."""
        limits = self.settings
        contents = [message.content for message in messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        parts += [part for message in messages for part in getattr(message, "parts", None) or ()]
        if len(parts) > limits.max_parts:
            raise too_large(f"{len(parts)} parts, at most {limits.max_parts} are taken (max_parts)", "messages")
        texts = [content for content in contents if isinstance(content, str)]
        texts += [getattr(each, name, None) for each in (*messages, *parts) for name in ("text", "refusal")]
        characters = sum(len(text or "") for text in texts)
        if characters > limits.max_text:
            raise too_large(f"{characters} characters, at most {limits.max_text} are taken (max_text)", "messages")
        media = sum(not isinstance(part, AnswerPart) and getattr(part, "type", "text") not in TEXTS for part in parts)
        if media > limits.max_media:
            raise too_large(f"{media} pieces of media, at most {limits.max_media} are taken (max_media)", "messages")

    # ------------------------------------------------------------------ what users show

    async def _parts(self, parts: Sequence[Any], place: str, budget: Budget) -> list[dict[str, Any]]:
        """The parts of a message, a few at a time; where one is refused, the others are given up."""
        at_once = asyncio.Semaphore(READ_AT_ONCE)

        async def read(part: Any, place: str) -> dict[str, Any]:
            async with at_once:
                found = await self._part(part, place)
                budget.spend(found, place)
                return found

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(read(part, f"{place}.{i}")) for i, part in enumerate(parts)]
        except* ApiError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _part(self, part: Any, place: str) -> dict[str, Any]:
        if part.type == "text":
            return {"type": "text", "text": part.text}
        if part.type in ADDRESSED:
            kind, place = ADDRESSED[part.type], f"{place}.{part.type}.url"
            data = await self._at(getattr(part, part.type).url, place)
        elif isinstance(part, FilePart):
            place = f"{place}.file.file_data"
            data = await asyncio.to_thread(self._decode, part.file.file_data, place)
            try:
                kind = await asyncio.to_thread(guess_modality, data)
            except UserInputError as error:
                raise invalid(str(error), place, "unsupported_file") from None
        else:
            kind = "audio"
            data = await asyncio.to_thread(self._decode, part.input_audio.data, f"{place}.input_audio.data")
        return {"type": kind, kind: data}

    async def _at(self, address: str, place: str) -> bytes:
        if address[:5].lower() == "data:":
            return await asyncio.to_thread(self._decode, address, place)
        return await self.fetcher.fetch(address, place)

    def _decode(self, text: str, place: str) -> bytes:
        """Base64, with or without the `data:` before it; the type that stands there is not believed."""
        if text[:5].lower() == "data:":
            header, _, text = text.partition(",")
            if not header.lower().endswith(";base64"):
                raise invalid("not a base64 data: URL; give it as data:image/png;base64,…", place, "invalid_url")
        if len(text) * 3 // 4 > self.settings.max_media_bytes + 3:
            raise media_too_large("the file", self.settings, place)
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid(f"broken base64 ({error}); encode the file again", place, "invalid_base64") from None
        if not data:
            raise invalid("holds no bytes; encode the file again", place, "invalid_base64")
        return data

    # ------------------------------------------------------------------ what the assistant answered

    def _answer(self, message: AssistantMessage, owner: str, place: str) -> list[dict[str, Any]]:
        """An answer from its parts; or its text, in which links stand for media; or a sound that it holds."""
        if message.parts is not None:
            return [self._answer_part(part, owner, f"{place}.parts.{i}") for i, part in enumerate(message.parts)]
        if isinstance(message.content, list):
            texts = [part.text if part.type == "text" else part.refusal for part in message.content]
        else:
            texts = [message.content or message.refusal or ""]
        parts = [part for text in texts for part in self._linked(text, owner, f"{place}.content")]
        if message.audio is not None:
            answer = self._kept(message.audio.id, owner, f"{place}.audio.id").answer
            if not any(part["type"] != "text" for part in parts):
                parts = answer.parts
        return parts or [{"type": "text", "text": ""}]

    def _linked(self, text: str, owner: str, place: str) -> list[dict[str, Any]]:
        links = find_links(text)
        found = [self._kept(id, owner, place) for _, _, id in links]
        if found and text == found[0].answer.content:
            return found[0].answer.parts
        parts: list[dict[str, Any]] = []
        begins = [0, *(end for _, end, _ in links)]
        ends = [*(begin for begin, _, _ in links), len(text)]
        for begin, end, kept in zip(begins, ends, [*found, None], strict=True):
            parts += [{"type": "text", "text": text[begin:end]}] if begin < end else []
            parts += [{"type": kept.kind}] if kept is not None else []
        return parts

    def _answer_part(self, part: AnswerPart, owner: str, place: str) -> dict[str, Any]:
        if part.type == "text":
            return {"type": "text", "text": part.text or ""}
        if part.id is None:
            raise invalid(f"{part.type} of an answer is named by its id, and there is none", f"{place}.id")
        return {"type": self._kept(part.id, owner, f"{place}.id").kind}

    def _kept(self, id: str, owner: str, place: str) -> KeptMedium:
        kept = self.store.find(id, owner)
        if kept is None:
            raise unknown_medium(id, place)
        return kept


def find_links(text: str) -> list[tuple[int, int, str]]:
    """The links to media in a text: where each begins and ends, line breaks around it included, and its id.

    What merely looks like one, as a model may write it, is text.
    """
    links, position = [], 0
    while (at := text.find(MEDIA_PATH, position)) >= 0:
        position = at + len(MEDIA_PATH)
        least = max(links[-1][1] if links else 0, at - WINDOW)
        before, id = BEFORE_ID.search(text[least:at]), ID.match(text, position)
        if before and id:
            links.append((least + before.start(), id.end(), id[1]))
            position = id.end()
    return links


def _texts(message: SystemMessage) -> list[str]:
    return [message.content] if isinstance(message.content, str) else [part.text for part in message.content]


TEXTS = ("text", "refusal")


def unknown_medium(id: str, place: str) -> ApiError:
    """The error for an id that stands for nothing."""
    return invalid(
        f"the medium {id!r} is not kept here (any more): it has expired or belongs to somebody else; leave the message out, "
        "or show the medium in a message of the user",
        place,
        "unknown_medium",
    )
