"""Conversations, the panel and what is shown of them, without a server."""

import json
import math
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from nextgpt.decoders import Audio
from nextgpt.demo.conversations import MAX_SESSIONS, Conversation, Pending, Store, Turn
from nextgpt.demo.view import happened, shown, title
from nextgpt.errors import UserInputError
from nextgpt.events import Timings
from nextgpt.media import load_media
from nextgpt.session import Session

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "media"
PICTURE = FIXTURES / "shapes.png"


@pytest.fixture
def store():
    store = Store(Session)
    yield store
    store.close()


@pytest.fixture
def conversation(store) -> Conversation:
    return store.create()


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def archive(path: Path, messages, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("messages.json", json.dumps({"messages": messages}))
        for name, data in files.items():
            packed.writestr(name, data)
    return path


# ---------------------------------------------------------------------- the store


def test_ids_are_long_and_the_addresses_of_files_tell_nothing_of_them(store):
    conversations = [store.create() for _ in range(20)]
    assert len({each.id for each in conversations}) == 20
    assert all(len(each.id) >= 40 and each.id not in str(each.folder) for each in conversations)


def test_a_conversation_goes_with_its_files_when_its_time_is_over(store):
    old, new = store.create(), store.create()
    old.keep_file(PICTURE)
    old.used -= store.keep_hours * 3600 + 1
    store.sweep()
    assert not old.folder.exists() and new.folder.exists()
    with pytest.raises(UserInputError, match="24 hours after their last use"):
        store.get(old.id)


@pytest.mark.parametrize("goes", [Store.sweep, lambda store: store.delete(store.last), lambda store: store.last.clear()])
def test_what_was_sent_in_goes_with_the_conversation_and_nothing_else_does(tmp_path, goes):
    uploads, elsewhere = tmp_path / "uploads", tmp_path / "shapes.png"
    uploads.mkdir()
    sent = shutil.copy(PICTURE, uploads / "sent.png")
    for not_sent in (uploads / "not_sent.png", elsewhere):
        shutil.copy(PICTURE, not_sent)
    store = Store(Session, uploads=uploads)
    store.last = store.create()
    for path in (sent, elsewhere):
        store.last.keep_file(path)
    assert sent.exists()
    store.last.used -= store.keep_hours * 3600 + 1
    goes(store)
    store.close()
    assert not sent.exists() and elsewhere.exists() and (uploads / "not_sent.png").exists()


def test_a_folder_that_cannot_be_deleted_does_not_keep_the_others(store):
    gone, old = store.create(), store.create()
    gone.folder.rmdir()
    for each in (gone, old):
        each.used -= store.keep_hours * 3600 + 1
    store.sweep()
    assert not old.folder.exists()


def test_a_browser_has_its_own_conversations_the_newest_first(store):
    first, other, second = (store.create(visitor) for visitor in ("mine", "another's", "mine"))
    store.create()  # a program's belong to no browser
    assert store.of("mine") == [second, first] and store.of("another's") == [other]
    assert store.of("") == []
    store.delete(first)
    assert store.of("mine") == [second]


def test_a_conversation_is_known_by_how_it_begins(conversation):
    assert title(conversation) == "New conversation"
    conversation.turns = [Turn([{"type": "image", "path": "a.png"}, {"type": "audio", "path": "b.wav"}])]
    assert title(conversation) == "(image and audio)"
    conversation.turns = [Turn([{"type": "text", "text": "What is this? " * 20}])]
    assert title(conversation).startswith("What is this?") and len(title(conversation)) <= 60


def test_use_prolongs_and_an_answer_under_way_protects(store):
    used, busy = store.create(), store.create()
    for each in (used, busy):
        each.used -= store.keep_hours * 3600 + 1
    store.get(used.id)
    busy.busy = True
    store.sweep()
    assert used.folder.exists() and busy.folder.exists()


def test_closing_deletes_everything(store):
    folder = store.create().folder
    store.close()
    assert not folder.exists() and not store.folder.exists()


def test_only_the_last_few_conversations_keep_their_cache(store):
    conversations = [store.create() for _ in range(MAX_SESSIONS + 2)]
    for number, each in enumerate(conversations):
        each.used = number
        store.session(each)
    assert [each.session is None for each in conversations] == [True] * 2 + [False] * MAX_SESSIONS
    kept = conversations[-1].session
    assert store.session(conversations[-1]) is kept


# ---------------------------------------------------------------------- turns and messages


def test_a_question_without_an_answer_is_not_asked_again(conversation):
    conversation.turns = [Turn([words("one")], [words("1")]), Turn([words("two")]), Turn([words("three")])]
    said = [(message["role"], message["content"][0]["text"]) for message in conversation.messages()]
    assert said == [("user", "one"), ("assistant", "1"), ("user", "three")]


def test_taking_back_deletes_what_was_made_and_keeps_what_was_sent(conversation):
    sent = conversation.keep_file(PICTURE)
    made = conversation.keep_media("image", Image.new("RGB", (8, 8)), seed=3, seconds=0.5)
    conversation.turns = [Turn([sent], [made])]
    conversation.truncate(0)
    assert conversation.turns == [] and Path(sent["path"]).exists() and not Path(made["path"]).exists()
    assert conversation.keep_file(sent["path"]) == sent, "what was taken back can be sent again"


def test_what_no_browser_shows_is_kept_as_something_that_it_does(conversation, tmp_path):
    Image.open(PICTURE).save(tmp_path / "scan.TIF", "TIFF")
    kept = Path(conversation.keep_file(tmp_path / "scan.TIF")["path"])
    assert kept.name == "1-scan.png" and Image.open(kept).format == "PNG" and Image.open(kept).size == (500, 340)
    shutil.copyfile(FIXTURES / "disc.mp4", tmp_path / "disc.mov")
    [frames, fps] = load_media("video", conversation.keep_file(tmp_path / "disc.mov")["path"])
    assert frames.shape == load_media("video", FIXTURES / "disc.mp4").frames.shape and fps > 0


# ---------------------------------------------------------------------- export and import


def test_an_export_read_again_is_the_same_conversation(store, conversation):
    made = conversation.keep_media("audio", Audio([0.0, 0.5] * 800, 16_000), seed=3, seconds=0.5)
    question = [conversation.keep_file(PICTURE), words("Play it – »now«.")]
    conversation.turns = [Turn(question, [words("Here: "), made, words("Louder?")]), Turn([words("Yes.")])]
    other = store.create()
    turns = other.unpack(conversation.export())
    bare = [[{k: v for k, v in part.items() if k != "path"} for part in each.question + each.answer] for each in turns]
    assert bare == [
        [{"type": "image"}, question[1], words("Here: "), {"type": "audio", "seed": 3, "seconds": 0.5}, words("Louder?")],
        [words("Yes.")],
    ]
    copied = Path(turns[0].question[0]["path"])
    assert copied.parent == other.folder and copied.read_bytes() == PICTURE.read_bytes()


def test_every_export_has_a_name_of_its_own(conversation):
    conversation.turns = [Turn([words("hello")])]
    first, second = conversation.export(), conversation.export()
    assert first != second and [*conversation.folder.glob("*.zip")] == [second], "an earlier one goes"


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../../escaped.png", "..\\escaped.png", "a/b/../c.png"])
def test_no_name_in_an_archive_leads_out_of_the_folder(store, conversation, tmp_path, name):
    messages = [{"role": "user", "content": [{"type": "image", "path": name}]}]
    before = set(store.folder.parent.iterdir())
    turns = conversation.unpack(archive(tmp_path / "evil.zip", messages, **{name: PICTURE.read_bytes()}))
    assert Path(turns[0].question[0]["path"]).parent == conversation.folder
    assert set(store.folder.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}], "its suffix does not say"),
        ([{"role": "user", "content": [{"type": "image", "path": "/etc/hosts.png"}]}], "not an exported conversation"),
        ([{"role": "user", "content": [{"type": "image", "url": "http://localhost/a.png"}]}], "not an exported"),
        ([{"role": "user", "content": [{"type": "image", "path": "fake.png"}]}], "^image.png|^1-image.png"),
        ([{"role": "assistant", "content": "hello"}], "expected user"),
        ([{"role": "system", "content": "obey"}], "expected user"),
        ([{"role": "user", "content": 5}], "not an exported conversation"),
        ([{"role": "user", "content": [{"type": "image", "path": "fake.png", "seed": "<b>"}]}], "not an exported"),
        ([{"role": "user", "content": [{"type": "image", "path": "fake.png", "seed": math.inf}]}], "not an exported"),
        ([{"role": "user", "content": [{"type": "image", "path": "fake.png", "seconds": math.nan}]}], "not an exported"),
        ([{"role": "user", "content": []}], "message 0 is empty"),
        (7, "not an exported conversation"),
    ],
)
def test_a_strange_archive_is_refused(conversation, tmp_path, messages, told):
    with pytest.raises(UserInputError, match=told):
        conversation.unpack(archive(tmp_path / "strange.zip", messages, **{"fake.png": b"no picture"}))


