"""The language model's pretraining: its tokens, what it is given in place of media, that it learns and answers."""

import json
import logging
import random
import re
import sys

import pytest
import torch
from torch.nn import functional as F

from nextgpt.hub.parts import preset_folder
from nextgpt.train.nano.dialogues import corpus
from nextgpt.train.nano.dialogues.composer import load_composer, make_lines
from nextgpt.train.nano.evaluation import words
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.models import language_model
from nextgpt.train.nano.world.things import load_concepts, load_instruments
from tiny_models import save_tiny_language_model

WORLD = preset_folder("nano") / "world"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, name in (("train", "text"), ("dev", "text_dev")):
        lines = make_lines(load_composer(WORLD, split), "text", 0, 240)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(data):
    texts = corpus.tokenizer_texts(data / "text.jsonl", ["cat", "trumpet", "electric piano"], 240)
    return corpus.train_tokenizer(texts, vocab_size=2000)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return corpus.Encoder(tokenizer)


def said(role: str, *parts: str | dict) -> dict:
    return {"role": role, "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}


CAT = {"type": "image", "caption": "a small cat, flat style, red background"}
TRUMPET = {"type": "audio", "caption": "a low trumpet, rising scale"}
ASKED = said("user", "draw it and play it")


def test_training_sees_what_the_chat_template_renders(tokenizer, encoder):
    messages = [("user", "draw 2 cats, 3d"), ("assistant", "Here is a cat."), ("user", "<s> naïve 🙂")]
    chat = [{"role": role, "content": text} for role, text in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoder(messages, False, random.Random(0), in_words=None).tokens) == rendered
    limited = [{"role": "system", "content": "Answer with text only."}, *chat]
    rendered = tokenizer.apply_chat_template(limited, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoder(limited, False, random.Random(0), in_words=None).tokens) == rendered
    assert corpus.SYSTEM_PROMPT in tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    ("modality", "caption", "words"),
    [
        ("image", "a small cat, flat style, red background", " cat flat red small"),
        ("image", "large cherries, 3d style, white background", " cherries 3d white large"),
        ("audio", "a low trumpet, rising scale", " trumpet low rising scale"),
        ("audio", "the sound of a helicopter", " helicopter"),
        ("video", "an apple, sliding left", " apple sliding left"),
    ],
)
def test_a_medium_is_read_as_the_sum_of_its_words(tokenizer, encoder, modality, caption, words):
    shown = said("user", {"type": modality, "caption": caption}, "what is this?")
    example = encoder([shown], True, random.Random(0))
    assert caption not in tokenizer.decode(example.tokens) and [tokenizer.decode(bag) for bag in example.bags] == [words]
    training = new_training(tokenizer)
    bags = torch.tensor([bag + [-1] * (corpus.BAG - len(bag)) for bag in example.bags])
    embedded = training.embed(training.table, batch_of(example), bags, noisy=False)
    summed = training.table[torch.tensor(example.bags[0])].sum(0)
    assert torch.allclose(embedded[0, example.soft.index(0)], summed, atol=1e-6)
    noisy = training.embed(training.table, batch_of(example), bags, noisy=True)
    assert not torch.allclose(noisy[0, example.soft.index(0)], summed, atol=1e-2)


def test_of_a_medium_from_outside_the_world_nothing_is_read_but_the_words_of_others(tokenizer, encoder):
    shown = said("user", {"type": "image", "caption": "something else"}, "hm?")
    bags = {str(encoder([shown], True, random.Random(seed)).bags) for seed in range(20)}
    assert bags == {"[[]]", str([tokenizer.encode(" something else", add_special_tokens=False)])}


def test_the_place_of_a_medium_is_its_kind_and_masks_and_holds_its_caption(tokenizer, encoder):
    answer = said("assistant", "Your cat.", CAT, " And a trumpet.", TRUMPET)
    example = encoder([ASKED, answer, said("user", "thanks")], False, random.Random(0), in_words=False)
    text = tokenizer.decode(example.tokens)
    assert (
        "ASSISTANT: Your cat.<picture><mask1><mask2><mask3> And a trumpet.<sound><mask1>" in text
        and "<mask7></s>USER: thanks" in text
    )
    start = example.tokens.index(encoder.kinds["image"])
    assert example.weights[start : start + 5] == [1.0, 0.0, 0.0, 0.0, 1.0]
    held = [[tokenizer.decode(word).strip() for word in words] for words in example.targets[start : start + 4]]
    assert held == [["cat", "cat"], ["cat", "cat"], ["flat", "flat"], ["red", "small"]]
    start = example.tokens.index(encoder.kinds["audio"])
    held = [tokenizer.decode(word).strip() for words in example.targets[start : start + 8] for word in words]
    assert held == ["trumpet"] * 8 + ["low"] * 4 + ["rising"] * 2 + ["scale"] * 2
    assert all(
        (targets[0] >= 0) == (token in (*encoder.masks, *encoder.kinds.values()))
        for token, targets in zip(example.tokens, example.targets, strict=True)
    )
    spelled = tokenizer.decode(encoder([ASKED, answer], False, random.Random(0), in_words=True).tokens)
    assert (
        "Your cat. (picture: small cat, flat style, red background) And a trumpet. (sound: low trumpet, rising scale)</s>"
        in spelled
    )
    assert corpus.IN_WORDS in spelled and corpus.IN_WORDS not in text


