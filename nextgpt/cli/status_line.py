"""What a terminal shows while something is under way: one line of ours, erased when something is to stay, and nothing of
what libraries say to programmers. Imports nothing heavy, so that the line can be shown at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ERASE = "\r\033[K"  # to the beginning of the line, and clear the rest of it


class StatusLine:
    """What is going on, on standard error where that is a terminal.

    It shares the terminal with standard output: clear it before anything is written there.

    Args:
        enabled: whether to show anything; only in a terminal in any case.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled and sys.stderr.isatty()
        self.shown = False

    def show(self, text: str) -> None:
        """Replaces what is shown; the cursor must stand at the beginning of a line. What does not fit is cut off."""
        if self.enabled:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be erased
            sys.stderr.write(f"{ERASE}{text[:width]}")
            sys.stderr.flush()
            self.shown = True

    def clear(self) -> None:
        """Erases what is shown, and never anything else."""
        if self.shown:
            sys.stderr.write(ERASE)
            sys.stderr.flush()
            self.shown = False


@contextmanager
def status(text: str) -> Iterator[None]:
    """Shows `text` while the block runs."""
    line = StatusLine()
    line.show(text)
    try:
        yield
    finally:
        line.clear()


def quiet_libraries(bars: bool = False, pipelines: bool = False) -> None:
    """Keeps the libraries' warnings and notes off the terminal; their errors stay.

    Args:
        bars: whether their progress bars stay.
        pipelines: whether diffusers' pipelines are going to load, which have bars; else it need not be imported.
    """
    import transformers.utils.logging

    libraries = [transformers]
    if pipelines or "diffusers" in sys.modules:
        import diffusers.utils.logging

        libraries.append(diffusers)
    else:
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # read when it is imported
    warnings.simplefilter("ignore")
    for library in libraries:
        library.utils.logging.set_verbosity_error()
        if not bars:
            library.utils.logging.disable_progress_bar()
    for name in ("accelerate", "huggingface_hub", "open_clip", "peft", "py.warnings", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
