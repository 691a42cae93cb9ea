"""The panel of options: what a visitor may set, read off the pipeline, and back into the pipeline's own options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nextgpt.errors import UserInputError
from nextgpt.events import GenerationOptions
from nextgpt.pipeline import NextGPTPipeline

if TYPE_CHECKING:
    from gradio.components import Component


@dataclass(frozen=True)
class Number:
    """A decoder's option, and the bound that keeps one visitor from holding up the others.

    Args:
        label: its words.
        kind: of number it takes.
        times: the bound, as a multiple of the model's own value …
        most: … or by itself where the model names none.
    """

    label: str
    kind: type = float
    times: float = 10
    most: float = 1000

    def bound(self, default: float | None) -> float:
        """The highest value that is taken."""
        return self.most if default is None else self.times * default


DECODER_OPTIONS = {
    "num_inference_steps": Number("Steps", int, times=10, most=500),
    "guidance_scale": Number("Guidance", float, times=10, most=50),
    "height": Number("Height, pixels", int, times=4, most=2048),
    "width": Number("Width, pixels", int, times=4, most=2048),
    "num_frames": Number("Frames", int, times=4, most=64),
    "fps": Number("Frames a second", float, times=4, most=60),
    "duration": Number("Duration, seconds", float, times=4, most=60),
}
MAX_NEW_TOKENS, MAX_TEMPERATURE = 2048, 2
FIRST = 5  # components before those of the decoders


class Panel:
    """The components of the panel, made where they are to stand on the page.

    Attributes:
        components: whose values, in this order, `options` takes.
        names: of them, by which kept values are known again.
    """

    def __init__(self, pipeline: NextGPTPipeline):
        import gradio as gr

        # gr.Number shows an empty value as 0; a text box can be empty and say what that means.
        number = {"max_lines": 1, "html_attributes": gr.InputHTMLAttributes(autocomplete="off")}
        defaults = GenerationOptions()
        self._pipeline = pipeline
        kinds = list(pipeline.decoders)
        self._decoder_options: list[tuple[str, str]] = []
        self.components: list[Component] = [
            gr.CheckboxGroup(
                kinds, value=kinds, label="Answer with text and", info="No other kind comes instead of one that is off."
            ),
            gr.Slider(0, MAX_TEMPERATURE, value=0, step=0.05, label="Temperature", info="0: always the likeliest word"),
            gr.Slider(0.05, 1, value=defaults.top_p, step=0.05, label="Top-p"),
            gr.Slider(1, MAX_NEW_TOKENS, value=defaults.max_new_tokens, step=1, label="Longest answer, tokens"),
            gr.Textbox(label="Seed", placeholder="random", **number),
        ]
        for modality, decoder in pipeline.decoders.items():
            with gr.Accordion(modality.capitalize(), open=False):
                for name, default in decoder.generation_defaults.items():
                    if name in decoder.fixed_options:
                        continue
                    option = _decoder_option(name)
                    own = "the model's own" if default is None else f"{default:g}"
                    placeholder = f"{own}, at most {_bound(pipeline, modality, name):g}"
                    self.components.append(gr.Textbox(label=option.label, placeholder=placeholder, **number))
                    self._decoder_options.append((modality, name))
        self.names = [component.label for component in self.components[:FIRST]]
        self.names += [f"{modality} {name}" for modality, name in self._decoder_options]

    def options(self, kinds: list[str], temperature: float, top_p: float, length: int, seed: str, *given: str) -> dict:
        """The components' values → options of `pipeline.stream`; what is empty is left to the model.

        Raises:
            UserInputError: something is not a number of its kind, or out of its bounds.
        """
        media: dict[str, dict] = {modality: {} for modality, _ in self._decoder_options}
        for (modality, name), text in zip(self._decoder_options, given, strict=True):
            option = _decoder_option(name)
            value = _number(text, option.label, option.kind)
            if value is not None:
                media[modality][name] = value
        return answer_options(self._pipeline, kinds, temperature, top_p, length, _number(seed, "Seed", int), media)


def _number(text: str | None, label: str, kind: type) -> int | float | None:
    """What stands in a box for a number; None where it is empty."""
    if not (text or "").strip():
        return None
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UserInputError(f"{label} is {text.strip()!r}: expected {expected}, or nothing for the default") from None


def answer_options(
    pipeline: NextGPTPipeline,
    kinds: list[str] | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int | None,
    media: dict[str, dict],
) -> dict:
    """What a visitor may set, as `pipeline.stream` takes it. Temperature 0 is greedy; text is always allowed.

    Raises:
        UserInputError: something is out of its bounds.
    """
    if temperature:
        _check_bound("Temperature", temperature, MAX_TEMPERATURE)
    _check_bound("Longest answer, tokens", max_new_tokens, MAX_NEW_TOKENS)
    for kind, options in media.items():
        _check_decoder_options(pipeline, kind, options)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    chosen = None if kinds is None else ["text", *(kind for kind in kinds if kind != "text")]
    return {"output_modalities": chosen, "max_new_tokens": int(max_new_tokens), "seed": seed, **sampling, **media}


def _check_decoder_options(pipeline: NextGPTPipeline, kind: str, options: dict) -> None:
    """Names that the decoder does not know are left to the pipeline to refuse."""
    if kind not in pipeline.decoders or not isinstance(options, dict):
        known = ", ".join(pipeline.decoders)
        raise UserInputError(f"media holds {kind!r}: {options!r}: expected a dictionary of options for any of {known}")
    for name, default in pipeline.decoders[kind].generation_defaults.items():
        if options.get(name) is not None:
            option = _decoder_option(name)
            label, value = f"{option.label} of the {kind}", options[name]
            if name in pipeline.decoders[kind].fixed_options and value != default:
                raise UserInputError(f"{label} is {value!r}: this model makes {default:g} only")
            _check_bound(label, value, _bound(pipeline, kind, name))


def _check_bound(label: str, value: float, most: float) -> None:
    if not isinstance(value, (int, float)) or not 0 < value <= most:
        raise UserInputError(f"{label} is {value!r}: expected more than 0, at most {most:g}")


def _bound(pipeline: NextGPTPipeline, modality: str, name: str) -> float:
    """The highest value of an option that is taken: of what the decoder can make, what does not hold up the others."""
    decoder = pipeline.decoders[modality]
    bound = _decoder_option(name).bound(decoder.generation_defaults[name])
    size = decoder.sizes.get(name)
    return bound if size is None or size.most is None else min(bound, size.most)


def _decoder_option(name: str) -> Number:
    return DECODER_OPTIONS.get(name, Number(name))
