"""Errors meant for a person: one line that names the thing, what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class NextGPTError(Exception):
    """Anything a user can fix. The command line prints it without a traceback and exits with code 2.

    A message may name a file or quote a text with lone surrogates; they are escaped, so that it can always be written.
    """

    def __init__(self, message: object = ""):
        super().__init__(str(message).encode("utf-8", "backslashreplace").decode())


class UserInputError(NextGPTError, ValueError):
    """A message, a file or an argument is not what it should be."""


def refuse_upload(arguments: Mapping[str, Any]) -> None:
    """`save_pretrained` writes to a folder alone. Raises UserInputError where it is asked for an upload too."""
    if arguments.get("push_to_hub"):
        raise UserInputError("push_to_hub: save to a folder, then upload that: hf upload NAME FOLDER")


class ConversationTooLong(UserInputError):
    """A conversation has more tokens than the model takes."""


class ModelLoadError(NextGPTError, OSError):
    """A model, a checkpoint or one of its frozen parts is missing or does not fit."""


class ContractError(NextGPTError):
    """The answer could not contain what `require` or `output_modalities` asked for."""


class QueueFullError(NextGPTError):
    """Too many requests are waiting already."""


class DeadlineExceeded(NextGPTError):
    """An answer was not finished within the seconds that its `deadline` gave it."""


class EngineError(NextGPTError):
    """An answer was broken off by something that is not its own fault: a worker crashed, or the pipeline was closed."""


class MachineLost(EngineError):
    """An answer was broken off because the machine that gave it was lost; another may give it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """A hint at the known name that is most like an unknown one; `otherwise` where none is like it, if that is given."""
    near = get_close_matches(str(name), known, n=1, **({} if otherwise else {"cutoff": 0}))
    return f"did you mean {near[0]!r}?" if near else otherwise
