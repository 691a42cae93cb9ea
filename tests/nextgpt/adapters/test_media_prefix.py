"""Media as prefixes of the LLM's upper layers: all that holds for media in the sequence, and what only these can."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from media_values import noise_picture
from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration, NextGPTPipeline, NextGPTProcessor
from nextgpt.adapters.media_prefix import add_prefixes
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.report.doctor import examine
from nextgpt.report.info import describe_model
from nextgpt.report.params import count_parameters
from nextgpt.train.stages import run_stage
from tiny_models import FAMILIES, SIZES, answered_together_as_alone, new_tokens, tiny_config
from tiny_training import build_world, config_for, log_of, make_responsive

PREFIX = {"kind": "prefix", "prefix_length": 3, "num_layers": 2}
ADAPTERS = {
    "no adapter": False,
    "LoRA": {"peft_type": "LORA", "r": 4},
    "prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5},
    "prefix tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5},
    "LLaMA-Adapter": {"peft_type": "ADAPTION_PROMPT", "adapter_len": 5},
    "LLaMA-Adapter V2": {"peft_type": "LLAMA_ADAPTER_V2", "r": 4},
}
CASES = {("llama", name): {"adapter": adapter} for name, adapter in ADAPTERS.items()}
CASES |= {("mistral", "within its window"): {"adapter": False}, ("narrow", "beyond its window"): {"adapter": False}}
CASES[("short", "with dynamic positions")] = {"adapter": False, "rope_parameters": {"rope_type": "dynamic", "factor": 9.0}}
RED, BLUE = (noise_picture(sigma) for sigma in (5, 200))
Made = tuple[NextGPTForConditionalGeneration, NextGPTProcessor]


def user(*parts: Image.Image | str) -> dict:
    kinds = [{"type": "text", "text": each} if isinstance(each, str) else {"type": "image", "image": each} for each in parts]
    return {"role": "user", "content": kinds}


PROMPTS = [[user(RED, "draw a banana")], [user("What do you see? Play a trumpet, please.")], [user(BLUE, "and", RED, "?")]]
TEACH = [[*prompt, {"role": "assistant", "content": "A banana, I see."}] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Gives, by the family of the LLM, a configuration whose frozen parts are there."""
    made: dict[str, NextGPTConfig] = {}

    def of(family: str) -> NextGPTConfig:
        if family not in made:
            folder = tmp_path_factory.mktemp("parts")
            made[family] = tiny_config(folder, family, decoders={})
            make_responsive(folder / "language_model" / "model.safetensors")
        return made[family]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "narrow", lambda vocab: MistralConfig(vocab_size=vocab, **SIZES, sliding_window=24))
        short = SIZES | {"max_position_embeddings": 60}  # less than any prompt here
        patch.setitem(FAMILIES, "short", lambda vocab: LlamaConfig(vocab_size=vocab, **short))
        yield of


@pytest.fixture(scope="module")
def build(parts):
    def make(family: str = "llama", *, trained: bool = True, bridge: dict | None = PREFIX, **changes) -> Made:
        """A model whose gate and adapter have learned something, or have not."""
        named = {name: getattr(parts(family), name) for name in ("language_model", "encoder")}
        torch.manual_seed(0)
        config = NextGPTConfig(**named, **({"adapter": False, "input_bridge": bridge} | changes))
        model = NextGPTForConditionalGeneration.from_parts(config)
        if trained:
            with torch.no_grad():
                model.input_projection.gate.normal_(std=2)
                for parameter in model.group_parameters("adapter").values():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model, NextGPTProcessor.from_config(model.config)

    return make


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def made(request, build) -> Made:
    return build(request.param[0], **CASES[request.param])


def generated(made: Made, prompts: list, **options) -> list[list[int]]:
    return new_tokens(*made, prompts, max_new_tokens=8, **options)


@torch.no_grad()
def logits(made: Made, *prompts: list) -> torch.Tensor:
    return made[0](**made[1](list(prompts))).logits


