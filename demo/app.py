"""The chat in the browser, in its simplest form. Knows Gradio and the pipeline; nothing of models.

A conversation lives in its page: what the page shows is turned back into chat messages for every answer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.events import SUFFIXES, MediaDone, MediaProgress, MediaStarted, TextDelta, save_media
from nextgpt.media import guess_modality
from nextgpt.pipeline import NextGPTPipeline

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)

EXAMPLES = ["Draw a banana on a blue background.", "Draw a small red apple, flat style.", "Show me a cat and a dog."]
KEEP_UPLOADS = 24 * 3600  # seconds


def launch(
    pipeline: NextGPTPipeline,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        pipeline: what answers.
        host, port: where to listen; 127.0.0.1 is reached from this machine only.
        share: also make a public link through Gradio's servers.
        on_ready: called with the page's address as soon as it answers; by default the address is logged.

    Raises:
        UserInputError: the port is taken or the address is not this machine's.
    """
    page = build(pipeline)
    try:
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True, ssr_mode=False
        )
    except (OSError, OverflowError) as error:
        raise UserInputError(
            f"the page cannot listen on {host}, port {port} ({error}): give another --port or --host"
        ) from None
    (on_ready or (lambda address: logger.info("listening on %s", address)))(public or local)
    page.block_thread()


def build(pipeline: NextGPTPipeline) -> gr.Blocks:
    """The page, not served yet. Each visitor's tab is a conversation of its own."""
    import gradio as gr

    chatbot = gr.Chatbot(show_label=False, height="70vh", latex_delimiters=[])
    cache = Path(chatbot.GRADIO_CACHE)  # files outside it are not served
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="nextgpt-", dir=cache)  # gone when the page is

    def answer(message: dict, history: list[dict]) -> Iterator[list[dict]]:
        yield from _answer(pipeline, [*history, _as_turn(message)], Path(folder.name))

    return gr.ChatInterface(
        answer,
        multimodal=True,
        title="NExT-GPT",
        description=f"Takes {_listed(pipeline.input_modalities)}; answers with {_listed(pipeline.output_modalities)}.",
        textbox=gr.MultimodalTextbox(
            file_count="multiple",
            sources=["upload", "microphone"] if "audio" in pipeline.input_modalities else ["upload"],
            placeholder="Write a message; attach files if you like",
        ),
        chatbot=chatbot,
        examples=[{"text": example} for example in EXAMPLES] if "image" in pipeline.output_modalities else None,
        api_name="chat",
        analytics_enabled=False,
        delete_cache=(3600, KEEP_UPLOADS),
    )


def _answer(pipeline: NextGPTPipeline, shown: list[dict], folder: Path) -> Iterator[list[dict]]:
    """Everything the answer shows so far, after every event that changes it."""
    done: list[dict] = []  # Gradio messages, one per stretch of text or piece of media
    try:
        for event in pipeline.stream(to_messages(shown)):
            match event:
                case TextDelta(text):
                    if not done or not isinstance(done[-1]["content"], str):
                        done.append({"role": "assistant", "content": ""})
                    done[-1]["content"] += text
                    yield [dict(message) for message in done]
                case MediaStarted(modality=modality):
                    yield [*done, _note(f"Making the {modality} …", "pending")]
                case MediaProgress(modality=modality, step=step, total=total):
                    yield [*done, _note(f"Making the {modality}: step {step} of {total}", "pending")]
                case MediaDone(modality=modality, media=media):
                    with tempfile.NamedTemporaryFile(dir=folder, suffix=SUFFIXES[modality], delete=False) as file:
                        save_media(media, file.name)
                    done.append({"role": "assistant", "content": {"path": file.name}})
                    yield [dict(message) for message in done]
        if not done:
            yield [_note("The answer is empty.", "done")]
    except NextGPTError as error:
        yield [*done, _note(f"Error: {error}", "done")]
    except Exception as error:  # the page must stay usable; the log has the details
        logger.exception("the answer failed")
        yield [*done, _note(f"The answer failed ({type(error).__name__}); see the log.", "done")]


def _note(text: str, status: str) -> dict:
    """Something the page says about an answer; its title keeps it out of the conversation."""
    return {"role": "assistant", "content": "", "metadata": {"title": text, "status": status}}


def to_messages(shown: list[dict]) -> list[dict]:
    """What the page shows (Gradio's messages) → the conversation in the pipeline's chat format.

    Neighbours of one role make one message. Notes are left out, and so is a question that got no answer.

    Raises:
        UserInputError: a file is neither a picture, a sound nor a clip, by its suffix.
    """
    messages: list[dict] = []
    for message in shown:
        role, notes = message["role"], (message.get("metadata") or {}).get("title")
        parts = [] if notes else _as_parts(message["content"])
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += parts
        else:
            messages.append({"role": role, "content": parts})
    answered = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message["content"]]
    keep = {i for answer in answered for i in (answer - 1, answer)} | {len(messages) - 1}
    return [message for i, message in enumerate(messages) if i in keep]


def _as_turn(message: dict) -> dict:
    """What the text box gives, `{"text", "files"}`, as the page will show it."""
    text = [message["text"]] if message.get("text") else []
    return {"role": "user", "content": [{"path": path} for path in message.get("files", [])] + text}


def _as_parts(content: str | dict | list) -> list[dict]:
    """Gradio's content, long (`{"type": "file", "file": {"path": …}}`) or short (a text, `{"path": …}`)."""
    if isinstance(content, list):
        return [part for item in content for part in _as_parts(item)]
    text = content if isinstance(content, str) else content.get("text")
    if text is not None:
        return [{"type": "text", "text": text}]
    path = content.get("file", content)["path"]
    return [{"type": guess_modality(path), "path": path}]


def _listed(modalities: tuple[str, ...]) -> str:
    return ", ".join(modalities[:-1]) + f" and {modalities[-1]}" if len(modalities) > 1 else modalities[0]
