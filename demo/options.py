"""The panel of options: what a visitor may set, read off the pipeline, and back into the pipeline's own options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nextgpt.errors import UserInputError
from nextgpt.pipeline import GenerationOptions, NextGPTPipeline

if TYPE_CHECKING:
    from gradio.components import Component

# Decoder option → its words and the kind of number it takes.
DECODER_OPTIONS = {
    "num_inference_steps": ("Steps", int),
    "guidance_scale": ("Guidance", float),
    "height": ("Height, pixels", int),
    "width": ("Width, pixels", int),
    "num_frames": ("Frames", int),
    "fps": ("Frames a second", float),
    "duration": ("Duration, seconds", float),
}
MAX_NEW_TOKENS = 2048


class Panel:
    """The components of the panel, made where they are to stand on the page.

    Attributes:
        components: whose values, in this order, `options` takes.
    """

    def __init__(self, pipeline: NextGPTPipeline):
        import gradio as gr

        # gr.Number shows an empty value as 0; a text box can be empty and say what that means.
        number = {"max_lines": 1, "html_attributes": gr.InputHTMLAttributes(autocomplete="off")}
        defaults = GenerationOptions()
        kinds = list(pipeline.output_modalities)
        self._decoder_options: list[tuple[str, str]] = []
        self.components: list[Component] = [
            gr.CheckboxGroup(kinds, value=kinds, label="Answer with", info="An answer may always hold text."),
            gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0: always the likeliest word."),
            gr.Slider(0.05, 1, value=defaults.top_p, step=0.05, label="Top-p"),
            gr.Slider(1, MAX_NEW_TOKENS, value=defaults.max_new_tokens, step=1, label="Longest answer, tokens"),
            gr.Textbox(label="Seed", placeholder="random", **number),
        ]
        for modality, decoder in pipeline.decoders.items():
            with gr.Accordion(modality.capitalize(), open=False):
                for name, default in decoder.generation_defaults.items():
                    label, _ = DECODER_OPTIONS.get(name, (name, float))
                    placeholder = "the model's own" if default is None else f"{default:g}"
                    self.components.append(gr.Textbox(label=label, placeholder=placeholder, **number))
                    self._decoder_options.append((modality, name))

    def options(self, kinds: list[str], temperature: float, top_p: float, length: int, seed: str, *given: str) -> dict:
        """The components' values → options of `pipeline.stream`; what is empty is left to the model.

        Raises:
            UserInputError: something is not a number of its kind.
        """
        media: dict[str, dict] = {modality: {} for modality, _ in self._decoder_options}
        for (modality, name), text in zip(self._decoder_options, given, strict=True):
            value = _number(text, *DECODER_OPTIONS.get(name, (name, float)))
            if value is not None:
                media[modality][name] = value
        return answer_options(kinds, temperature, top_p, length, _number(seed, "Seed", int)) | media


def _number(text: str | None, label: str, kind: type) -> int | float | None:
    """What stands in a box for a number; None where it is empty."""
    if not (text or "").strip():
        return None
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UserInputError(f"{label} is {text.strip()!r}: expected {expected}, or nothing for the default") from None


def answer_options(kinds: list[str] | None, temperature: float, top_p: float, max_new_tokens: int, seed: int | None) -> dict:
    """What every answer has, as `pipeline.stream` takes it. Temperature 0 is greedy; text is always allowed."""
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    chosen = None if kinds is None else ["text", *(kind for kind in kinds if kind != "text")]
    return {"output_modalities": chosen, "max_new_tokens": int(max_new_tokens), "seed": seed, **sampling}
