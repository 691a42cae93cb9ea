"""The chat in the browser: the page, what its buttons do, and the server. Knows Gradio; leaves the answering to others.

What the page shows is drawn from the conversation that the server keeps; nothing of it is ever taken back as truth.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from nextgpt.demo.answers import PLACES, Answers
from nextgpt.demo.api import add_endpoints, refusals
from nextgpt.demo.conversations import KEEP_HOURS, Conversation, Store, media_of
from nextgpt.demo.options import Panel
from nextgpt.demo.view import Shown, happened, listed, shown
from nextgpt.errors import UserInputError
from nextgpt.media import guess_modality
from nextgpt.pipeline import NextGPTPipeline

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
MAX_UPLOAD = "100mb"
KEEP_UPLOADS = 3600  # seconds in Gradio's own folder, of what is never sent; the rest goes with its conversation
POLL = 0.1  # seconds between two looks at an answer under way

TABS_ANSWER_IN = 500  # milliseconds
TAB = "nextgpt-conversation"  # name in the tab's own storage, which outlives a reload and no more
# A duplicated tab begins with a copy of that storage. So a tab that comes with an id asks the others whether it is
# theirs; of two that ask at once, the lower number keeps it. The id is a secret: only its beginning is told.
READ_TAB = f"""async () => {{
    const id = () => sessionStorage.getItem('{TAB}') || '';
    const beginning = () => id().slice(0, 8);
    const others = new BroadcastChannel('{TAB}');
    let number = Math.random(), taken = false;
    others.onmessage = ({{data}}) => {{
        if (!id() || data.beginning !== beginning()) return;
        if (data.taken === number) taken = true;
        if (data.number > number) others.postMessage({{beginning: beginning(), taken: data.number}});
    }};
    if (id()) {{
        others.postMessage({{beginning: beginning(), number}});
        await new Promise(resolve => setTimeout(resolve, {TABS_ANSWER_IN}));
        if (taken) sessionStorage.removeItem('{TAB}');
    }}
    number = 0;
    return id();
}}"""
# Every button sends the id first; one that is pressed while the page still opens waits for it.
WITH_TAB = """async (_, ...others) => {
    while (!window.nextgptConversation) await new Promise(resolve => setTimeout(resolve, 50));
    return [window.nextgptConversation, ...others];
}"""
WRITE_TAB = f"id => {{ sessionStorage.setItem('{TAB}', id); window.nextgptConversation = id; return [] }}"
SAVE_FILE = """file => {
    Object.assign(document.createElement('a'), {href: file.url, download: file.orig_name}).click();
    return [];
}"""


def launch(
    pipeline: NextGPTPipeline,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the page until Ctrl-C or SIGTERM; all its files go then.

    Args:
        pipeline: what answers.
        host, port: where to listen; 127.0.0.1 is reached from this machine only.
        share: also make a public link through Gradio's servers.
        on_ready: called with the page's address as soon as it answers; by default the address is logged.

    Raises:
        UserInputError: the port is taken or the address is not this machine's.
    """
    with _exiting_on_sigterm(), _uploads_in_a_folder_of_our_own():
        chat = Chat(pipeline)
        try:
            address = chat.serve(host, port, share)
            (on_ready or (lambda address: logger.info("listening on %s", address)))(address)
            chat.page.block_thread()
        finally:
            chat.close()


@contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """By default SIGTERM ends Python at once, and whatever should be cleaned up stays."""
    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uploads_in_a_folder_of_our_own() -> Iterator[None]:
    """Gradio keeps uploads in a folder that all its programs share, and empties it only in part."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="nextgpt-uploads-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


class Chat:
    """The page and its server.

    Args:
        pipeline: what answers.
        keep_hours: how long a conversation is kept after its last use.
        places: how many questions may wait while another is answered.
        max_upload: of one file, as Gradio takes it.

    Attributes:
        page: the Gradio page.
    """

    def __init__(
        self,
        pipeline: NextGPTPipeline,
        *,
        keep_hours: float = KEEP_HOURS,
        places: int = PLACES,
        max_upload: str = MAX_UPLOAD,
    ):
        self.pipeline, self.max_upload = pipeline, max_upload
        self.store = Store(pipeline.new_session, keep_hours, uploads=Path(get_upload_folder()))
        self.answers = Answers(pipeline, self.store, places)
        gr.set_static_paths([self.store.folder, EXAMPLES])  # served from where they are; nothing else of ours is
        self.page = self._build(read_examples(EXAMPLES, pipeline))

    def serve(self, host: str, port: int | None = None, share: bool = False) -> str:
        """Begins to listen and returns the page's address.

        Raises:
            UserInputError: the port is taken or the address is not this machine's.
        """
        try:
            _, local, public = self.page.queue(default_concurrency_limit=None).launch(
                server_name=host,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                max_file_size=self.max_upload,
                run_history=False,  # the browser would keep questions and answers beyond their time
                enable_monitoring=False,
                footer_links=["api", "settings"],
                css_paths=HERE / "style.css",
            )
        except (OSError, OverflowError) as error:
            raise UserInputError(
                f"the page cannot listen on {host}, port {port} ({error}): give another --port or --host"
            ) from None
        return public or local

    def close(self) -> None:
        """Stops serving; conversations and their files go."""
        self.page.close(verbose=False)
        self.answers.close()
        self.store.close()

    # ------------------------------------------------------------------ the page

    def _build(self, examples: list[dict]) -> gr.Blocks:
        takes, gives = self.pipeline.input_modalities, self.pipeline.output_modalities
        with gr.Blocks(title="NExT-GPT", analytics_enabled=False, delete_cache=(600, KEEP_UPLOADS)) as page:
            gr.HTML(
                f"<h1>NExT-GPT</h1><p>Takes {listed(takes)}; answers with {listed(gives)}. A conversation is kept for "
                f"{self.store.keep_hours:g} hours after its last use, then deleted with its files.</p>",
                elem_id="title",
            )
            self.tab = gr.Textbox(visible=False)
            self.chatbot = gr.Chatbot(
                show_label=False,
                label="Conversation",
                elem_id="conversation",
                height="58vh",
                min_height="16rem",
                buttons=["copy"],
                editable="user",
                group_consecutive_messages=False,  # in a bubble that holds more than words, Gradio's edit button fails
                latex_delimiters=[],
                placeholder="Write, attach a file, or take an example from below.",
            )
            self.box = gr.MultimodalTextbox(
                show_label=False,
                label="Message",
                elem_id="message",
                file_count="multiple",
                sources=["upload", "microphone"] if "audio" in takes else ["upload"],
                placeholder="Write a message; attach, drop or paste files",
                max_plain_text_length=10_000,
                autofocus=True,
            )
            with gr.Row(elem_id="examples"):
                buttons = [gr.Button(each["label"], size="sm", min_width=0) for each in examples]
            with gr.Accordion("What happened", open=False, elem_id="happened"):
                self.happened = gr.HTML(happened([]))
            with gr.Row(elem_id="keep"):
                export = gr.Button("Export", size="sm", min_width=0)
                unpack = gr.UploadButton("Import", size="sm", min_width=0, file_types=[".zip"])
                exported = gr.DownloadButton("Exported", visible="hidden")
            with gr.Sidebar(label="Options", open=False, position="right"):
                gr.Markdown("### Options")
                self.panel = Panel(self.pipeline)

            answered = [self.box, self.chatbot, self.happened]
            given = [self.tab, *self.panel.components]
            private = {"api_name": "page", "api_visibility": "private", "show_progress": "hidden"}
            page.load(self.open, self.tab, self.tab, js=READ_TAB, **private).then(
                None, self.tab, None, js=WRITE_TAB, **private
            ).then(self.follow, self.tab, answered, **private)
            private["js"] = WITH_TAB
            self.box.submit(self.ask, [self.tab, self.box, *self.panel.components], answered, **private)
            self.box.stop(self.stop, self.tab, None, queue=False, **private)
            self.chatbot.retry(self.retry, given, answered, **private)
            self.chatbot.edit(self.edit, given, answered, **private)
            self.chatbot.undo(self.undo, self.tab, answered, **private)
            self.chatbot.clear(self.clear, self.tab, answered, **private)
            for example, button in zip(examples, buttons, strict=True):
                button.click(self._asking(example), given, answered, **private)
            unpack.upload(self.unpack, [self.tab, unpack], answered, **private)
            saved = export.click(self.export, self.tab, exported, **private)
            saved.success(None, exported, None, js=SAVE_FILE, api_visibility="private")
            add_endpoints(self.answers, self.store)
        return page

    # ------------------------------------------------------------------ what its buttons do

    def open(self, tab: str) -> str:
        """The id that the tab has, or a new one where it has none or its conversation is gone."""
        try:
            return self.store.get(tab).id
        except UserInputError:
            return self.store.create().id

    async def follow(self, tab: str) -> AsyncIterator[tuple]:
        """Keeps the page like the conversation until no answer is under way."""
        with refusals():
            conversation = self.store.get(tab)
        async for update in self._follow(conversation):
            yield update

    async def ask(self, tab: str, message: dict, *options) -> AsyncIterator[tuple]:
        """Sends what stands in the box."""
        with refusals():
            conversation = self.store.get(tab)
            text, files = message.get("text") or "", message.get("files") or []
            await asyncio.to_thread(self.answers.ask, conversation, text, files, self.panel.options(*options))
        async for update in self._follow(conversation, gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)):
            yield update

    def _asking(self, example: dict) -> Callable[..., AsyncIterator[tuple]]:
        """What an example's button does: it asks, and leaves the box alone."""

        async def ask_example(tab: str, *options) -> AsyncIterator[tuple]:
            with refusals():
                conversation = self.store.get(tab)
                given = self.panel.options(*options)
                await asyncio.to_thread(self.answers.ask, conversation, example["text"], example["files"], given)
            async for update in self._follow(conversation):
                yield update

        return ask_example

    async def retry(self, event: gr.RetryData, tab: str, *options) -> AsyncIterator[tuple]:
        """Answers a question again, with another seed."""
        with refusals():
            conversation = self.store.get(tab)
            given = self.panel.options(*options) | {"seed": None}
            await asyncio.to_thread(self.answers.ask_again, conversation, _turn(conversation, event), given)
        async for update in self._follow(conversation):
            yield update

    async def edit(self, event: gr.EditData, tab: str, *options) -> AsyncIterator[tuple]:
        """Answers a question in its new words."""
        with refusals():
            conversation = self.store.get(tab)
            turn, given = _turn(conversation, event), self.panel.options(*options)
            await asyncio.to_thread(self.answers.ask_again, conversation, turn, given, text=str(event.value))
        async for update in self._follow(conversation):
            yield update

    def undo(self, event: gr.UndoData, tab: str) -> tuple:
        """Takes the last question back into the box."""
        with refusals():
            conversation = self.store.get(tab)
            question = self.answers.undo(conversation, _turn(conversation, event))
        text = " ".join(part["text"] for part in question if part["type"] == "text")
        files = [part["path"] for part in media_of(question)]
        return {"text": text, "files": files}, *self._drawn(conversation)

    def clear(self, tab: str) -> tuple:
        """Empties the conversation."""
        with refusals():
            conversation = self.store.get(tab)
            self.answers.clear(conversation)
        return gr.skip(), *self._drawn(conversation)

    def stop(self, tab: str) -> None:
        """Stops the answer, or takes the question out of the line."""
        with refusals():
            self.answers.stop(self.store.get(tab))

    def export(self, tab: str) -> str:
        """Packs the conversation."""
        with refusals():
            return str(self.answers.export(self.store.get(tab)))

    def unpack(self, tab: str, path: str) -> tuple:
        """Puts an exported conversation in the place of this one."""
        with refusals():
            conversation = self.store.get(tab)
            self.answers.take_over(conversation, path)
        return gr.skip(), *self._drawn(conversation)

    async def _follow(self, conversation: Conversation, box: gr.MultimodalTextbox | None = None) -> AsyncIterator[tuple]:
        box = box or gr.MultimodalTextbox(submit_btn=False, stop_btn=True)
        seen = None
        while conversation.busy:
            now = self._shown(conversation)
            if now != seen:
                yield box, as_gradio(now), gr.skip()
                box, seen = gr.skip(), now
            await asyncio.sleep(POLL)
        yield gr.MultimodalTextbox(submit_btn=True, stop_btn=False), *self._drawn(conversation)

    def _shown(self, conversation: Conversation) -> list[Shown]:
        return shown(conversation, self.answers.place(conversation))

    def _drawn(self, conversation: Conversation) -> tuple[list[dict], str]:
        return as_gradio(self._shown(conversation)), happened(conversation.turns)


