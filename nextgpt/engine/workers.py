"""A daemon thread that starts with its first work, and starts again after a crash."""

from __future__ import annotations

import atexit
import logging
import threading

import torch

from nextgpt.errors import first_line
from nextgpt.hardware import compute_alone

logger = logging.getLogger(__name__)

CLOSED = "the pipeline was closed before the answer was finished"

_begun: dict[threading.Thread, tuple[threading.Event, threading.Condition]] = {}  # threads, and what ends and wakes each


class Worker:
    """What the engine's workers share; `condition` guards what other threads hand over.

    A subclass says when there is work, does a piece of it, and lets requests fail.

    Args:
        name: what it runs, for the thread, the log and errors.

    Attributes:
        closing: set when the thread is to end; a piece of work ends soon after.
        restarts: how often it has crashed and started again.
    """

    def __init__(self, name: str):
        self.name, self.restarts = name, 0
        self.condition = threading.Condition()
        self.closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._ending: threading.Event | None = None  # of this thread

    def has_work(self) -> bool:
        """Called with the condition held."""
        raise NotImplementedError

    def work(self) -> None:
        """Does one piece of work. An exception out of it is a crash."""
        raise NotImplementedError

    def parameters(self) -> int | None:
        """How many the networks have that it computes with; None as long as that is not known."""
        return None

    def fail_running(self, message: str) -> None:
        """Lets the requests under way end with an `EngineError`."""
        raise NotImplementedError

    def fail_waiting(self, message: str) -> None:
        """Lets the requests that wait end with an `EngineError`."""
        raise NotImplementedError

    def wake(self) -> None:
        """There may be work: the thread looks, and is started where there is none."""
        with self.condition:
            if self._ending is None or not self._thread.is_alive():  # closed, or dead: a child process has no threads
                ending = threading.Event()
                self._thread = self._start(ending, self._thread)
                self._ending = ending
            self.condition.notify_all()

    def close(self, wait: bool = True) -> None:
        """Ends the thread; what is under way or waits fails. The next work starts another."""
        with self.condition:
            thread, ending = self._thread, self._ending
            if ending is not None:
                ending.set()
                self._ending = None
                self.condition.notify_all()
        if ending is not None:
            self.fail_waiting(CLOSED)
        if wait and thread not in (None, threading.current_thread()):
            thread.join()

    def _start(self, ending: threading.Event, before: threading.Thread | None) -> threading.Thread:
        name = f"nextgpt-engine-{self.name.replace(' ', '-')}"
        thread = threading.Thread(target=self._run, args=(ending, before), name=name, daemon=True)
        for ended in [each for each in list(_begun) if not each.is_alive()]:
            _begun.pop(ended, None)
        thread.start()
        _begun[thread] = (ending, self.condition)
        return thread

    def _run(self, ending: threading.Event, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        self.closing = ending
        while not ending.is_set():
            try:
                with torch.no_grad():
                    self._serve()
            except BaseException as error:
                self.restarts += 1
                logger.exception("The worker of %s crashed and starts again", self.name)
                what = f"the worker of {self.name} crashed ({type(error).__name__}: {first_line(error)})"
                self.fail_running(f"{what} and has started again: ask again")
        self.fail_running(CLOSED)

    def _serve(self) -> None:
        size = None
        while True:
            with self.condition:
                while not self.closing.is_set() and not self.has_work():
                    self.condition.wait()
                if self.closing.is_set():
                    return
            if size is None and (size := self.parameters()) is not None:
                compute_alone(size)
            self.work()


@atexit.register
def _end_all() -> None:
    """A thread that computes while the interpreter goes would abort the process, one whose pipeline is gone as well."""
    for thread, (ending, condition) in list(_begun.items()):
        with condition:
            ending.set()
            condition.notify_all()
        thread.join()
