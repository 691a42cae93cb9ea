"""Adapters on the LLM: from a configuration to the adapted LLM, what of it is the adapter's, saving, loading; and media as
prefixes of its layers.
"""

from nextgpt.adapters.adapter import Adapter, Pass, run
from nextgpt.adapters.media_prefix import PrefixBridge, describe_bridge, input_bridge, read_bridge
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
    "PrefixBridge",
    "check_settings",
    "describe",
    "describe_bridge",
    "folder_name",
    "input_bridge",
    "peft_configuration",
    "read_bridge",
    "read_settings",
    "run",
    "title",
    "virtual_tokens",
    "weights_file",
]