def test_what_is_no_archive_is_refused(conversation, tmp_path):
    (tmp_path / "notes.zip").write_text("hello")
    with pytest.raises(UserInputError, match="notes.zip: not an exported conversation"):
        conversation.unpack(tmp_path / "notes.zip")


def test_an_archive_that_swells_is_refused_before_it_is_unpacked(conversation, tmp_path, monkeypatch):
    monkeypatch.setattr("nextgpt.demo.conversations.MAX_IMPORT_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("messages.json", b" " * 2_000_000)
    with pytest.raises(UserInputError, match="larger than 1 MB"):
        conversation.unpack(tmp_path / "bomb.zip")


def test_what_many_parts_unpack_of_one_file_is_counted_each_time(conversation, tmp_path, monkeypatch):
    monkeypatch.setattr("nextgpt.demo.conversations.MAX_IMPORT_BYTES", 100_000)
    content = [{"type": "image", "path": "same.png"}] * 40
    data = PICTURE.read_bytes()
    assert len(data) < 100_000 < 40 * len(data)
    with pytest.raises(UserInputError, match="many.zip: unpacked, it is larger"):
        conversation.unpack(archive(tmp_path / "many.zip", [{"role": "user", "content": content}], **{"same.png": data}))
    assert not list(conversation.folder.iterdir())


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "packed in an unknown way"])
def test_a_damaged_archive_is_refused(conversation, tmp_path, packing, damage):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", packing) as packed:
        packed.writestr("messages.json", json.dumps([{"role": "user", "content": "hello"}] * 100))
    data = bytearray(path.read_bytes())
    start, directory = 30 + len("messages.json"), data.index(b"PK\x01\x02")
    if damage == "cut":  # out of the middle, so that the directory at the end still stands
        del data[start + 4 : directory - 4]
    elif damage == "overwritten":
        data[start + 9 : directory - 4] = b"\x55" * (directory - 4 - start - 9)
    else:
        data[8] = data[directory + 10] = 99
    path.write_bytes(data)
    with pytest.raises(UserInputError, match="^damaged.zip: not an exported conversation"):
        conversation.unpack(path)


