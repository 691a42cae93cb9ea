"""What a person sees in a terminal: the screen after an answer, and whole sessions on a pseudo-terminal with nano."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from nextgpt.cli.terminal import AnswerPrinter
from nextgpt.decoders.media import Audio
from nextgpt.errors import UserInputError
from nextgpt.events import Finished, MediaDone, MediaProgress, MediaStarted, Reply, TextDelta
from nextgpt.hub.parts import preset_names
from tiny_terminal import Screen, Terminal

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "demo" / "examples"
NEXTGPT = (sys.executable, "-m", "nextgpt")
CHATTER = re.compile(r"Loading \w+|it/s\]|Warning|Expected types|deprecated")
DONE = Finished(Reply({"role": "assistant", "content": []}))

needs_nano = pytest.mark.skipif("nano" not in preset_names(), reason="the nano weights are not in this checkout")


class FakeTerminal:
    """Stands for standard output and standard error of one terminal."""

    encoding = "utf-8"

    def __init__(self, columns: int):
        self.screen = Screen(columns)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.screen.write(text.replace("\n", "\r\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def image_events(index: int) -> list:
    picture = Image.new("RGB", (4, 4))
    steps = [MediaProgress(index, "image", step, 3, None) for step in (1, 2, 3)]
    return [MediaStarted(index, "image", index), *steps, MediaDone(index, "image", picture, index, 0.5)]


def shown(events: list, folder: Path, monkeypatch, columns: int = 40) -> str:
    """The screen after an answer, the folder's name taken out."""
    terminal = FakeTerminal(columns)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(folder)
    AnswerPrinter(Path("out")).print([*events, DONE])
    return terminal.screen.text


def test_the_words_of_an_answer_stay(tmp_path, monkeypatch) -> None:
    assert shown([TextDelta("This is "), TextDelta("a banana.")], tmp_path, monkeypatch) == "This is a banana."


def test_words_and_media_stand_below_each_other_in_their_order(tmp_path, monkeypatch) -> None:
    events = [TextDelta("A bell."), *image_events(0), TextDelta(" And again."), *image_events(1), TextDelta("\nThere.")]
    assert shown(events, tmp_path, monkeypatch).splitlines() == [
        "A bell.",
        "out/image-001.png (seed 0, 0.5 s)",
        "And again.",
        "out/image-002.png (seed 1, 0.5 s)",
        "There.",
    ]


def test_media_alone_leave_no_trace_of_their_steps(tmp_path, monkeypatch) -> None:
    events = [*image_events(0)[:-1], MediaDone(0, "audio", Audio([0.0] * 100, 16000), 7, 1.0)]
    assert shown(events, tmp_path, monkeypatch) == "out/audio-001.wav (seed 7, 1.0 s)"


@pytest.mark.parametrize("length", [39, 40, 41, 80, 100])
def test_a_line_that_wraps_stays_whole(length, tmp_path, monkeypatch) -> None:
    text = "abcdefghij" * 10
    screen = shown([TextDelta(text[:length]), *image_events(0)[:-1]], tmp_path, monkeypatch)
    assert screen.replace("\n", "") == text[:length]


