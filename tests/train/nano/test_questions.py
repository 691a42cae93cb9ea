"""Own captions are asked for in other words too, so that they belong to what is shown and not to one question."""

from __future__ import annotations

import json

from nextgpt.__main__ import main
from nextgpt.train.data.files import json_line
from nextgpt.train.nano.dialogues.questions import ask_in_other_words

ORIGINAL = [
    {"input_image": "barn.jpg", "conversations": [["human", "<image>\nWhat is it about?"], ["gpt", "the red barn"]]},
    {"input_audio": "sea.wav", "conversations": [["human", "<audio>\nWell?"], ["gpt", "our sea"]]},
    {"output_image": "x.jpg", "image_captions": "x", "conversations": [["human", "draw x"], ["gpt", "Here <image>"]]},
    {"input_image": "a.jpg", "conversations": [["human", "<image> And?"], ["gpt", "a"], ["human", "Why?"], ["gpt", "so"]]},
]


def test_each_caption_is_asked_for_in_as_many_other_ways_and_the_rest_stays(tmp_path, capsys) -> None:
    records = [
        record | {"conversations": [{"from": who, "value": text} for who, text in record["conversations"]]}
        for record in ORIGINAL
    ]
    (tmp_path / "my.json").write_text(json.dumps(records))
    plain, asked = tmp_path / "plain.jsonl", tmp_path / "asked.jsonl"
    assert main(["data", "convert", str(tmp_path / "my.json"), "-o", str(plain)]) == 0
    assert main(["data", "convert", str(tmp_path / "my.json"), "-o", str(asked), "--questions", "6"]) == 0
    assert "12 more, the same asked in other words" in capsys.readouterr().out
    lines, given = asked.read_text().splitlines(), plain.read_text().splitlines()
    assert set(given) < set(lines) and len(set(lines)) == len(lines) == len(given) + 12
    for kind, caption in (("image", "the red barn"), ("audio", "our sea")):
        about = [json.loads(line)["messages"] for line in lines if json.loads(line)["messages"][-1]["content"] == caption]
        assert len(about) == 7
        assert len({part["text"] for messages in about for part in messages[0]["content"] if part["type"] == "text"}) == 7
        assert all(any(part["type"] == kind for part in messages[0]["content"]) for messages in about)


def test_a_caption_with_a_separator_of_unicode_or_half_a_character_stays_whole(tmp_path) -> None:
    caption = "the red\u2028barn \ud83d"
    message = {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]}
    file = tmp_path / "my.jsonl"
    file.write_bytes(json_line({"messages": [message, {"role": "assistant", "content": caption}]}))
    assert ask_in_other_words(file, 2) == 2
    answers = [json.loads(line)["messages"][-1]["content"] for line in file.read_bytes().split(b"\n")[:-1]]
    assert answers == [caption] * 3 and [path.name for path in tmp_path.iterdir()] == ["my.jsonl"]
