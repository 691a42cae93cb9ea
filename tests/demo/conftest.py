"""A whole tiny assistant for the page's tests: random weights, all four modalities, and answers of the kind asked for."""

import pytest

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_model
from tiny_visits import open_in

KINDS = {"draw": "image", "play": "audio", "film": "video", "make a clip": "video"}
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
        self.asked, self.options = messages, dict(options)
        words = " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text").lower()
        options |= {kind: {"num_inference_steps": 2} | options.get(kind, {}) for kind in self.decoders}
        options |= {"output_modalities": None, "max_new_tokens": min(options.get("max_new_tokens", 40), 40)}
        return super().stream(messages, require={kind: 1 for verb, kind in KINDS.items() if verb in words}, **options)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> ObedientPipeline:
    folder = tmp_path_factory.mktemp("assistant")
    parts = {}
    for kind, (name, save) in DECODERS.items():
        parts[kind] = {"kind": name, "source": str(save(folder / f"{kind}_decoder"))}
    model, processor = tiny_model(folder, decoders=parts)
    decoders = {kind: load_decoder(part["kind"], part["source"]) for kind, part in parts.items()}
    return ObedientPipeline(model, processor, decoders)


@pytest.fixture(scope="session")
def served(pipeline):
    """The chat and its address."""
    from nextgpt.demo.app import Chat

    chat = Chat(pipeline, places=1)
    yield chat, chat.serve("127.0.0.1")
    chat.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page in a browser profile of its own; gives the tab."""
    profiles = []

    def open_tab(**profile):
        profiles.append(browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | profile)))
        return open_in(profiles[-1], served[1])

    yield open_tab
    for profile in profiles:
        profile.close()


@pytest.fixture
def page(visit):
    return visit()
