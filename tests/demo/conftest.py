"""A whole tiny assistant for the page's tests: random weights, all four modalities, and answers of the kind asked for."""

import pytest

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_model

KINDS = {"draw": "image", "play": "audio", "film": "video"}
DECODERS = {
    "image": ("stable-diffusion", save_tiny_stable_diffusion),
    "audio": ("audioldm", save_tiny_audioldm),
    "video": ("text-to-video", save_tiny_text_to_video),
}


class ObedientPipeline(NextGPTPipeline):
    """Random weights would give media by chance only; here the contract makes an answer hold what its question names.

    Attributes:
        asked: the messages of the last question.
        options: its options.
    """

    def stream(self, messages, **options):
        self.asked, self.options = messages, options
        words = " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text").lower()
        require = {kind: 1 for verb, kind in KINDS.items() if verb in words}
        short = {kind: {"num_inference_steps": 2} | options.pop(kind, {}) for kind in self.decoders}
        return super().stream(
            messages, require=require, **(options | short | {"output_modalities": None, "max_new_tokens": 40})
        )


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> ObedientPipeline:
    folder = tmp_path_factory.mktemp("assistant")
    parts = {}
    for kind, (name, save) in DECODERS.items():
        parts[kind] = {"kind": name, "source": str(save(folder / f"{kind}_decoder"))}
    model, processor = tiny_model(folder, decoders=parts)
    decoders = {kind: load_decoder(part["kind"], part["source"]) for kind, part in parts.items()}
    return ObedientPipeline(model, processor, decoders)
