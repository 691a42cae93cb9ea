"""Chat completions through OpenAI's own client against a real server: one answer, its parts, the second turn, streams."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from urllib.request import urlopen

import numpy as np
import pytest
from openai import APIStatusError, AsyncOpenAI
from PIL import Image

from nextgpt.serve.conversation import find_links
from tiny_server import FAST, MODEL, data_url, run_async

ASK = [{"role": "user", "content": "draw a banana"}]
GONE = "gone" * 8
TEXT = {"extra": {"require": None}, "modalities": ["text"]}


def ask(client, messages=ASK, stream=False, extra=(), **options):
    body = {"require": {"image": 1}} | FAST | dict(extra)
    own = {"model": MODEL, "seed": 1, "max_completion_tokens": 24} | options
    return client.chat.completions.create(messages=messages, stream=stream, extra_body=body, **own)


def test_an_answer_is_one_string_with_a_link_where_its_picture_is(client, pipe):
    answer = ask(client)
    message = answer.choices[0].message
    (address,) = re.findall(r"!\[image\]\((\S+)\)", message.content)
    with urlopen(address) as file:
        assert file.headers["Content-Type"] == "image/png"
        served = Image.open(io.BytesIO(file.read()))
    alone = pipe(ASK, require={"image": 1}, seed=1, max_new_tokens=24, **FAST)
    assert served.tobytes() == alone.images[0].tobytes()
    assert message.content.startswith(alone.message["content"][0]["text"][:5] if alone.text else "!")
    assert not hasattr(message, "parts") and message.audio is None
    assert answer.usage.completion_tokens == len(alone.token_ids)
    assert answer.usage.prompt_tokens == alone.timings.prompt_tokens


def test_with_modalities_the_ordered_parts_come_beside_the_text(client):
    required = {"require": {"image": 1, "audio": 1}, "media_format": "b64_json"}
    message = ask(client, extra=required, modalities=["text", "image", "audio"], max_completion_tokens=40).choices[0].message
    parts = [part for part in message.parts if part["type"] != "text"]
    assert sorted(part["type"] for part in parts) == ["audio", "image"]
    assert sorted(part["mime_type"] for part in parts) == ["audio/wav", "image/png"]
    assert sorted(part["seed"] for part in parts) == [1, 2]
    by_type = {part["type"]: part for part in parts}
    assert base64.b64decode(by_type["audio"]["b64_json"])[:4] == b"RIFF"
    assert message.audio.id == by_type["audio"]["id"] and message.audio.data == by_type["audio"]["b64_json"]
    assert message.images[0]["image_url"]["url"].startswith("data:image/png;base64,")


def collect(stream):
    """The message that a client puts together of a stream's deltas, and what else came."""
    content, media, finished, usage, audio = "", [], None, None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            media += getattr(choice.delta, "media", [])
            audio = getattr(choice.delta, "audio", None) or audio
            finished = choice.finish_reason or finished
    return content, media, finished, usage, audio


def test_a_stream_gives_the_same_and_tells_of_media(client):
    whole = ask(client, max_completion_tokens=12)
    options = {"include_usage": True}
    content, media, finished, usage, _ = collect(ask(client, stream=True, stream_options=options, max_completion_tokens=12))
    unnamed = re.compile(r"/v1/media/[\w-]+")
    assert unnamed.sub("", content) == unnamed.sub("", whole.choices[0].message.content)
    assert finished == whole.choices[0].finish_reason
    assert [each["event"] for each in media] == ["started", "progress", "done"]
    assert media[-1]["url"] in content and media[-1]["seed"] == 1
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_the_clients_own_helper_puts_a_stream_together(client):
    extra = {"require": {"image": 1}, **FAST}
    options = {"model": MODEL, "messages": ASK, "max_completion_tokens": 12, "extra_body": extra}
    with client.chat.completions.stream(**options) as stream:
        message = [event.snapshot.choices[0].message for event in stream if event.type == "chunk"][-1]
    told = [(each["index"], each["medium"], each["event"]) for each in message.media]
    assert told == [(0, 0, "started"), (1, 0, "progress"), (2, 0, "done")]
    assert message.media[-1]["url"] in message.content and message.media[1]["step"] == 1