# ---------------------------------------------------------------------- what holds for every bridge


def test_a_cache_a_batch_and_beams_change_no_answer(made):
    answers = generated(made, PROMPTS)
    assert generated(made, PROMPTS, use_cache=False) == answers
    assert [generated(made, [prompt])[0] for prompt in PROMPTS] == answers
    beams = generated(made, PROMPTS[:2], num_beams=3)
    assert beams == [generated(made, [prompt], num_beams=3, use_cache=False)[0] for prompt in PROMPTS[:2]]
    last = torch.cat([logits(made, prompt)[:, -1] for prompt in PROMPTS])
    torch.testing.assert_close(logits(made, *PROMPTS)[:, -1], last, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(logits(made, [user(BLUE, "draw a banana")]), logits(made, PROMPTS[0]), atol=1e-2)


def test_conversations_with_kept_caches_answer_together_as_alone_and_without(made):
    pipe, config = NextGPTPipeline(*made, {}), made[0].config
    loses_its_cache = config.rope_parameters or config.text_config.model_type == "mistral"
    sessions, talks = [pipe.new_session() for _ in PROMPTS], PROMPTS
    for turn in range(2):
        replies = answered_together_as_alone(pipe, talks, sessions)
        if turn and not loses_its_cache:
            assert all(reply.timings.cached_tokens > 0 for reply in replies)
        talks = [[*talk, each.message, user(BLUE, "and this?")] for talk, each in zip(talks, replies, strict=True)]
    options = {"max_new_tokens": 8, "output_modalities": ("text",)}
    other = [user(BLUE, "draw a banana")]  # another picture at the same place: the cache is of no use from there on
    assert pipe(other, session=sessions[0], **options).token_ids == pipe(other, **options).token_ids
    pipe.close()


def test_columns_that_are_shared_and_checkpointed_activations_give_the_gradients_of_single_rows(build):
    model, processor = build(adapter=ADAPTERS["LoRA"])
    options = {"add_generation_prompt": False, "return_labels": True, "padding_side": "right"}
    batch, singles = processor(TEACH, **options), [processor([each], **options) for each in TEACH]

    def gradients(groups: list[str], *given, plain: bool = False) -> dict[str, torch.Tensor]:
        model.train_only(groups)
        model.zero_grad()
        learned = [int((each["labels"][:, 1:] != -100).sum()) for each in given]
        for each, count in zip(given, learned, strict=True):
            position_ids = torch.arange(each["input_ids"].shape[1])[None] if plain else None  # given: one plain pass
            (model(**each, position_ids=position_ids).loss * count / sum(learned)).backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}

    for groups in (["input_projection"], ["input_projection", "adapter"]):
        expected = gradients(groups, *singles, plain=True)
        assert all(expected[f"input_projection.{name}"].any() for name in ("weight", "prefix", "gate", "placeholder"))
        torch.testing.assert_close(gradients(groups, batch), expected, atol=1e-5, rtol=1e-3)
    model.train()
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(groups, batch), expected, atol=1e-5, rtol=1e-3)