# ---------------------------------------------------------------------- what is shown


def test_an_answer_is_shown_in_its_order(conversation):
    made = conversation.keep_media("image", Image.new("RGB", (8, 8)), seed=3, seconds=0.5)
    conversation.turns = [Turn([words("Draw.")], [words("Here: "), made, words("Done.")])]
    pieces = shown(conversation)
    assert [(piece.role, piece.text) for piece in pieces] == [
        *(("user", "Draw."), ("assistant", "Here: "), ("assistant", ""), ("assistant", "Done."))
    ]
    assert "seed 3 · 0.5 s" in pieces[2].html and "image-seed-3.png" in pieces[2].html


def test_a_medium_under_way_shows_its_steps_and_preview(conversation):
    conversation.turns, conversation.busy = [Turn([words("Draw.")], pending=Pending("image", 2, 5, "data:,x"))], True
    [_, progress] = shown(conversation)
    assert "step 2 of 5" in progress.html and '<progress value="2" max="5"' in progress.html
    assert '<img src="data:,x"' in progress.html


@pytest.mark.parametrize(("place", "told"), [(0, "Reading"), (1, "one answer comes before"), (3, "3 answers come before")])
def test_who_waits_sees_the_place(conversation, place, told):
    conversation.turns, conversation.busy = [Turn([words("Draw.")])], True
    assert told in shown(conversation, place)[-1].html


def test_names_and_errors_cannot_write_html(conversation, tmp_path):
    evil = tmp_path / '"><script>.png'
    evil.write_bytes(PICTURE.read_bytes())
    conversation.turns = [Turn([conversation.keep_file(evil)], note="<script>alert(1)</script>")]
    assert not any("<script" in piece.html for piece in shown(conversation))


def test_steps_are_named_and_not_announced_one_by_one(conversation):
    conversation.turns, conversation.busy = [Turn([words("Draw.")], pending=Pending("image", 2, 5))], True
    progress = shown(conversation)[1].html
    assert 'aria-label="Making the image"' in progress
    assert 'aria-live="off"' in progress and "role=" not in progress


def test_what_happened_follows_the_answer_through_the_model():
    made = {"type": "image", "path": "x.png", "seed": 4, "seconds": 1.25}
    times = Timings(
        prompt_tokens=30, cached_tokens=20, new_tokens=10, prepare=0.5, first_token=0.75, generate=0.5, total=2.5
    )
    turn = Turn([{"type": "audio", "path": "a.wav"}], [words("Here."), made], timings=times)
    turn.signals = [("image", ["[IMG0]", "[IMG1]"])]
    table = happened([turn, Turn([words("next")])])
    for expected in ("audio: one embedding", "30 tokens, 20 of them", "[IMG0] [IMG1]", "image, seed 4", "1.25 s", "2.50 s"):
        assert expected in table, expected
    stages = ["encoder → projection", "language model reads", "language model writes", "signal tokens", "→ decoder"]
    assert sorted(stages, key=table.index) == stages


def test_what_happened_tells_of_a_medium_that_was_stopped():
    made = {"type": "audio", "path": "x.wav", "seed": 4, "seconds": 1.25}
    turn = Turn([words("Play and draw.")], [made], timings=Timings(), signals=[("audio", ["[AUD0]"]), ("image", ["[IMG0]"])])
    table = happened([turn])
    assert "audio, seed 4" in table and "[IMG0]" in table and "image, stopped before it was finished" in table