def read_examples(folder: Path, pipeline: NextGPTPipeline) -> list[dict]:
    """The examples of `examples.json` that this model can do: `text`, `files` (in the folder) and `answer`, a kind.

    A `label` that says the direction is added.
    """
    examples = []
    for example in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        files = [str(folder / name) for name in example["files"]]
        kinds = [guess_modality(path) for path in files]
        if set(kinds) <= set(pipeline.input_modalities) and example["answer"] in pipeline.output_modalities:
            label = f"{' + '.join(kinds) or 'text'} → {example['answer']}: {example['text']}"
            examples.append(example | {"files": files, "label": label})
    return examples


def as_gradio(pieces: list[Shown]) -> list[dict]:
    """What is shown, as the messages of Gradio's chatbot; one message a piece, so that indices agree."""
    return [
        {"role": piece.role, "content": gr.HTML(piece.html, padding=False) if piece.html else piece.text} for piece in pieces
    ]


def _turn(conversation: Conversation, event: gr.RetryData | gr.EditData | gr.UndoData) -> int:
    """The turn whose piece a button of the chatbot belongs to."""
    index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
    pieces = shown(conversation)
    if not 0 <= index < len(pieces):
        raise UserInputError("the conversation has changed meanwhile: reload the page")
    return pieces[index].turn