def test_it_is_saved_loaded_counted_and_checked(build, tmp_path):
    made = build(adapter=ADAPTERS["LoRA"])
    for each in made:
        each.save_pretrained(tmp_path)
    loaded = NextGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits((loaded, made[1]), *PROMPTS), logits(made, *PROMPTS))
    tensors = load_file(tmp_path / "model.safetensors")
    own = {name.removeprefix("input_projection."): each for name, each in tensors.items() if "input_projection" in name}
    assert {name: tuple(each.shape) for name, each in own.items()} == {
        "weight": (32, 16),
        "bias": (32,),
        "placeholder": (32,),
        "prefix": (2, 3, 32),
        "gate": (2, 4),
    }
    [part] = [part for part in count_parameters(tmp_path).parts if part.name == "input projection"]
    assert part.parameters == sum(each.numel() for each in own.values())
    assert part.description == "Linear 16 → 32 and prefixes of 3 in the top 2 layers, shared by image, audio, video"
    assert dict(describe_model(tmp_path))["input bridge"] == "prefixes of 3 in the top 2 layers"
    assert all(finding.works is not False for finding in examine(str(tmp_path)) if "tensors" in finding.what)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"kind": "prefix"', '"kind": "linear"'))
    with pytest.raises(ModelLoadError, match="config.json: input_bridge: unknown key 'num_layers' of linear"):
        NextGPTForConditionalGeneration.from_pretrained(tmp_path)
    values = json.loads(file.read_text())
    del values["input_bridge"]
    file.write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match="input_projection.* is not part of this model"):
        NextGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_a_model_with_the_linear_bridge_is_written_as_before_there_was_another(build, tmp_path):
    model, _ = build(trained=False, bridge=None)
    model.save_pretrained(tmp_path)
    assert "input_bridge" not in json.loads((tmp_path / "config.json").read_text())
    loaded = NextGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.input_bridge == {"kind": "linear"}
    assert set(dict(loaded.input_projection.named_parameters())) == {"weight", "bias"}


# ---------------------------------------------------------------------- what this one is


def test_before_the_first_step_a_picture_says_no_more_than_that_it_was_shown(build):
    made = build(trained=False, adapter=ADAPTERS["LLaMA-Adapter V2"])
    model, processor = made
    assert torch.equal(logits(made, [user(RED, "what?")]), logits(made, [user(BLUE, "what?")]))
    inputs = processor([user(RED, "what?")])
    ids = inputs["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(model.config.location("language_model")).eval()
    with torch.no_grad():
        embeddings = plain.get_input_embeddings()(ids.clamp(max=plain.config.vocab_size - 1))
        embeddings[model.get_placeholder_mask(ids)] = model.input_projection.placeholder
        expected = plain(inputs_embeds=embeddings).logits
    assert torch.equal(model.input_projection.placeholder, plain.get_input_embeddings().weight.mean(0))
    torch.testing.assert_close(logits(made, [user(RED, "what?")])[..., : plain.config.vocab_size], expected)


def test_a_picture_of_the_second_turn_leaves_the_first_ones_cache_as_it_was(build):
    model, processor = build()
    first = [user(RED, "what is it?"), {"role": "assistant", "content": "A cat."}]
    length = processor(first, add_generation_prompt=False)["input_ids"].shape[1] - 1
    caches = []
    for more in (user("and now?"), user(BLUE, "and now?")):
        with torch.no_grad():
            cache = model(**processor([*first, more]), use_cache=True).past_key_values
        caches.append([(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers])
    torch.testing.assert_close(*caches, atol=1e-5, rtol=1e-5)


def test_a_token_sees_the_pictures_before_it_and_its_own(build):
    made = build()
    model, processor = made
    prompts = [[user("see", *pictures, "?")] for pictures in ((RED, "and", RED), (RED, "and", BLUE))]
    second = int(model.get_placeholder_mask(processor(prompts[0])["input_ids"])[0].nonzero()[1])
    one, other = (logits(made, prompt)[0] for prompt in prompts)
    torch.testing.assert_close(one[:second], other[:second], atol=1e-5, rtol=1e-5)
    assert all(not torch.allclose(*pair, atol=1e-3) for pair in zip(one[second:], other[second:], strict=True))


def test_swapping_the_first_and_the_second_picture_swaps_the_answers(build, tmp_path):
    pictures = {colour: Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")}
    pairs = list(itertools.permutations(pictures, 2))
    questions = [[user(pictures[a], pictures[b], which)] for a, b in pairs for which in ("first", "second")]
    expected = [colour for pair in pairs for colour in pair]
    config = tiny_config(tmp_path, decoders={}, adapter=False, input_bridge=PREFIX | {"num_layers": 1})
    torch.manual_seed(0)
    model, processor = NextGPTForConditionalGeneration.from_parts(config), NextGPTProcessor.from_config(config)
    talks = [[*talk, {"role": "assistant", "content": each}] for talk, each in zip(questions, expected, strict=True)]
    batch = processor(talks, add_generation_prompt=False, return_labels=True, padding_side="right")
    batch["media_features"] = model.encode_media(batch["input_ids"], image_values=batch.pop("image_values"))
    model.train_only(["input_projection"])
    model.language_model.requires_grad_(True)  # a random one has nothing to say of what it sees
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    answers = new_tokens(model.eval(), processor, questions, max_new_tokens=5)
    assert [processor.tokenizer.decode(each, skip_special_tokens=True).strip() for each in answers] == expected


def test_gate_and_prefix_are_trained_by_the_first_stage_and_stand_in_its_checkpoint(tmp_path):
    world = build_world(tmp_path / "world")
    changes = {"learning_rate": 3e-2, "input_bridge": PREFIX}
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "out", **changes))
    log = log_of(folder)
    assert log[-1]["loss"] < 0.97 * log[0]["loss"]
    bridge = NextGPTForConditionalGeneration.from_pretrained(folder).input_projection
    assert (bridge.gate.abs() > 1e-3).all()
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["input_projection.gate"], bridge.gate)
    changes = {"model": str(folder), "max_steps": 1}
    second = run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **changes))
    assert NextGPTConfig.from_pretrained(second).input_bridge == PREFIX
    with pytest.raises(UserInputError, match="input_bridge is .*'linear'.*has trained weights of .*would be lost"):
        run_stage("instruct", config_for(world, "instruct", tmp_path / "3", **changes, input_bridge={"kind": "linear"}))


