"""Other projects' data as people have them: what becomes of each record, and what is said of those that are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.errors import UserInputError
from nextgpt.train.data.convert import ConversionReport, convert_files
from nextgpt.train.data.turns import turn_problems

HUMAN, GPT = {"from": "human"}, {"from": "gpt"}
SIMPLE = [HUMAN | {"value": "hi"}, GPT | {"value": "hello"}]
HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SYSTEM = {"role": "system", "content": "Be kind."}


def asking(text: str, answer: str = "So.") -> list[dict]:
    return [HUMAN | {"value": text}, GPT | {"value": answer}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(name: str) -> dict:
    return {"type": "image", "path": name}


def convert(folder: Path, source: str | bytes | list | dict, **options) -> tuple[ConversionReport, list[list[dict]]]:
    """The report, and the conversations that were written."""
    file = folder / "source.json"
    file.write_bytes(
        source if isinstance(source, bytes) else (source if isinstance(source, str) else json.dumps(source)).encode()
    )
    report = convert_files([file], folder / "out.jsonl", **options)
    lines = (folder / "out.jsonl").read_bytes().splitlines()
    assert len(lines) == report.conversations
    return report, [json.loads(line)["messages"] for line in lines]


WHOLE = {
    "ShareGPT's system": ({"system": "Be kind.", "conversations": SIMPLE}, [SYSTEM, *HI]),
    "a system turn and the same beside it": (
        {"system_prompt": "Be kind.", "conversations": [{"from": "system", "value": "Be kind."}, *SIMPLE]},
        [SYSTEM, *HI],
    ),
    "an empty system": ({"system": "", "tools": "[]", "conversations": SIMPLE}, HI),
    "role and content in conversations": ({"conversations": HI}, HI),
    "ms-swift's pairs": ({"system": "Be kind.", "conversation": [{"human": "hi", "assistant": "hello"}]}, [SYSTEM, *HI]),
    "Alpaca's system and history": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be kind.", "history": [["hi", "hello"]]},
        [SYSTEM, *HI, {"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
    ),
    "Alpaca without input": ({"instruction": "hi", "input": None, "output": "hello", "history": None}, HI),
    "Alpaca with a picture": (
        {"instruction": "<image>What?", "output": "So.", "images": ["a.png"]},
        [
            {"role": "user", "content": [image("a.png"), text("What?")]},
            {"role": "assistant", "content": "So."},
        ],
    ),
    "query and response": (
        {"query": "Add.", "response": "3", "history": [["hi", "hello"]]},
        [*HI, {"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}],
    ),
    "OpenAI's messages": ({"messages": [{"role": "developer", "content": "Be kind."}, *HI]}, [SYSTEM, *HI]),
    "trl's prompt and completion": ({"prompt": HI[:1], "completion": HI[1:]}, HI),
    "a prompt and a completion of text": ({"prompt": "hi", "completion": "hello"}, HI),
    "parts of OpenAI and of Hugging Face": (
        {
            "images": ["b.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [text("What?"), {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "image"}],
                },
                HI[1],
            ],
        },
        [{"role": "user", "content": [text("What?"), image("a.png"), image("b.png")]}, HI[1]],
    ),
    "two pictures and one marker, in order": (
        {"image": ["a.png", "b.png"], "conversations": asking("<image>\nCompare.")},
        [
            {"role": "user", "content": [image("a.png"), image("b.png"), text("Compare.")]},
            {"role": "assistant", "content": "So."},
        ],
    ),
    "a picture and no marker": (
        {"images": ["a.png"], "conversations": asking("What?")},
        [{"role": "user", "content": [image("a.png"), text("What?")]}, {"role": "assistant", "content": "So."}],
    ),
    "LLaVA's <image> for a clip": (
        {"video": "a.mp4", "image": None, "conversations": asking("<image>\nWhat happens?")},
        [
            {"role": "user", "content": [{"type": "video", "path": "a.mp4"}, text("What happens?")]},
            {"role": "assistant", "content": "So."},
        ],
    ),
    "a picture as `datasets` writes it": (
        {"image": {"bytes": None, "path": "a.png"}, "conversations": asking("<image> What?")},
        [{"role": "user", "content": [image("a.png"), text("What?")]}, {"role": "assistant", "content": "So."}],
    ),
    "HTML in a text": (
        {"conversations": asking("What is <video> in HTML?\n<video>\n</video>", "<image>\nis no tag, <video> is.")},
        [
            {"role": "user", "content": "What is <video> in HTML?\n<video>\n</video>"},
            {"role": "assistant", "content": "<image>\nis no tag, <video> is."},
        ],
    ),
    "HTML beside a picture": (
        {"image": "a.png", "conversations": asking("<image>\nWhich tag shows it?", "An <image> is no tag.")},
        [
            {"role": "user", "content": [image("a.png"), text("Which tag shows it?")]},
            {"role": "assistant", "content": "An <image> is no tag."},
        ],
    ),
    "the original's first code, drawing": (
        {
            "image_name": "a.png",
            "output_modality": "image",
            "conversation": [
                HUMAN | {"value": "draw a dog", "input_modality": "text"},
                GPT | {"value": "Sure.", "caption": "a dog", "output_modality": "image"},
            ],
        },
        [
            {"role": "user", "content": "draw a dog"},
            {"role": "assistant", "content": [text("Sure."), {"type": "image", "caption": "a dog"}]},
        ],
    ),
    "the original's first code, looking": (
        {
            "image_name": "a.png",
            "output_modality": "text",
            "conversation": [HUMAN | {"value": "What?", "input_modality": "image"}, GPT | {"value": "So.", "caption": ""}],
        },
        [{"role": "user", "content": [image("a.png"), text("What?")]}, {"role": "assistant", "content": "So."}],
    ),
    "the original's first code, captions in an answer": (
        {"image_name": "0.jpg", "conversation": asking("Show me.", "Here: <Image>a dog</Image> And <Audio>a bark</Audio>")},
        [
            {"role": "user", "content": "Show me."},
            {
                "role": "assistant",
                "content": [
                    text("Here:"),
                    {"type": "image", "caption": "a dog"},
                    text("And"),
                    {"type": "audio", "caption": "a bark"},
                ],
            },
        ],
    ),
    "an empty picture of a text": ({"image": "", "conversations": SIMPLE}, HI),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_record_is_converted_whole(name, tmp_path) -> None:
    record, expected = WHOLE[name]
    report, conversations = convert(tmp_path, [record])
    assert not report.left_out and conversations == [expected]
    assert not list(turn_problems(expected))


LEFT_OUT = {
    "an empty assistant turn": {"conversations": [*SIMPLE, HUMAN | {"value": "and?"}, GPT | {"value": " "}]},
    "two user turns in a row": {"conversations": [HUMAN | {"value": "oh"}, *SIMPLE]},
    "the assistant speaks first": {"conversations": [GPT | {"value": "oh"}, *SIMPLE]},
    "the last turn is the user's": {"conversations": [*SIMPLE, HUMAN | {"value": "and?"}]},
    "no question with an answer": {"conversations": []},
    "a turn is from 'observation'": {"conversations": [*SIMPLE, {"from": "observation", "value": "{}"}]},
    "offers tools": {"conversations": SIMPLE, "tools": "[{}]"},
    "uses tools": {"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
    "compares answers": {"conversations": SIMPLE[:1], "chosen": SIMPLE[1], "rejected": SIMPLE[1]},
    "rates its answer": {"instruction": "hi", "output": "hello", "kto_tag": False},
    "not to be learned": {"messages": [HI[0], HI[1] | {"weight": 0}]},
    "two system texts": {"system": "Be brief.", "messages": [SYSTEM, *HI]},
    "two conversations": {"conversations": SIMPLE, "messages": HI},
    "a <image> of the user names no file": {"image": "", "conversations": asking("<image>\nWhat?")},
    "a <video> of the user names no file": {"conversations": asking("<video>\nWhat?")},
    "2 <image> of the user but 1 named": {"image": "a.png", "conversations": asking("<image><image> What?")},
    "the image of the assistant has no caption": {"images": ["a.png"], "conversations": asking("Draw.", "<image>")},
    "the image is an address": {"image": "https://example.com/a.png", "conversations": asking("<image> What?")},
    "cannot be the name of a file": {"image": "A" * 5000, "conversations": asking("<image> What?")},
    "no turn says whether image_name is looked at": {"image_name": "a.png", "conversation": SIMPLE},
    "no turn makes any": {"image_name": "a.png", "output_modality": "audio", "conversation": SIMPLE},
    "a question holds media by their caption": {"image_name": "", "conversation": asking("<Image>a dog</Image> What?")},
    "the history holds more than pairs": {"instruction": "hi", "output": "hello", "history": ["hi"]},
    "instruction is a number": {"instruction": 1, "output": "hello"},
    "holds half a character (the lone surrogate U+D83D)": {"conversations": asking("\ud83d")},
    "no known format has the keys question": {"question": "hi"},
    "a list, expected an object": ["hi", "hello"],
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_a_record_is_left_out_whole_and_named_with_its_place(reason, tmp_path) -> None:
    good = {"conversations": SIMPLE}
    report, conversations = convert(tmp_path, [good, LEFT_OUT[reason], good, LEFT_OUT[reason]])
    assert conversations == [HI, HI]
    [(found, places)] = report.left_out.items()
    assert reason in found
    assert places == [f"{tmp_path / 'source.json'}: record {number}" for number in (2, 4)]


ONE = json.dumps({"conversations": SIMPLE})
FILES = {
    "a byte order mark": b"\xef\xbb\xbf" + ONE.encode(),
    "UTF-16, as Windows writes it": ONE.encode("utf-16"),
    "one object over several lines": json.dumps(json.loads(ONE), indent=2),
    "objects over several lines": "\n".join([json.dumps(json.loads(ONE), indent=2)] * 2),
    "a list in an object": json.dumps({"version": 1, "data": [json.loads(ONE)]}),
    "lines, one of them blank": f"{ONE}\n\n{ONE}\r\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_people_have_it(name, tmp_path) -> None:
    report, conversations = convert(tmp_path, FILES[name])
    assert conversations in ([HI], [HI, HI]) and not report.left_out


def test_a_line_that_cannot_be_read_is_counted_and_the_others_stay(tmp_path) -> None:
    lines = [
        ONE.encode(),
        ONE.encode()[:-5],
        b'{"conversations": 1}',
        ONE.replace("hello", "h\\u00e9").encode(),
        b"[" * 5000,
    ]
    lines.append(ONE.encode().replace(b"hello", b"h\xe9llo"))  # Latin-1
    report, conversations = convert(tmp_path, b"\n".join(lines))
    assert [messages[1]["content"] for messages in conversations] == ["hello", "hé"]
    found = {places[0].rpartition(":")[2]: reason for reason, places in report.left_out.items()}
    assert found.keys() == {"2", "3", "5", "6"}
    assert "not valid JSON" in found["2"] and "nested too deeply" in found["5"] and "0xE9" in found["6"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no JSON at all\nreally", r"source\.json:1: not valid JSON .*expected a list of JSON objects"),
        ('[\n{"a": 1},\n{"b": 2,}\n]', r"source\.json:3: not valid JSON"),
        (ONE.encode("utf-16")[:-1], "not readable as utf-16 .*; save it as UTF-8"),
        ('{"prompt": "hi", "chosen": [{}], "rejected": [{}]}', "compares answers"),
        ('{"text": "hi", "tags": ["a"]}', "no known format has the keys tags, text"),
        ("[]", "holds no records"),
        ("", "holds no records"),
        ("[1, 2]", r"a number, expected an object .*record 1, record 2"),
        ('{"train": [], "test": []}', "one object with the lists train, test; make a file of each"),
    ],
)
def test_a_file_without_records_is_one_line_and_leaves_nothing(source, reason, tmp_path) -> None:
    with pytest.raises(UserInputError, match=reason) as caught:
        convert(tmp_path, source)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source.json"]


def test_a_failed_conversion_keeps_what_was_there(tmp_path) -> None:
    convert(tmp_path, ONE)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserInputError):
        convert(tmp_path, [{"question": "?"}])
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserInputError, match="folder: cannot be written"):
        convert_files([tmp_path / "source.json", tmp_path / "out.jsonl"], tmp_path / "folder")
    assert not list(tmp_path.glob("*.tmp"))


def test_records_of_several_formats_in_one_file(tmp_path) -> None:
    pair = {"instruction": "hi", "output": "hello"}
    report, conversations = convert(tmp_path, [{"conversations": SIMPLE}, pair, {"messages": HI}])
    assert conversations == [HI] * 3 and not report.left_out


def test_converted_data_converts_to_itself(tmp_path) -> None:
    made = {"type": "image", "caption": "a dog"}
    messages = [
        SYSTEM,
        {"role": "user", "content": [image("a.png"), text("And?")]},
        {"role": "assistant", "content": [made]},
    ]
    assert convert(tmp_path, [{"messages": messages}])[1] == [messages]


def test_what_was_not_read_or_placed_by_guess_is_noted(tmp_path) -> None:
    record = {"id": 1, "source": "web", "image": "a.png", "conversations": [SIMPLE[0] | {"lang": "en"}, SIMPLE[1]]}
    record["conversations"] += asking("And <video>?")
    report, _ = convert(tmp_path, [{"conversations": SIMPLE}, record])
    assert list(report.notes) == [
        "the key 'lang' of a turn was not read",
        "no <image> of the user says where the image belongs",
        "a <video> of the user names no file and was kept as text",
        "the key 'source' was not read",
    ]
    assert all(places == [f"{tmp_path / 'source.json'}: record 2"] for places in report.notes.values())


def test_the_command_names_every_record_left_out(tmp_path, capsys) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text("\n".join([ONE, *[json.dumps({"conversations": SIMPLE[:1]})] * 12]))
    command = ["data", "convert", str(source), "-o", str(tmp_path / "out.jsonl")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"left out 12: no question with an answer ({source}:2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more" in printed
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["conversations"] == 1
    assert report["left_out"] == {"no question with an answer": [f"{source}:{line}" for line in range(2, 14)]}