def test_a_stream_is_of_ordinary_chunks_alone(address):
    body = {"model": MODEL, "messages": ASK, "stream": True, "require": {"image": 1}, "max_completion_tokens": 12, **FAST}
    command = [
        "curl",
        "-sN",
        f"{address}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["choices"] for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_asynchronous_client_gets_the_same(address, client):
    async def answered():
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="unused") as other:
            return await ask(other, max_completion_tokens=12)

    answer = run_async(answered())
    unnamed = re.compile(r"/v1/media/[\w-]+")
    expected = ask(client, max_completion_tokens=12).choices[0].message.content
    assert unnamed.sub("", answer.choices[0].message.content) == unnamed.sub("", expected)


# -- the second turn ----------------------------------------------------------------------------------------------

AGAIN = {"role": "user", "content": "Now on red."}


def same_picture(one: Image.Image, other: Image.Image) -> bool:
    """But for rounding: the cache of the first turn was computed in other pieces."""
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def first(request, client):
    """A first answer with a picture and a sound, as (message as it came, content, audio's id, tokens)."""
    required = {"require": {"image": 1, "audio": 1}}
    options = {"modalities": ["text", "image", "audio"], "max_completion_tokens": 40, "extra": required}
    if not request.param:
        message = ask(client, **options).choices[0].message
        return message, message.content, message.audio.id
    content, _, _, _, audio = collect(ask(client, stream=True, **options))
    return {"role": "assistant", "content": content}, content, audio.id


@pytest.mark.parametrize("way", ["as it came", "its content alone", "its sound alone"])
def test_the_second_turn_finds_the_media_of_the_first(client, pipe, first, way):
    message, content, audio = first
    answer = {
        "as it came": message,
        "its content alone": {"role": "assistant", "content": content},
        "its sound alone": {"role": "assistant", "audio": {"id": audio}},
    }[way]
    second = ask(client, [*ASK, answer, AGAIN])
    required = {"image": 1, "audio": 1}
    alone = pipe(ASK, require=required, output_modalities=("text", "image", "audio"), seed=1, max_new_tokens=40, **FAST)
    expected = pipe([*ASK, alone.message, AGAIN], require={"image": 1}, seed=1, max_new_tokens=24, **FAST)
    assert second.usage.prompt_tokens == expected.timings.prompt_tokens
    assert second.usage.completion_tokens == len(expected.token_ids)
    (address,) = re.findall(r"!\[image\]\((\S+)\)", second.choices[0].message.content)
    with urlopen(address) as file:
        assert same_picture(Image.open(file), expected.images[0])


def test_the_second_turn_reuses_what_the_first_has_computed(client):
    one = ask(client, [{"role": "user", "content": "a conversation of its own"}])
    answer = {"role": "assistant", "content": one.choices[0].message.content}
    second = ask(client, [{"role": "user", "content": "a conversation of its own"}, answer, AGAIN])
    assert second.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens


@pytest.mark.parametrize(
    ("answer", "param"),
    [
        ({"content": f"![image](http://localhost/v1/media/{GONE}.png)"}, "messages.1.content"),
        ({"audio": {"id": GONE}}, "messages.1.audio.id"),
        ({"content": "", "parts": [{"type": "image", "id": GONE}]}, "messages.1.parts.0.id"),
    ],
)
def test_an_unknown_id_is_named(client, answer, param):
    with pytest.raises(APIStatusError) as error:
        ask(client, [*ASK, {"role": "assistant", **answer}, AGAIN])
    assert (error.value.status_code, error.value.param, error.value.code) == (400, param, "unknown_medium")
    assert f"'{GONE}'" in error.value.message


def test_what_only_looks_like_a_link_is_text_and_no_text_takes_long_to_read(client):
    for text in ("see [this](/v1/media/banana.png)", "[" * 900_000, "\n" * 900_000, "[](/v1/media/" * 60_000):
        assert find_links(text) == []
    for host in ("a", "[::1]:8000"):
        own = f"\n\n![image](http://{host}/v1/media/{GONE}.png)"
        first, second = (3, 3 + len(own) + 2, GONE), (3 + len(own) + 5, 8 + 2 * len(own), GONE)
        assert find_links(f"one{own}\n\ntwo{own}") == [first, second]
    answer = {"role": "assistant", "content": "see [this](/v1/media/banana.png)"}
    assert ask(client, [*ASK, answer, AGAIN], max_completion_tokens=12).choices[0].message.content


