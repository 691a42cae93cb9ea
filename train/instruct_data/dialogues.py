"""Dialogues that carry media: modality-switching ones from nothing, and instructions from captions.

`modality_switching` is NExT-GPT's MosIT (Wu et al. 2024, section 5.2): dialogues about many topics, of three to seven
exchanges, whose turns show and make media of changing kinds. `captions_to_instructions` turns each captioned medium into a
conversation about it, a description or a piece of reasoning, as LLaVA did (Liu et al. 2023, section 3), and into a wish for
it, which is NExT-GPT's T2M.
"""

from __future__ import annotations

import re

from nextgpt.train.data.markers import parts_of, words_of
from nextgpt.train.instruct_data.answers import parse_json, text_in, to_message
from nextgpt.train.instruct_data.jobs import Dropped, Job, Task, mark
from nextgpt.train.instruct_data.material import Medium

FEWEST_EXCHANGES, MOST_EXCHANGES = 3, 7
FEWEST_WITH_MEDIA = 2  # turns of a modality-switching dialogue
FORMS = ("captions_conversation", "captions_wish", "captions_description", "captions_reasoning")
_CAPTION_TALK = re.compile(
    r"\b(?:captions?|(?:given|provided) (?:description|text)|(?:description|text) (?:given|provided))\b"
)


async def modality_switching(job: Job) -> list[Task]:
    """One dialogue on one topic."""
    asked = {
        "exchanges": job.random.randint(FEWEST_EXCHANGES, MOST_EXCHANGES),
        "topic": job.random.choice(job.prompts.topics),
        "kinds": ", ".join(job.made),
        "shown": job.offer(),
    }
    messages = _dialogue(await job.ask("modality_switching", **asked), job)
    check_switching(messages)
    return [Task(" ".join(filter(None, map(words_of, messages))), [messages])]


def check_switching(messages: list[dict]) -> None:
    """Three to seven exchanges, at least two turns with media, and the media change their kind or their side."""
    exchanges = len(messages) // 2
    if not FEWEST_EXCHANGES <= exchanges <= MOST_EXCHANGES:
        raise Dropped(f"a dialogue of fewer than {FEWEST_EXCHANGES} or more than {MOST_EXCHANGES} exchanges")
    carried = [[(message["role"], part["type"]) for part in _media(message)] for message in messages]
    if sum(map(bool, carried)) < FEWEST_WITH_MEDIA:
        raise Dropped(f"a dialogue with media in fewer than {FEWEST_WITH_MEDIA} turns")
    if len({each for turn in carried for each in turn}) < 2:
        raise Dropped("a dialogue that switches between no kinds of media and no sides")


async def captions_to_instructions(job: Job) -> list[Task]:
    """One medium of the set in one form; all media come in turn, and the forms of each."""
    round_, place = divmod(job.number, len(job.media.media))
    medium, form = job.media.media[place], FORMS[(place + round_) % len(FORMS)]
    is_wish = form == "captions_wish"
    job.check_kind(medium.kind, "assistant" if is_wish else "user")
    answer = await job.ask(form, kind=medium.kind, caption=mark(medium.kind, medium.caption))
    return [Task("", [_wish(answer, medium, job) if is_wish else _about(answer, medium, job)])]


def _wish(answer: str, medium: Medium, job: Job) -> list[dict]:
    """A wish that the medium fulfils."""
    found = parse_json(answer)
    user, assistant = (text_in(found, role) for role in ("user", "assistant"))
    check_caption_is_hidden(assistant, medium.caption)
    if mark(medium.kind, medium.caption) not in assistant:  # where the teacher did not place it itself
        assistant = f"{assistant}\n{mark(medium.kind, medium.caption)}"
    messages = [to_message("user", user, job), to_message("assistant", assistant, job)]
    if len(_media(messages[1])) != 1:
        raise Dropped("a wish that is fulfilled with other media, too")
    return messages


def _about(answer: str, medium: Medium, job: Job) -> list[dict]:
    """A conversation that begins with the medium."""
    messages = _dialogue(answer, job)
    for message in messages[1::2]:
        check_caption_is_hidden(words_of(message), medium.caption)
    if any(map(_media, messages)):
        raise Dropped("a conversation about one medium that brings others")
    messages[0]["content"] = [{"type": medium.kind, "path": medium.path}, {"type": "text", "text": messages[0]["content"]}]
    return messages


def check_caption_is_hidden(answer: str, caption: str) -> None:
    """An answer speaks as one who sees or hears the medium, never of the caption that the teacher was given."""
    talk = _CAPTION_TALK.search(answer.lower())
    if talk and talk[0] not in caption.lower():
        raise Dropped("an answer that speaks of the caption")


def _dialogue(answer: str, job: Job) -> list[dict]:
    """The messages of `{"exchanges": [{"user": …, "assistant": …}, …]}`."""
    exchanges = parse_json(answer).get("exchanges")
    if not isinstance(exchanges, list) or not exchanges or not all(isinstance(each, dict) for each in exchanges):
        raise Dropped("JSON without 'exchanges'")
    return [to_message(role, text_in(each, role), job) for each in exchanges for role in ("user", "assistant")]


def _media(message: dict) -> list[dict]:
    return [part for part in parts_of(message["content"]) if part["type"] != "text"]
