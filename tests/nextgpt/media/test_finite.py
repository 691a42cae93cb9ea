"""No session keeps numbers that are none: what is wrong is refused, and the conversation goes on as if it had not been."""

import io
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.__main__ import main
from nextgpt.decoders import load_decoder
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.media import load_media
from tiny_decoders import save_tiny_stable_diffusion
from tiny_models import tiny_model

OPTIONS = {"max_new_tokens": 8, "output_modalities": ("text",)}
RED = {"type": "image", "image": Image.new("RGB", (40, 30), "red")}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite")
    parts = {"image": {"kind": "stable-diffusion", "source": str(save_tiny_stable_diffusion(folder / "image"))}}
    model, processor = tiny_model(folder, decoders=parts)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return NextGPTPipeline(model, processor, {"image": load_decoder("stable-diffusion", parts["image"]["source"])})


def user(*parts) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]}


def wav(wrong: float) -> bytes:
    samples = np.zeros(8000, np.float32)
    samples[100] = wrong
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, subtype="FLOAT", format="WAV")
    return file.getvalue()


@contextmanager
def spoiled(parameter: torch.Tensor, value: float):
    """Weights that overflow, as half precision may."""
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(value)
        try:
            yield
        finally:
            parameter.copy_(kept)


def weights_of(pipe, part: str) -> torch.Tensor:
    if part == "encoder":
        return next(value for name, value in pipe.model.encoder.named_parameters() if "vision" in name and value.ndim == 2)
    return pipe.model.get_base_model().model.layers[0].input_layernorm.weight


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 1e29])
def test_the_turn_after_a_refused_sound_is_answered_as_if_it_had_not_been(pipe, wrong):
    session, messages = pipe.new_session(), [user("hello", RED)]
    first = pipe(messages, session=session, **OPTIONS)
    messages += [first.message, user("what is this?")]
    with pytest.raises(UserInputError, match="holds"):
        pipe([*messages[:-1], user({"type": "audio", "audio": wav(wrong)})], session=session, **OPTIONS)
    assert pipe(messages, session=session, **OPTIONS).token_ids == pipe(messages, **OPTIONS).token_ids


@pytest.mark.parametrize(("part", "reason"), [("encoder", "features of media 1 of 1"), ("llm", "model computed NaN")])
@pytest.mark.parametrize("with_session", [True, False])
def test_what_overflows_inside_is_an_error_and_leaves_nothing_in_the_session(pipe, part, reason, with_session):
    session = pipe.new_session() if with_session else None
    messages = [user("hello")]
    messages += [pipe(messages, session=session, **OPTIONS).message, user("and this?", RED)]
    with spoiled(weights_of(pipe, part), torch.nan), pytest.raises(NextGPTError, match=reason):
        pipe(messages, session=session, **OPTIONS)
    again = pipe(messages, session=session, **OPTIONS)
    assert again.token_ids == pipe(messages, **OPTIONS).token_ids
    if with_session:
        assert all(layer.keys.isfinite().all() for layer in session.cache.layers)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_embeddings_that_are_none_are_refused(pipe, wrong):
    inputs = pipe.processor([user("look", RED, RED)])
    features = pipe.model.encode_media(inputs["input_ids"], image_values=inputs["image_values"])
    features[1, 3] = wrong
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"media_features": features}
    for call in (pipe.model, pipe.model.generate, pipe.model.generate_interleaved):
        with pytest.raises(UserInputError, match="features of media 2 of 2 hold NaN or infinite"):
            call(**given)


def test_a_float_picture_with_nan_is_refused_by_name(tmp_path):
    pixels = np.full((20, 30), 0.5, np.float32)
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(tmp_path / "depth.tiff")
    with pytest.raises(UserInputError, match=r"depth\.tiff: holds NaN or infinite pixels"):
        load_media("image", tmp_path / "depth.tiff")


def test_the_command_line_refuses_it_with_exit_code_2(pipe, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(wav(np.nan))
    model = pipe.model.config.language_model["source"].replace("language_model", "model")
    assert main(["generate", "what is it?", "--audio", str(tmp_path / "bad.wav"), "--model", model]) == 2
    output = capsys.readouterr()
    assert "bad.wav: holds NaN or infinite samples" in output.err and output.err.count("\n") == 1 and not output.out
