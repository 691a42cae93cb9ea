"""NExT-GPT: any mix of text, images, audio and video in, any mix out."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

__version__ = "0.1.0"

# How long threads of GNU's OpenMP, which torch brings, spin before they sleep. Beside other work on the processor their own
# default makes answers slower, the more the busier it is; alone this costs nothing (`tests/benchmarks/busy.py`). It is read
# when torch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# In a plain clone the sub-packages stand beside this folder; installed, setuptools has mapped them inside it.
_parent = Path(__file__).resolve().parent.parent
if (_parent / "encoders" / "__init__.py").is_file() and str(_parent) not in __path__:
    __path__.append(str(_parent))

# Imported on first use, so that `nextgpt --help` need not wait for torch.
_PUBLIC = {
    "Modality": "nextgpt.modalities",
    "NextGPTConfig": "nextgpt.configuration_nextgpt",
    "NextGPTForConditionalGeneration": "nextgpt.modeling_nextgpt",
    "NextGPTModel": "nextgpt.modeling_nextgpt",  # the first name of NextGPTForConditionalGeneration
    "NextGPTPipeline": "nextgpt.pipeline",
    "NextGPTProcessor": "nextgpt.processing_nextgpt",
    "register": "nextgpt.multimodal.registration",
    "register_decoder": "nextgpt.decoders",
    "register_encoder": "nextgpt.encoders",
    "register_modality": "nextgpt.modalities",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
