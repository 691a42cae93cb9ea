"""The chat's server: it listens, owns the conversations and their files, and cleans up. The page itself is in page.py."""

from __future__ import annotations

import hmac
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder

from nextgpt.demo.answers import PLACES, AnswerQueue
from nextgpt.demo.api import add_endpoints
from nextgpt.demo.conversations import KEEP_HOURS, Store
from nextgpt.demo.page import Page
from nextgpt.demo.scripts import MAX_UPLOAD
from nextgpt.demo.welcome import EXAMPLES
from nextgpt.errors import UserInputError
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.report.info import known_world

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent


def launch(
    pipeline: NextGPTPipeline,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    model: str = "",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the page until Ctrl-C, SIGTERM or the end of its terminal; all its files go then.

    Args:
        pipeline: what answers.
        host, port: where to listen; 127.0.0.1 is reached from this machine only.
        share: also make a public link through Gradio's servers.
        model: what the pipeline was loaded by; its name stands on the page, with what its folder says that it knows.
        on_ready: called with the page's address as soon as it answers; by default the address is logged.

    Raises:
        UserInputError: the port is taken or the address is not this machine's.
        ModelLoadError: the list of what the model knows is damaged.
    """
    known = known_world(model) if model else None
    with _exiting_on_signals(), _uploads_in_a_folder_of_our_own():
        chat = Chat(pipeline, model=model, known=known)
        try:
            address = chat.serve(host, port, share)
            (on_ready or (lambda address: logger.info("listening on %s", address)))(address)
            chat.page.blocks.block_thread()
        finally:
            chat.close()


@contextmanager
def mounted(
    pipeline: NextGPTPipeline, app: FastAPI, *, path: str = "/chat", model: str = "", keys: Sequence[str] = ()
) -> Iterator[None]:
    """The page under a path of another server's application, over the same pipeline; all its files go at the end.

    Args:
        pipeline: what answers, and may answer others meanwhile.
        app: of the server.
        path: where the page is.
        model: as [`launch`] has it.
        keys: one of them is the password that the page asks for; none: it asks for none.

    Raises:
        ModelLoadError: the list of what the model knows is damaged.
    """
    known = known_world(model) if model else None

    def is_known(name: str, password: str) -> bool:
        return any(hmac.compare_digest(password.encode(), key.encode()) for key in keys)

    with _uploads_in_a_folder_of_our_own():
        chat = Chat(pipeline, model=model, known=known)
        try:
            gr.mount_gradio_app(
                app,
                chat.page.blocks.queue(default_concurrency_limit=None),
                path,
                auth=is_known if keys else None,
                auth_message="Any name; the password is an API key of this server.",
                ssr_mode=False,
                **chat.surroundings,
            )
            yield
        finally:
            chat.close()


@contextmanager
def _exiting_on_signals() -> Iterator[None]:
    """By default SIGTERM, and SIGHUP of a terminal that closes, end Python at once, and what should be cleaned up stays."""
    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        model: its name on the page.
        known: what it knows, by heading, where that is known.
        keep_hours: how long a conversation is kept after its last use.
        places: how many questions may wait while another is answered.
        max_upload: of one file, as Gradio takes it.

    Attributes:
        page: what visitors see; `page.blocks` is Gradio's.
    """

    def __init__(
        self,
        pipeline: NextGPTPipeline,
        *,
        model: str = "",
        known: dict[str, list[str]] | None = None,
        keep_hours: float = KEEP_HOURS,
        places: int = PLACES,
        max_upload: str = f"{MAX_UPLOAD}mb",
    ):
        self.pipeline, self.max_upload = pipeline, max_upload
        self.store = Store(pipeline.new_session, keep_hours, uploads=Path(get_upload_folder()))
        self.answers = AnswerQueue(pipeline, self.store, places)
        gr.set_static_paths([self.store.folder, EXAMPLES])  # served from where they are; nothing else of ours is
        self.page = Page(self.answers, self.store, model=model, known=known)
        with self.page.blocks:
            add_endpoints(self.answers, self.store)

    @property
    def surroundings(self) -> dict[str, Any]:
        """What Gradio is told of the page, whichever server it stands in."""
        return {
            "max_file_size": self.max_upload,
            "run_history": False,  # the browser would keep questions and answers beyond their time
            "enable_monitoring": False,
            "footer_links": ["api", "settings"],
            "css_paths": HERE / "style.css",
        }

    def serve(self, host: str, port: int | None = None, share: bool = False) -> str:
        """Begins to listen and returns the page's address.

        Raises:
            UserInputError: the port is taken or the address is not this machine's.
        """
        try:
            _, local, public = self.page.blocks.queue(default_concurrency_limit=None).launch(
                server_name=host,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                **self.surroundings,
            )
        except Exception as error:  # Gradio's own are of many kinds, down to plain ones
            raise UserInputError(
                f"the page cannot listen on {host}, port {port} ({error}): give another --port or --host"
            ) from None
        return public or local

    def close(self) -> None:
        """Stops serving; conversations and their files go."""
        self.page.blocks.close(verbose=False)
        self.answers.close()
        self.store.close()