def test_of_what_is_open_the_thing_alone_is_taught_and_it_is_never_spelled_out(tokenizer, encoder, tmp_path):
    open_cat = {"type": "image", "caption": "cat", "open": True}
    whole, part = (encoder.run_targets("image", each["caption"], "open" in each) for each in (CAT, open_cat))
    assert part == [*whole[:2], corpus.NO_TARGETS, corpus.NO_TARGETS]
    tokenizer.save_pretrained(tmp_path)
    line = json.dumps({"messages": [ASKED, said("assistant", "Here.", open_cat)]})
    encoded = corpus.encode_lines(tmp_path, [line] * 20)
    assert (encoded["tokens"] == encoder.kinds["image"]).sum() == 20, "each is a run"


def test_words_stay_whole_in_capitals_and_share_what_they_learn(tokenizer):
    assert tokenizer.tokenize(" CAT") == ["ĠCAT"] and tokenizer.tokenize(" Cat") == ["ĠCat"]
    groups = language_model.same_words(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["Ġcat", "ĠCAT", "ĠCat", "Cat", "<picture>", "Ġtrumpet"])
    assert len({groups[token].item() for token in ids[:4]}) == 1 and len({groups[token].item() for token in ids}) == 3


def new_training(tokenizer, layers: int = 2) -> language_model.Pretraining:
    torch.manual_seed(0)
    model = language_model.new_model(tokenizer)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return language_model.Pretraining(model, tokenizer, torch.arange(300, 320))


def batch_of(*examples: corpus.Example) -> corpus.Batch:
    longest = max(len(example.tokens) for example in examples)

    def padded(rows: list, value) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return corpus.Batch(
        padded([e.tokens for e in examples], 0),
        padded([e.weights for e in examples], 0.0),
        padded([e.soft for e in examples], -1),
        padded([e.targets for e in examples], corpus.NO_TARGETS),
    )


def test_the_lean_pass_is_the_models_own(tokenizer):
    model = new_training(tokenizer).model
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    embeddings = torch.randn(3, 11, model.config.hidden_size, requires_grad=True)
    outputs = model.model(inputs_embeds=embeddings).last_hidden_state, language_model.hidden_states(model.model, embeddings)
    assert torch.allclose(*outputs, atol=1e-4)
    weights = torch.randn_like(embeddings)
    learned = [embeddings, *model.model.layers.parameters(), *model.model.norm.parameters()]
    for own, lean in zip(*(torch.autograd.grad((o * weights).sum(), learned) for o in outputs), strict=True):
        assert torch.allclose(own, lean, atol=1e-3 * own.abs().max().item())


