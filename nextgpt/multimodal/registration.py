"""What makes nextgpt's classes and presets known to transformers' Auto classes and pipelines."""

from __future__ import annotations

import functools
import os
from typing import Any

from transformers import processing_utils, tokenization_utils_base
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
    loading goes through this one function, and through another that asks a repository for further chat templates, of
    which a preset has none. A folder of that name in the current folder still comes first.
    """
    if getattr(hub.cached_files, "knows_presets", False):
        return
    find = hub.cached_files

    @functools.wraps(find)
    def cached_files(path_or_repo_id: str | os.PathLike, *arguments: Any, **keywords: Any) -> list[str] | None:
        if _is_preset(path_or_repo_id):
            path_or_repo_id = preset_folder(path_or_repo_id)
        return find(path_or_repo_id, *arguments, **keywords)

    @functools.wraps(hub.list_repo_templates)
    def list_repo_templates(repo_id: str, **keywords: Any) -> list[str]:
        return [] if _is_preset(repo_id) else list_repo_templates.__wrapped__(repo_id, **keywords)

    cached_files.knows_presets = True
    hub.cached_files = cached_files
    for module in (processing_utils, tokenization_utils_base):
        module.list_repo_templates = list_repo_templates


def _is_preset(name: str | os.PathLike) -> bool:
    return name in preset_names() and not os.path.isdir(name)