# -- parts in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": data_url()}},
        {"type": "input_audio", "input_audio": {"data": data_url("audio").partition(",")[2], "format": "wav"}},
        {"type": "file", "file": {"file_data": data_url(), "filename": "a.png"}},
        {"type": "audio_url", "audio_url": {"url": data_url("audio")}},
    ],
    ids=lambda part: part["type"],
)
def test_the_model_sees_what_is_shown(client, pipe, part):
    kind = "audio" if "audio" in part["type"] else "image"
    words = {"type": "text", "text": "what is this?"}
    own = [{"role": "user", "content": [words, {"type": kind, "url": data_url(kind)}]}]
    expected = pipe(own, output_modalities=("text",), max_new_tokens=8)
    answer = ask(client, [{"role": "user", "content": [words, part]}], **TEXT, max_completion_tokens=8)
    assert answer.usage.prompt_tokens == expected.timings.prompt_tokens
    assert answer.choices[0].message.content == expected.text


def test_what_system_and_developer_say_comes_first_wherever_it_stands(client, pipe):
    options = TEXT | {"max_completion_tokens": 8}
    brief = {"type": "text", "text": "Be brief."}
    orders = [
        [{"role": "system", "content": "Be brief.\n\nBe kind."}, *ASK],
        [{"role": "developer", "content": [brief]}, {"role": "system", "content": "Be kind."}, *ASK],
        [{"role": "system", "content": "Be brief."}, *ASK, {"role": "developer", "content": "Be kind."}],
    ]
    answers = [ask(client, messages, **options) for messages in orders]
    expected = pipe(orders[0], output_modalities=("text",), max_new_tokens=8)
    assert {answer.choices[0].message.content for answer in answers} == {expected.text}
    assert {answer.usage.prompt_tokens for answer in answers} == {expected.timings.prompt_tokens}


# -- options ------------------------------------------------------------------------------------------------------


def test_several_answers_take_following_seeds(client):
    both = ask(client, n=2, modalities=["text", "image"], max_completion_tokens=12)
    seeds = [[part["seed"] for part in choice.message.parts if part["type"] == "image"] for choice in both.choices]
    assert seeds == [[1], [2]]
    streamed = ask(client, n=2, stream=True, max_completion_tokens=12)
    choices = [choice for chunk in streamed for choice in chunk.choices]
    told = [(choice.index, event) for choice in choices for event in getattr(choice.delta, "media", [])]
    assert {index: media["seed"] for index, media in told if media["event"] == "done"} == {0: 1, 1: 2}


def test_a_stop_sequence_ends_the_answer_and_is_left_out(client, pipe):
    text = pipe(ASK, output_modalities=("text",), max_new_tokens=40).text
    stop = text[len(text) // 2 :][:2]
    for stream in (False, True):
        answer = ask(
            client, stop=stop, stream=stream, extra={"require": None}, modalities=["text"], max_completion_tokens=40
        )
        if stream:
            content, _, finished, _, _ = collect(answer)
        else:
            content, finished = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert content == text.partition(stop)[0] and finished == "stop"


def test_sampling_is_asked_for_by_temperature(client, pipe):
    options = TEXT | {"max_completion_tokens": 20}
    sampled = ask(client, temperature=1.5, **options).choices[0].message.content
    expected = pipe(ASK, output_modalities=("text",), max_new_tokens=20, do_sample=True, temperature=1.5, seed=1)
    assert sampled == expected.text
    greedy = pipe(ASK, output_modalities=("text",), max_new_tokens=20)
    assert ask(client, temperature=0, **options).choices[0].message.content == greedy.text


def test_pictures_are_drawn_through_the_language_model(client, pipe):
    body = {"seed": 3, "num_inference_steps": 1}
    drawn = client.images.generate(model=MODEL, prompt="a banana", n=2, response_format="b64_json", extra_body=body)
    for i, each in enumerate(drawn.data):
        messages = [{"role": "user", "content": "a banana"}]
        expected = pipe(messages, require={"image": 1}, seed=3 + i, image={"num_inference_steps": 1})
        picture = Image.open(io.BytesIO(base64.b64decode(each.b64_json)))
        assert same_picture(picture, expected.images[0])
    linked = client.images.generate(prompt="a banana", extra_body=body)
    with urlopen(linked.data[0].url) as file:
        assert Image.open(file).size


def test_the_model_is_listed_with_what_it_takes_and_makes(client):
    (model,) = client.models.list().data
    assert model.id == MODEL and model.output_modalities == ["text", "image", "audio", "video"]
    assert client.models.retrieve(MODEL).input_modalities == model.input_modalities
