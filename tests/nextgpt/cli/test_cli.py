"""The command line with a tiny random model: what it prints, saves and returns.

What an answer says is not tested (the weights are random); errors are tested in test_bad_input.py.
"""

import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from nextgpt import __version__
from nextgpt.__main__ import main
from nextgpt.cli.terminal import AnswerPrinter, Chat
from nextgpt.events import Finished, Reply, TextDelta

PICTURE = Path(__file__).parents[2] / "fixtures" / "parity" / "media" / "shapes.png"


@pytest.fixture
def short(saved, tmp_path) -> list[str]:
    """Options of a short answer."""
    model = ["--model", str(saved), "--device", "cpu", "--out", str(tmp_path / "out")]
    return [*model, "--max-new-tokens", "12", "--steps", "1"]


def test_generate_prints_text_and_paths_and_saves_media(short, tmp_path, capsys):
    assert main(["generate", "draw a red car", *short, "--require", "image=2", "--seed", "7"]) == 0
    paths = re.findall(r"^(.*\.png) \(seed (\d+), .* s\)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(seed) for _, seed in paths] == [7, 8]
    assert [Image.open(path).size for path, _ in paths] == [(32, 32)] * 2


def test_generate_never_overwrites_a_file(short, tmp_path):
    for _ in range(2):
        assert main(["generate", "draw", *short, "--require", "image=1"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image-001.png", "image-002.png"]


def test_generate_json_is_one_object(short, capsys):
    attach = ["--image", str(PICTURE), "--image", str(PICTURE)]
    assert main(["generate", "and this?", *short, *attach, "--require", "image=1", "--seed", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"text", "files", "seeds", "finished", "switched_off", "timings"}
    assert answer["seeds"] == [3] and Path(answer["files"][0]).is_file()
    assert answer["timings"]["total"] > 0


def test_the_same_seed_draws_the_same_picture(short, capsys):
    for _ in range(2):
        assert main(["generate", "draw", *short, "--require", "image=1", "--seed", "5", "--json"]) == 0
    first, second = capsys.readouterr().out.split("}\n{")
    files = re.findall(r'"([^"]*\.png)"', first + second)
    assert Image.open(files[0]).tobytes() == Image.open(files[1]).tobytes()


def test_only_text_makes_no_files(short, tmp_path):
    assert main(["generate", "draw", *short, "--only", "text"]) == 0
    assert not (tmp_path / "out").exists()


def test_what_is_switched_off_is_told_beside_the_answer(tmp_path, capsys):
    reply = Reply({"role": "assistant", "content": [{"type": "text", "text": "Here."}]}, switched_off=["image", "audio"])
    AnswerPrinter(tmp_path).print([TextDelta("Here."), Finished(reply)])
    assert capsys.readouterr().out == "Here.\n(Not made, because switched off: image, audio.)\n"


@pytest.mark.parametrize("require", ["image", "image=many", "audio=1"])
def test_a_contract_that_cannot_be_kept_is_refused(short, require, capsys):
    assert main(["generate", "draw", *short, "--require", require]) == 2
    assert require.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--steps", "0"], ["--max-new-tokens", "-1"], ["--steps", "many"]])
def test_a_number_that_is_none_is_refused_before_the_model_loads(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "draw", *option])
    assert f"{option[1]!r} is not a whole number above 0" in capsys.readouterr().err


def test_an_out_below_a_file_is_refused_before_the_model_loads(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["generate", "draw", "--model", "no such model", "--out", str(tmp_path / "file" / "out")]) == 2
    assert f"{tmp_path / 'file'}: is a file, expected a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_that_cannot_be_written_is_refused_before_the_model_loads(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["generate", "draw", "--model", "no such model", "--out", str(tmp_path / "out")]) == 2
    assert f"nothing may be written in {tmp_path}" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_refused_before_the_model_loads(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(["generate", "draw", "--model", "no such model", "--out", str(tmp_path / "out")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_chat_answers_each_line_of_standard_input(short, monkeypatch, capsys):
    lines = ["hello", "", "/help", f"/attach {PICTURE}", "what is this?", "/reset", "again", "/quit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", *short]) == 0
    output = capsys.readouterr().out
    assert "/attach FILE" in output and f"attached image {PICTURE}" in output
    assert "> " not in output and "(stopped)" not in output


def test_chat_with_a_bad_attachment_ends_with_code_2(short, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/attach nowhere.png\n"))
    assert main(["chat", *short]) == 2
    assert "nowhere.png: no such file" in capsys.readouterr().err


class Scripted:
    """Stands for a pipeline: tells what it was asked, and is interrupted when the text says so."""

    input_modalities = ("text", "image", "audio")

    def __init__(self):
        self.asked: list[list[dict]] = []

    def new_session(self):
        return object()

    def stream(self, messages, session, cancel):
        self.asked.append(messages)
        yield TextDelta("Once upon")
        if messages[-1]["content"][-1]["text"] == "a long story":
            signal.raise_signal(signal.SIGINT)
            assert cancel.is_set()
        yield Finished(Reply({"role": "assistant", "content": [{"type": "text", "text": "Once upon"}]}))


def test_chat_keeps_the_conversation_and_sends_attachments_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/attach {PICTURE}\nfirst\nsecond\n/reset\nthird\n"))
    pipeline = Scripted()
    Chat(pipeline, tmp_path, {}).run()
    kinds = [[[part["type"] for part in message["content"]] for message in asked] for asked in pipeline.asked]
    assert kinds == [[["image", "text"]], [["image", "text"], ["text"], ["text"]], [["text"]]]


def test_interrupt_stops_the_answer_and_not_the_chat(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long story\nnext\n"))
    pipeline = Scripted()
    Chat(pipeline, tmp_path, {}).run()
    assert len(pipeline.asked) == 2
    assert capsys.readouterr().out == "Once upon\n(stopped)\nOnce upon\n"


def test_interrupt_elsewhere_is_exit_code_130(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("nextgpt.report.info.describe_environment", interrupted)
    assert main(["info"]) == 130


def test_a_defect_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def broken(*args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("nextgpt.report.info.describe_environment", broken)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "nextgpt: unexpected ZeroDivisionError: division by zero (run with --debug)\n"


def test_info_names_parts_and_what_is_trained(saved, capsys):
    assert main(["info", str(saved)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^trained .* tensors, [\d,]+ parameters in model.safetensors and adapter_model", output, re.M)
    assert re.search(r"^gives +text, image \(4 signal tokens\)", output, re.M)
    assert re.search(r"^image decoder .*\(present\)", output, re.M)


def test_info_of_the_full_size_model_names_sources_sizes_and_licences(capsys):
    assert main(["info", "7b"]) == 0
    expected = r"^language model +lmsys/vicuna-7b-v1.5 \((missing, 13.5 GB|present)\), Llama 2"
    assert re.search(expected, capsys.readouterr().out, re.M)


def test_params_prints_the_table_and_its_footnote(saved, capsys):
    assert main(["params", str(saved)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^trained [\d,]+ of [\d,]+ parameters: [\d.]+%$", output, re.M)
    assert main(["params", str(saved), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["total"] == sum(part["parameters"] for part in table["parts"])


def test_without_a_command_it_says_what_there_is(capsys):
    assert main([]) == 2
    assert re.search(r"^    chat +talk to the assistant", capsys.readouterr().out, re.M)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"nextgpt {__version__}\n"


def test_evaluate_refuses_a_row_that_it_does_not_have(capsys):
    assert main(["evaluate", "nano", "--part", "smell"]) == 2
    assert "--part smell" in (error := capsys.readouterr().err) and "text-to-image" in error


@pytest.mark.parametrize("words", ["--ladder --part user", "--ladder --report out", "--ablate --part user"])
def test_evaluate_refuses_what_would_do_nothing(words, capsys):
    assert main(["evaluate", "nano", *words.split()]) == 2
    assert "does nothing with --" in capsys.readouterr().err


def test_evaluate_checks_its_report_before_it_asks_anything(tmp_path, capsys):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    assert main(["evaluate", "nano", "--part", "user", "--report", str(tmp_path / "out")]) == 2
    assert "is a file, expected a folder; give another with --report" in capsys.readouterr().err


def test_evaluate_prints_each_row_of_its_json_list_as_soon_as_it_is_there(saved, monkeypatch, capsys):
    from nextgpt.train.nano.evaluation import evaluate

    first, second = evaluate.Score("smell", "rose", 3, 4), evaluate.Score("taste", note="left out: no tongue")
    printed = []

    def taste(bench) -> list:
        printed.append(capsys.readouterr().out)
        return [second]

    monkeypatch.setattr(evaluate, "ROWS", {"smell": lambda bench: [first, first], "taste": taste})
    assert main(["evaluate", str(saved), "--device", "cpu", "--json"]) == 0
    assert printed[0].count('"row": "smell"') == 2
    assert evaluate.Score.from_json(printed[0] + capsys.readouterr().out) == [first, first, second]