def test_a_narrow_terminal_keeps_no_rest_of_the_steps(tmp_path, monkeypatch) -> None:
    assert shown([TextDelta("A cat."), *image_events(0)[:-1]], tmp_path, monkeypatch, columns=12) == "A cat."


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch) -> None:
    def write_half(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", lambda image, path, *rest, **more: write_half(image, Path(path)))
    with pytest.raises(UserInputError, match=r"image-001.png: could not be written \(No space left"):
        shown(image_events(0), tmp_path, monkeypatch)
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture
def terminal(tmp_path):
    """Starts `nextgpt …` in an empty folder."""
    opened = []

    def start(*arguments: str, columns: int = 100) -> Terminal:
        environment = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        opened.append(Terminal([*NEXTGPT, *arguments], tmp_path, columns, **environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@needs_nano
def test_generate_shows_its_answer(terminal) -> None:
    session = terminal("generate", "What is this?", "--image", str(EXAMPLES / "bell.png"))
    assert session.finish() == 0
    assert "bell" in session.shown and not CHATTER.search(session.raw)
    assert len(session.shown.splitlines()) == 1


@needs_nano
def test_the_session_in_the_readme_is_what_a_person_sees(terminal) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?:^    .*\n)*^    \$ nextgpt chat .*\n(?:^    .*\n)*", readme, re.MULTILINE)
    command, *lines = [line.removeprefix("    ") for line in block.splitlines()]
    session = terminal(*command.split()[2:])
    for line in lines:
        if line.startswith("> "):
            session.prompt()
            session.type(line.removeprefix("> ") + "\r")
    assert session.finish() == 0
    assert plain(session.shown).splitlines() == plain("\n".join(lines)).splitlines()
    assert not CHATTER.search(session.raw)


def plain(text: str) -> str:
    """Seconds differ from run to run."""
    return re.sub(r"\d+\.\d s\)", "0.0 s)", text)


@needs_nano
def test_commands_errors_and_several_media_in_a_chat(terminal) -> None:
    session = terminal("chat", "--seed", "0", columns=200)

    def say(text: str) -> str:
        """What came on the screen for it."""
        before = session.shown
        session.type(f"{text}\r")
        session.prompt()
        return session.shown[len(before) :].removesuffix("\n>").lstrip(" ").removeprefix(text.strip()).strip()

    session.prompt()
    assert "/attach FILE" in say("/help")
    assert say("/attach nowhere.png") == "error: nowhere.png: no such file; check the path of the file"
    assert say("/nonsense") == "error: there is no command /nonsense; /help lists them"
    assert say("") == ""
    bell = EXAMPLES / "bell.png"
    assert say(f"/attach {EXAMPLES / 'violin.flac'}").startswith("attached audio")
    assert say("/detach") == "Nothing is attached."
    assert say(f"/attach {bell} ") == f"attached image {bell}; it goes with your next message"
    assert "bell" in say("What is this?")
    assert say("/reset") == "The conversation and what was attached are forgotten."
    lines = say("Play a bell, then draw it on a red background.").splitlines()
    assert [line.split(" (")[0] for line in lines[1::2]] == ["nextgpt-out/audio-001.wav", "nextgpt-out/image-001.png"]
    assert "bell" in lines[0] and "red" in lines[2]
    assert say("x" * 5000).endswith("the model takes 1000: shorten it, or begin anew with /reset")
    say("/reset")
    *_, words, saved = say("draw a cat\x7f\x7f\x7fdog").splitlines()
    assert "dog" in words and saved.startswith("nextgpt-out/image-"), "the line can be edited"
    session.type("\x04")
    assert session.finish() == 0 and not CHATTER.search(session.raw)


@needs_nano
def test_ctrl_c_stops_an_answer_then_the_chat_at_the_prompt(terminal) -> None:
    session = terminal("chat", "--steps", "500")
    session.prompt()
    session.type("Draw a cat.\r")
    session.wait_for("step 3 of")
    session.type("\x03")
    session.prompt()
    question, answer, *_ = session.shown.splitlines()[-4:]
    assert session.shown.endswith("(stopped)\n>") and "Draw a cat." in question and "cat" in answer, session.shown
    assert "step" not in session.shown
    session.interrupt_prompt()
    session.prompt()
    session.interrupt_prompt()
    assert session.finish() == 130
    assert session.shown.splitlines()[-1] in (">", ">^C"), "no traceback"


@needs_nano
def test_ctrl_c_stops_a_request(terminal) -> None:
    session = terminal("generate", "Draw a cat.", "--steps", "500")
    session.wait_for("step 3 of")
    session.type("\x03")
    assert session.finish() == 130
    [answer] = session.shown.replace("^C", "").strip().splitlines()
    assert "cat" in answer, "what had come stays"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", ""], "the prompt is empty: say what to ask, or attach a file"),
        (["generate", "hi", "--only", "image"], "--only image: an answer always may hold text, e.g. --only text,image"),
    ],
)
def test_an_error_is_one_line(arguments, expected, terminal) -> None:
    session = terminal(*arguments, columns=200)
    assert session.finish() == 2
    assert session.shown == f"nextgpt: error: {expected}"
