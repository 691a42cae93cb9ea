"""transformers' own `generate`, with media in the prompt: every mode gives what single rows and the pipeline give."""

import pytest
import torch
from PIL import Image

from media_values import noise_picture
from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.signals import answer_only
from nextgpt.train.nano.dialogues.composer import SYSTEM_PROMPT
from tiny_decoders import save_tiny_stable_diffusion
from tiny_models import new_tokens, tiny_config
from tiny_training import make_responsive

RED, BLUE = (noise_picture(sigma) for sigma in (5, 200))
LOUD = ((torch.arange(8000) % 50 / 50).numpy() - 0.5, 8000)


def user(*parts) -> list[dict]:
    kinds = {str: "text", Image.Image: "image", tuple: "audio"}
    content = [{"type": kinds[type(part)], kinds[type(part)]: part} for part in parts]
    return [{"role": "user", "content": content}]


PROMPTS = [
    user(RED, BLUE, "What are these? Say it in many words, please, and then once more."),
    user("hi"),
    user("A sound", LOUD, "and a picture", BLUE),
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    parts = {"image": {"kind": "stable-diffusion", "source": str(save_tiny_stable_diffusion(folder / "image"))}}
    config = tiny_config(folder, decoders=parts)
    make_responsive(folder / "language_model" / "model.safetensors")
    torch.manual_seed(1)
    model, processor = NextGPTForConditionalGeneration.from_parts(config), NextGPTProcessor.from_config(config)
    with torch.no_grad():
        model.input_projection.weight.mul_(30)  # what is seen decides what is said
    return NextGPTPipeline(model, processor, {"image": load_decoder("stable-diffusion", parts["image"]["source"])})


def generated(pipe, prompts, **options) -> list[list[int]]:
    """New tokens of every row, up to the end of its answer."""
    return new_tokens(pipe.model, pipe.processor, prompts, **{"max_new_tokens": 12} | options)


@pytest.mark.parametrize("prompt", range(3))
def test_greedy_is_what_the_pipeline_answers(pipe, prompt):
    reply = pipe(PROMPTS[prompt], max_new_tokens=12, output_modalities=("text",))
    told = [{"role": "system", "content": f"{SYSTEM_PROMPT} {answer_only(('text',))}"}]
    (plain,) = generated(pipe, told + PROMPTS[prompt])
    assert len(plain) > 3 and plain == reply.token_ids[: len(plain)], "runs of signal tokens included"


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}],
    ids=["greedy", "beams", "several beams", "without cache"],
)
def test_a_padded_batch_is_its_single_rows(pipe, options):
    each = options.get("num_return_sequences", 1)
    batch = generated(pipe, PROMPTS, **options)
    for i, prompt in enumerate(PROMPTS):
        assert batch[i * each : (i + 1) * each] == generated(pipe, prompt, **options)


def test_with_and_without_cache_give_the_same(pipe):
    assert generated(pipe, PROMPTS) == generated(pipe, PROMPTS, use_cache=False)


def first_logits(pipe, prompt: list[dict]) -> torch.Tensor:
    with torch.no_grad():
        return pipe.model(**pipe.processor(prompt)).logits[0, -1]


@pytest.mark.parametrize(
    ("options", "each"),
    [({}, 1), ({"num_beams": 3}, 3), ({"do_sample": True, "num_return_sequences": 2}, 2)],
    ids=["greedy", "beams", "samples"],
)
def test_every_answer_sees_the_media_of_its_own_row_in_their_order(pipe, options, each):
    swapped = first_logits(pipe, user(BLUE, RED, PROMPTS[0][0]["content"][2]["text"]))
    expected = torch.stack([first_logits(pipe, prompt) for prompt in PROMPTS])
    assert (swapped - expected[0]).nan_to_num().abs().max() > 5e-3, "this model tells their order apart"
    options = options | {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    found = pipe.model.generate(**pipe.processor(PROMPTS), **options).logits[0]
    torch.testing.assert_close(found, expected.repeat_interleave(each, 0), atol=1e-3, rtol=1e-3)


def test_sampling_follows_the_seed(pipe):
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return generated(pipe, PROMPTS, do_sample=True, temperature=2.0, num_return_sequences=2)

    assert sample(1) == sample(1) != sample(2)
    assert len(sample(1)) == 2 * len(PROMPTS)


def test_features_made_ahead_give_the_same(pipe):
    inputs = pipe.processor(PROMPTS)
    values = {name: inputs.pop(name) for name in ("image_values", "audio_values")}
    features = pipe.model.encode_media(inputs["input_ids"], **values)
    for options in ({}, {"num_beams": 3}):
        rows = pipe.model.generate(**inputs, media_features=features, max_new_tokens=12, do_sample=False, **options)
        plain = pipe.model.generate(**inputs, **values, max_new_tokens=12, do_sample=False, **options)
        assert torch.equal(rows, plain)


def test_a_cache_of_the_beginning_may_be_given(pipe):
    messages = PROMPTS[0]
    inputs = pipe.processor(messages)
    first = pipe.model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    more = torch.cat([first.sequences, pipe.processor(user(BLUE, "again"))["input_ids"]], dim=1)
    values = torch.cat([inputs["image_values"], pipe.processor(user(BLUE))["image_values"]])
    options = {"image_values": values, "max_new_tokens": 6, "do_sample": False}
    fresh = pipe.model.generate(more, **options)
    assert torch.equal(pipe.model.generate(more, past_key_values=first.past_key_values, **options), fresh)
