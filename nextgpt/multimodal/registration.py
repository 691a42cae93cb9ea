"""What makes nextgpt's classes and presets known to transformers' Auto classes and pipelines."""

from __future__ import annotations

import functools
import os
from typing import Any

from transformers.utils import hub

from nextgpt.hub.parts import preset_folder, preset_names


def register() -> None:
    """Lets `transformers.pipeline` and the Auto classes load a NExT-GPT: a saved folder, a repository, or a preset by name.

    Importing `NextGPTPipeline` does the same.
    """
    import nextgpt.modeling_nextgpt  # each module registers its class
    import nextgpt.processing_nextgpt  # noqa: F401


def know_presets() -> None:
    """Lets transformers read a preset (`"nano"`) by its name, as it reads a folder.

    Where it looks up a file of a model, it knows folders and repositories only, and has no place to add names; all its
    loading goes through this one function. A folder of that name in the current folder still comes first.
    """
    find = hub.cached_files
    if hasattr(find, "__wrapped__"):
        return

    @functools.wraps(find)
    def cached_files(path_or_repo_id: str | os.PathLike, *arguments: Any, **keywords: Any) -> list[str] | None:
        if path_or_repo_id in preset_names() and not os.path.isdir(path_or_repo_id):
            path_or_repo_id = preset_folder(path_or_repo_id)
        return find(path_or_repo_id, *arguments, **keywords)

    hub.cached_files = cached_files
