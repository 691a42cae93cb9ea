"""The page: its components and what its buttons do.

What the page shows is drawn from the conversation that the server keeps; nothing comes back from it.
Whatever is refused is told beside the box, and nothing else on the page changes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from html import escape

import gradio as gr

from nextgpt.demo import scripts
from nextgpt.demo.answers import AnswerQueue
from nextgpt.demo.conversations import Conversation, Store, media_of
from nextgpt.demo.options import Panel
from nextgpt.demo.view import Shown, happened, shown, title
from nextgpt.demo.welcome import EXAMPLES, abilities, as_cards, known_as_html, read_examples, shown_name
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.media.text import listed
from nextgpt.modalities import MODALITIES

KEEP_UPLOADS = 3600  # seconds in Gradio's own folder, of what is never sent; the rest goes with its conversation
POLL = 0.1  # seconds between two looks at an answer under way
KEY = "nextgpt"  # of what the browser keeps; only against a glance, the browser is its visitor's own


def told_beside_the_box(handler: Callable) -> Callable:
    """Makes a handler, whose page updates are dictionaries, tell a refusal and leave everything else as it is."""

    @functools.wraps(handler)
    async def run(self: Page, *given) -> AsyncIterator[dict]:
        yield {self.refusal: ""}
        try:
            async for update in handler(self, *given):
                yield update
        except NextGPTError as error:
            yield {self.refusal: as_alert(str(error))}

    return run


class Page:
    """The components of the page, wired to what they do.

    Args:
        answers: who answers.
        store: where the conversations are.
        model: its name on the page.
        known: what the model knows, by heading, where that is known.

    Attributes:
        blocks: the page as Gradio serves it.
        examples: what an empty conversation offers.
    """

    def __init__(self, answers: AnswerQueue, store: Store, *, model: str = "", known: dict[str, list[str]] | None = None):
        self.answers, self.store, self.pipeline = answers, store, answers.pipeline
        self.model, self.known = shown_name(model), known
        self.examples = read_examples(EXAMPLES, self.pipeline)
        with gr.Blocks(title="NExT-GPT", analytics_enabled=False, delete_cache=(600, KEEP_UPLOADS)) as self.blocks:
            self._build()
            self._wire()

    # ------------------------------------------------------------------ what stands on it

    def _build(self) -> None:
        takes = [MODALITIES[kind] for kind in self.pipeline.input_modalities if kind != "text"]
        self.tab, self.visitor = gr.Textbox(visible=False), gr.BrowserState("", storage_key="nextgpt-visitor", secret=KEY)
        self.kept_options = gr.BrowserState(None, storage_key="nextgpt-options", secret=KEY)
        with gr.Row(elem_id="title"):
            name = f"NExT-GPT <small>{escape(self.model)}</small>" if self.model else "NExT-GPT"
            gr.HTML(f"<h1>{name}</h1><p>It {abilities(self.pipeline)}.</p>")
            self.new = gr.Button("New conversation", size="sm", min_width=0)
        self.chatbot = gr.Chatbot(
            show_label=False,
            label="Conversation",
            elem_id="conversation",
            height="62vh",
            min_height="18rem",
            buttons=["copy"],
            editable="user",
            group_consecutive_messages=False,  # in a bubble that holds more than words, Gradio's edit button fails
            latex_delimiters=[],
            placeholder="Write, attach a file, or begin with an example:",
            examples=as_cards(self.examples),
        )
        self.refusal = gr.HTML(elem_id="refusal", padding=False)
        self.refuse_files = gr.Button("Refuse files", visible="hidden", elem_id="refuse-files")  # pressed by a script
        self.other_files, self.large_files = gr.Textbox(visible=False), gr.Textbox(visible=False)
        self.box = gr.MultimodalTextbox(
            show_label=False,
            label="Message",
            elem_id="message",
            file_count="multiple",
            file_types=[upload for row in takes for upload in row.uploads] or None,
            sources=["upload", *(row.recorder for row in takes if row.recorder)],
            placeholder="Write a message; attach, drop or paste files",
            max_plain_text_length=10**9,  # what is longer becomes a file, which the box then refuses
            autofocus=True,
        )
        with gr.Accordion("Conversations", open=False, elem_id="conversations"):
            self.past = gr.Radio([], show_label=False, label="Conversations of this browser", container=False)
            with gr.Row(elem_id="keep"):
                self.export = gr.Button("Export", size="sm", min_width=0)
                self.unpack = gr.UploadButton("Import", size="sm", min_width=0, file_types=[".zip"])
                self.exported = gr.DownloadButton("Exported", visible="hidden")
                self.delete = gr.Button("Delete", size="sm", min_width=0)
            with gr.Row(elem_id="sure", visible=False) as self.sure:
                gr.HTML("<p>Delete this conversation with its files? This cannot be undone.</p>")
                self.delete_really = gr.Button("Delete it", size="sm", min_width=0, variant="stop")
                self.keep = gr.Button("Keep it", size="sm", min_width=0)
            gr.HTML(f"<p>They are kept here for {self.store.keep_hours:g} hours after their last use, then deleted.</p>")
        with gr.Accordion("Options", open=False, elem_id="options"):
            self.panel = Panel(self.pipeline)
        if self.known:
            with gr.Accordion("What does it know?", open=False, elem_id="known"):
                gr.HTML(known_as_html(self.known))
        with gr.Accordion("What happened", open=False, elem_id="happened"):
            self.happened = gr.HTML(happened([]))

    def _wire(self) -> None:
        options = self.panel.components
        given = [self.tab, *options]
        answered = [self.refusal, self.box, self.chatbot, self.happened, self.past]
        entered = [self.refusal, self.tab, self.visitor, self.sure]
        quiet = {
            "api_name": "page",
            "api_visibility": "private",
            "show_progress": "hidden",
            "show_progress_on": self.refusal,
        }
        private = quiet | {"js": scripts.WITH_TAB}
        following = []  # an answer that is shown here until the page goes to another conversation

        def followed(answering: gr.events.Dependency) -> None:
            """Gives the box its button back when the event is over: until then Gradio drops what is sent, without a word."""
            following.extend((answering, answering.then(self.settle, self.tab, self.box, **quiet)))

        def enter(trigger: Callable, handler: Callable, inputs: list, js: str, **more) -> None:
            """Leads the page to another conversation."""
            arrived = trigger(handler, inputs, entered, js=js, **quiet, **more)
            written = arrived.then(None, self.tab, None, js=scripts.WRITE_TAB, **quiet)
            followed(written.then(self.follow, self.tab, answered, **quiet))

        followed(self.box.submit(self.ask, [self.tab, self.box, *options], answered, **private))
        followed(self.chatbot.example_select(self.ask_example, given, answered, **private))
        followed(self.chatbot.retry(self.retry, given, answered, **private))
        followed(self.chatbot.edit(self.edit, given, answered, **private))
        enter(self.blocks.load, self.open, [self.tab, self.visitor], scripts.READ_TAB)
        self.blocks.load(self.restore_options, self.kept_options, options, **quiet)
        self.blocks.load(None, js=scripts.DROP_ANYWHERE)
        self.blocks.load(None, js=scripts.ATTACH_WHAT_FITS)
        refused = [self.other_files, self.large_files]
        self.refuse_files.click(self.tell_refused, refused, self.refusal, js=scripts.NAMES_OF_REFUSED, **quiet)
        elsewhere = {"js": scripts.LEAVE_TAB, "cancels": following}
        for button in (self.new.click, self.chatbot.clear):
            enter(button, self.begin, [self.tab, self.visitor], **elsewhere)
        enter(self.past.input, self.go_to, [self.tab, self.past], **elsewhere)
        enter(self.unpack.upload, self.take_over, [self.tab, self.visitor, self.unpack], **elsewhere)
        enter(self.delete_really.click, self.remove, [self.tab, self.visitor], **elsewhere)
        self.delete.click(lambda: gr.Row(visible=True), None, self.sure, **quiet)
        self.keep.click(lambda: gr.Row(visible=False), None, self.sure, **quiet)
        self.box.stop(self.stop, self.tab, None, queue=False, **private)
        self.chatbot.undo(self.undo, self.tab, answered, **private)
        saved = self.export.click(self.pack, self.tab, [self.refusal, self.exported], **private)
        saved.success(None, self.exported, None, js=scripts.SAVE_FILE, api_visibility="private")
        labels = json.dumps(self.panel.names)
        keep = f"(...values) => [{{names: {labels}, values}}]"
        gr.on([each.change for each in options], None, options, self.kept_options, js=keep, **quiet)

    # ------------------------------------------------------------------ what its buttons do: which conversation

    @told_beside_the_box
    async def open(self, tab: str, visitor: str) -> AsyncIterator[dict]:
        """Enters the tab's conversation, or a new one where it has none or that is gone."""
        visitor = visitor or secrets.token_urlsafe(32)
        try:
            conversation = self.store.get(tab)
        except UserInputError:
            conversation = self.store.create(visitor)
        yield {self.tab: conversation.id, self.visitor: visitor}

    @told_beside_the_box
    async def begin(self, tab: str, visitor: str) -> AsyncIterator[dict]:
        """Enters a new conversation; the one before stays among the others."""
        yield {self.tab: self._empty(tab, visitor).id, self.sure: gr.Row(visible=False)}

    @told_beside_the_box
    async def go_to(self, tab: str, other: str) -> AsyncIterator[dict]:
        """Enters another conversation of this browser."""
        yield {self.tab: self.store.get(other).id, self.sure: gr.Row(visible=False)}

    @told_beside_the_box
    async def take_over(self, tab: str, visitor: str, path: str) -> AsyncIterator[dict]:
        """Enters a conversation that was exported; the one before stays among the others."""
        conversation = self._empty(tab, visitor)
        try:
            await asyncio.to_thread(self.answers.take_over, conversation, path)
        except NextGPTError:
            if conversation.id != tab:
                self.store.delete(conversation)
            raise
        yield {self.tab: conversation.id, self.sure: gr.Row(visible=False)}

    @told_beside_the_box
    async def remove(self, tab: str, visitor: str) -> AsyncIterator[dict]:
        """Deletes the conversation with its files and enters a new one."""
        conversation = self.store.get(tab)
        self.answers.clear(conversation)
        self.store.delete(conversation)
        yield {self.tab: self.store.create(visitor).id, self.sure: gr.Row(visible=False)}

    async def follow(self, tab: str) -> AsyncIterator[dict]:
        """Keeps the page like the conversation that it has just entered until no answer is under way."""
        async for update in self._follow(self.store.get(tab)):
            yield update

    def settle(self, tab: str) -> gr.MultimodalTextbox:
        """The box as it is while no answer is under way; it stays as it is while one is."""
        with suppress(UserInputError):
            if self.store.get(tab).busy:
                return gr.skip()
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def _empty(self, tab: str, visitor: str) -> Conversation:
        """The tab's conversation if nothing stands in it yet, or a new one."""
        with suppress(UserInputError):
            conversation = self.store.get(tab)
            if not conversation.turns:
                return conversation
        return self.store.create(visitor)

    # ------------------------------------------------------------------ what its buttons do: in a conversation

    @told_beside_the_box
    async def ask(self, tab: str, message: dict, *options) -> AsyncIterator[dict]:
        """Sends what stands in the box."""
        conversation = self.store.get(tab)
        text, files = message.get("text") or "", message.get("files") or []
        await asyncio.to_thread(self.answers.ask, conversation, text, files, self.panel.options(*options))
        async for update in self._follow(conversation, gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)):
            yield update

    @told_beside_the_box
    async def ask_example(self, event: gr.SelectData, tab: str, *options) -> AsyncIterator[dict]:
        """Asks an example; they are offered in an empty conversation alone, so that nothing before it misleads."""
        conversation, example = self.store.get(tab), self.examples[event.index]
        given = self.panel.options(*options)
        await asyncio.to_thread(self.answers.ask, conversation, example["text"], example["files"], given)
        async for update in self._follow(conversation):
            yield update

    @told_beside_the_box
    async def retry(self, event: gr.RetryData, tab: str, *options) -> AsyncIterator[dict]:
        """Answers a question again, with another seed."""
        conversation = self.store.get(tab)
        given = self.panel.options(*options) | {"seed": None}
        await asyncio.to_thread(self.answers.retry, conversation, _turn(conversation, event), given)
        async for update in self._follow(conversation):
            yield update

    @told_beside_the_box
    async def edit(self, event: gr.EditData, tab: str, *options) -> AsyncIterator[dict]:
        """Answers a question in its new words."""
        conversation = self.store.get(tab)
        try:
            turn, given = _turn(conversation, event), self.panel.options(*options)
            await asyncio.to_thread(self.answers.edit, conversation, turn, given, str(event.value))
        except NextGPTError:
            yield self._drawn(conversation)  # the old words, which the browser has overwritten
            raise
        async for update in self._follow(conversation):
            yield update

    @told_beside_the_box
    async def undo(self, event: gr.UndoData, tab: str) -> AsyncIterator[dict]:
        """Takes the last question back into the box."""
        conversation = self.store.get(tab)
        question = self.answers.undo(conversation, _turn(conversation, event))
        text = " ".join(part["text"] for part in question if part["type"] == "text")
        files = [part["path"] for part in media_of(question)]
        yield {self.box: {"text": text, "files": files}} | self._drawn(conversation)

    def stop(self, tab: str) -> None:
        """Stops the answer, or takes the question out of the line. What is gone needs no stopping."""
        with suppress(UserInputError):
            self.answers.stop(self.store.get(tab))

    @told_beside_the_box
    async def pack(self, tab: str) -> AsyncIterator[dict]:
        """Packs the conversation into a file, which the browser saves."""
        yield {self.exported: str(await asyncio.to_thread(self.answers.export, self.store.get(tab)))}

    def restore_options(self, kept: dict | None) -> list:
        """The options as this browser had them last, if they were those of this model."""
        if not isinstance(kept, dict) or kept.get("names") != self.panel.names:
            return [gr.skip() for _ in self.panel.components]
        return kept["values"]

    def tell_refused(self, other: str, large: str) -> str:
        """Tells of files that the browser has not attached.

        Args:
            other: names of those of kinds that the model does not take.
            large: names of those that are too large.
        """
        reasons = []
        if other:
            takes = listed([kind for kind in self.pipeline.input_modalities if kind != "text"])
            reasons.append(f"{other}: not attached, for this model takes {takes} files")
        reasons += [f"{large}: not attached, for a file may have {scripts.MAX_UPLOAD} MB at most"] if large else []
        return as_alert("; ".join(reasons))

    # ------------------------------------------------------------------ what is drawn

    async def _follow(self, conversation: Conversation, box: gr.MultimodalTextbox | None = None) -> AsyncIterator[dict]:
        box = box or gr.MultimodalTextbox(submit_btn=False, stop_btn=True)
        seen = None
        while conversation.busy:
            now = self._shown(conversation)
            if now != seen:
                yield {self.box: box, self.chatbot: as_gradio(now)}
                box, seen = gr.skip(), now
            await asyncio.sleep(POLL)
        yield self._drawn(conversation)

    def _shown(self, conversation: Conversation) -> list[Shown]:
        return shown(conversation, self.answers.place(conversation))

    def _drawn(self, conversation: Conversation) -> dict:
        past = [each for each in self.store.of(conversation.visitor) if each.turns or each is conversation]
        return {
            self.chatbot: as_gradio(self._shown(conversation)),
            self.happened: happened(conversation.turns),
            self.past: gr.Radio([(title(each), each.id) for each in past], value=conversation.id),
        }


def as_alert(reason: str) -> str:
    """A refusal, as it stands beside the box."""
    return f'<p role="alert">{escape(reason)}</p>'


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