def test_a_copy_of_a_model_and_a_model_of_half_precision_work(build):
    made = build()
    assert torch.equal(logits((copy.deepcopy(made[0]), made[1]), *PROMPTS), logits(made, *PROMPTS))
    half = copy.deepcopy(made[0]).to(torch.bfloat16)
    assert half(**made[1](PROMPTS)).logits.dtype == torch.bfloat16
    assert all(len(generated((half, made[1]), [prompt])[0]) for prompt in PROMPTS)
    attentions = [each for each in made[0].modules() if hasattr(each, "o_proj")]
    assert [list(each._forward_hooks.values()).count(add_prefixes) for each in attentions] == [1, 1]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("prefix", "input_bridge is 'prefix', expected"),
        ({"kind": "q-former"}, "input_bridge is {'kind': 'q-former'}, expected"),
        ({"prefix_length": 3}, "expected {kind: linear} or {kind: prefix"),
        ({"kind": "prefix", "prefix_lenght": 3}, "unknown key 'prefix_lenght' of prefix; did you mean 'prefix_length'"),
        ({"kind": "prefix", "prefix_length": 0}, "prefix_length is 0, expected a whole number of at least 1"),
        ({"kind": "prefix", "prefix_length": None}, "prefix_length is None, expected a whole number"),
        ({"kind": "prefix", "num_layers": True}, "num_layers is True, expected a whole number"),
        ({"kind": "linear", "num_layers": 2}, "unknown key 'num_layers' of linear; it has none"),
    ],
)
def test_settings_that_do_not_work_are_refused_in_one_line(given, told):
    with pytest.raises(UserInputError, match=told.replace("{", r"\{")) as caught:
        NextGPTConfig(input_bridge=given)
    assert "\n" not in str(caught.value)


def test_language_models_and_caches_that_cannot_do_it_are_refused_in_one_line(build):
    for family, changes, told in (
        ("gemma", {}, "input_bridge: the LLM is 'gemma', and prefix works with llama, mistral alone: take kind: linear"),
        ("llama", {"bridge": PREFIX | {"num_layers": 3}}, "num_layers is 3, and the LLM has 2: give as many at most"),
    ):
        with pytest.raises(UserInputError, match=told) as caught:
            build(family, **changes)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserInputError, match="needs a dynamic cache: leave cache_implementation='static' out"):
        generated(build(), PROMPTS[:1], cache_implementation="static")
