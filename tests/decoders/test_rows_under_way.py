"""Rows of a batch that are no longer wanted: they are dropped, and the others are made as if nothing had happened."""

import threading

import diffusers
import pytest

from media_values import assert_same, random_conditioning
from nextgpt.decoders import GenerationCancelled, load_decoder
from tiny_decoders import TINY_DECODERS

STEPS = 4
every_kind = pytest.mark.parametrize("kind", list(TINY_DECODERS))
pytestmark = pytest.mark.usefixtures("one_thread")
SHRINKING = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "stable-diffusion-3-spectrograms")
SHRINKING += ("stable-diffusion-3-clips", "wan", "latte")


def generate_until(decoder, step: int, stopped: tuple[int, ...], count: int = 3, **options) -> tuple[list, list[int], list]:
    """Some rows are stopped after a step. Returns the items, the denoiser's batch sizes, and the last preview."""
    cancels, sizes, previews = [threading.Event() for _ in range(count)], [], []

    def on_step(done, total, preview):
        previews.append(preview() if preview else None)
        if done == step:
            for row in stopped:
                cancels[row].set()

    def note_size(module, args, kwargs):
        latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        sizes.append(len(latents))

    hook = getattr(decoder.pipeline, decoder.denoiser).register_forward_pre_hook(note_size, with_kwargs=True)
    options = {"seeds": list(range(count)), "num_inference_steps": STEPS, "on_step": on_step, "cancel": cancels} | options
    try:
        return decoder.generate(random_conditioning(decoder, count), **options), sizes, previews
    finally:
        hook.remove()


@every_kind
def test_a_row_that_is_stopped_leaves_and_the_others_are_made_as_before(kind, decoders):
    decoder = decoders[kind]
    assert decoder.shrinks == (kind in SHRINKING)
    whole = decoder.generate(random_conditioning(decoder, 3), seeds=[0, 1, 2], num_inference_steps=STEPS)
    items, sizes, previews = generate_until(decoder, 2, stopped=(1,))
    assert_same([items[0], items[2]], [whole[0], whole[2]])
    if decoder.shrinks:
        assert items[1] is None and sizes[-1] * 3 == sizes[0] * 2
        assert previews[-1] is None or [each is None for each in previews[-1]] == [False, True, False]
    else:
        assert len(set(sizes)) == 1


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(
    "scheduler",
    [
        "PNDMScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
    ],
)
def test_what_schedulers_remember_of_earlier_steps_shrinks_too(scheduler, guidance_scale, own_folder):
    decoder = load_decoder("stable-diffusion", own_folder("stable-diffusion"))
    template = decoder.pipeline.scheduler.config
    decoder.pipeline.scheduler = getattr(diffusers, scheduler).from_config(template, skip_prk_steps=True)
    options = {"guidance_scale": guidance_scale, "num_inference_steps": 6}
    whole = decoder.generate(random_conditioning(decoder, 3), seeds=[0, 1, 2], **options)
    items, sizes, _ = generate_until(decoder, 3, stopped=(0,), **options)
    assert items[0] is None and sizes[-1] * 3 == sizes[0] * 2
    assert_same(items[1:], whole[1:])


@every_kind
def test_a_batch_ends_within_one_step_when_no_row_is_wanted_any_more(kind, decoders):
    decoder = decoders[kind]
    steps = []
    cancels = [threading.Event() for _ in range(2)]

    def on_step(done, total, preview):
        steps.append(done)
        cancels[0].set()
        if done == 2:
            cancels[1].set()

    with pytest.raises(GenerationCancelled):
        decoder.generate(
            random_conditioning(decoder, 2), seeds=[0, 1], num_inference_steps=STEPS, on_step=on_step, cancel=cancels
        )
    assert steps == [1, 2]