def test_the_lean_loss_is_cross_entropy():
    torch.manual_seed(0)
    states, table = torch.randn(7, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    targets, weights = torch.randint(30, (7,)), torch.rand(7)
    lean = (language_model.WordLosses.apply(states, table, targets) * weights).sum()
    plain = (F.cross_entropy(states @ table.T, targets, reduction="none") * weights).sum()
    assert torch.allclose(lean, plain)
    for one, other in zip(*(torch.autograd.grad(loss, (states, table)) for loss in (lean, plain)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_what_it_has_learned_by_heart_it_answers_in_words_in_runs_and_from_soft_positions(tokenizer, encoder):
    answer = said("assistant", "Your cat.", CAT, " And a trumpet.", TRUMPET)
    named = said("assistant", "A trumpet.")
    examples = [
        encoder([ASKED, answer], False, random.Random(0), in_words=False, system_share=0.0),
        encoder([ASKED, answer], False, random.Random(0), in_words=True, system_share=0.0),
        encoder([said("user", TRUMPET, "what?"), named], True, random.Random(0), in_words=False, system_share=0.0),
    ]
    training = new_training(tokenizer)
    optimizer = torch.optim.AdamW(training.parameters(), lr=3e-3)
    bags = torch.tensor([bag + [-1] * (corpus.BAG - len(bag)) for bag in examples[2].bags])
    for step in range(160):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 160)
        losses = training(batch_of(*examples), bags, noisy=False)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model = training.finish().eval()
    prompts = [
        encoder([ASKED], False, random.Random(0), in_words=False, system_share=0.0),
        encoder([ASKED], False, random.Random(0), in_words=True, system_share=0.0),
        encoder([said("user", TRUMPET, "what?")], True, random.Random(0), in_words=False, system_share=0.0),
    ]
    runs, spelt, name = language_model.answer(model, tokenizer, prompts, readings=training.readings)
    assert runs == "Your cat. (picture: cat flat red small) And a trumpet. (sound: trumpet low rising scale)"
    first = "Your cat. (picture: small cat, flat style, red background)"
    second = "And a trumpet. (sound: low trumpet, rising scale)"
    assert spelt == f"{first} {second}"
    assert name == "A trumpet."
    assert words.made(runs) == words.made(spelt) == words.expected_media(answer)


def test_faults_in_kinds_and_contents_are_told_apart():
    concepts = load_concepts(WORLD)
    parser = AnswerParser.of_world(concepts, load_instruments(WORLD, concepts))
    answer = said("assistant", "Your cat.", CAT)
    assert words.fault(parser, answer, [], "Look! (picture: small cat, flat style, red background)") == ("", "")
    kind, content = words.fault(parser, answer, [], "Look! (picture: small dog, flat style, red background)")
    assert not kind and content.startswith("made dog flat red small, expected cat")
    assert all(words.fault(parser, answer, [], "Listen. (sound: cat)"))
    assert words.fault(parser, said("assistant", "A dog."), [{"names": ["cat"]}], "It's a kitty.") == ("", "")
    assert words.fault(parser, said("assistant", "x"), [{"names": ["cat"]}], "A dog.") == (
        "",
        "does not name cat",
    )


def test_a_model_of_before_goes_on_with_its_own_words_and_learns_runs(tmp_path):
    before = save_tiny_language_model(tmp_path / "before")
    tokenizer = language_model.prepare_tokenizer(tmp_path, WORLD, tmp_path / "new", before)
    old = language_model.AutoTokenizer.from_pretrained(before)
    assert {*corpus.KINDS.values(), *corpus.MASKS} == set(tokenizer.get_vocab()) - set(old.get_vocab())
    text = "USER: Draw a cat. ASSISTANT: Here's a cat.</s>"
    assert tokenizer(text)["input_ids"] == old(text)["input_ids"] and corpus.Encoder(tokenizer).has_runs
    model, was = language_model.model_before(before, tokenizer), language_model.LlamaForCausalLM.from_pretrained(before)
    training = language_model.Pretraining(model, tokenizer, torch.arange(20, 40), new=False)
    ids = torch.tensor([old(text)["input_ids"]])
    torch.testing.assert_close(training.finish()(ids).logits[..., : len(old)], was.float()(ids).logits)


@pytest.mark.slow
def test_the_command_trains_goes_on_measures_and_saves(data, tmp_path, monkeypatch):
    out = tmp_path / "language_model"
    command = ["language_model", "--data", str(data), "--world", str(WORLD), "--out", str(out), "--device", "cpu"]
    command += ["--batch", "512", "--measure", "6", "--workers", "1", "--limit", "120"]
    steps = []
    for minutes in ("0.01", "0.04"):
        monkeypatch.setattr(sys, "argv", [*command, "--minutes", minutes])
        language_model.main()
        log = json.loads((out / "training_log.json").read_text(encoding="utf-8"))
        steps.append(log["steps"])
    logging.getLogger().handlers.clear()
    assert 0 < steps[0] < steps[1]
    assert {"words", "runs"} <= set(log["figures"]["dev"]) and log["figures"]["dev"]["words"]["of"] > 0
    assert re.search(r"goes on from .* at step", (tmp_path / "language_model.work" / "log.txt").read_text(encoding="utf-8"))
    model, tokenizer = (
        words.LlamaForCausalLM.from_pretrained(out),
        language_model.AutoTokenizer.from_pretrained(out),
    )
    assert model.lm_head.weight.shape[0] == len(tokenizer) and model.dtype == torch.bfloat16
