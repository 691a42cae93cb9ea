"""Adapters on the LLM: from a configuration to the adapted LLM, what of it is the adapter's, saving, loading."""

from nextgpt.adapters.adapter import Adapter, Pass, run
from nextgpt.adapters.settings import (
    OWN,
    TESTED,
    WEIGHTS,
    check_settings,
    describe,
    folder_name,
    peft_configuration,
    read_settings,
    title,
    virtual_tokens,
    weights_file,
)

__all__ = [
    "OWN",
    "TESTED",
    "WEIGHTS",
    "Adapter",
    "Pass",
    "check_settings",
    "describe",
    "folder_name",
    "peft_configuration",
    "read_settings",
    "run",
    "title",
    "virtual_tokens",
    "weights_file",
]
