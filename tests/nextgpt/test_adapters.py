"""Every type of adapter that works here: cache, batches, sessions, streams, training, saving, loading by peft alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import PeftType
from PIL import ImageChops
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from media_values import noise_picture
from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration, NextGPTPipeline, NextGPTProcessor
from nextgpt.adapters import OWN, TESTED, folder_name, title
from nextgpt.decoders import load_decoder
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.events import TextDelta
from nextgpt.report.doctor import examine
from nextgpt.report.info import describe_model
from nextgpt.report.params import count_parameters
from tiny_models import new_tokens, tiny_config
from tiny_training import make_responsive

LAYERS = {"target_modules": ["q_proj", "v_proj", "up_proj"]}
SETTINGS = {  # what of a type's settings the tiny LLM cannot leave at peft's defaults
    "LORA": {"r": 4, "lora_alpha": 8},
    "IA3": {},
    "LN_TUNING": {},
    "PROMPT_TUNING": {"num_virtual_tokens": 5},
    "PREFIX_TUNING": {"num_virtual_tokens": 5},
    "ADAPTION_PROMPT": {"adapter_len": 5, "adapter_layers": 2},
    "LLAMA_ADAPTER_V2": {"r": 4},
    "MISS": LAYERS | {"r": 4},
    "OFT": LAYERS | {"oft_block_size": 8},
}
CASES = {name: {"peft_type": name} | SETTINGS.get(name, LAYERS) for name in TESTED}
CASES["DoRA"] = CASES["LORA"] | {"use_dora": True}
RED, BLUE = (noise_picture(sigma) for sigma in (5, 200))
ASK = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "draw a banana"}]}]
TALK = [{"role": "user", "content": "What do you see? Play a trumpet, then draw a cat and a dog on blue, please."}]
PROMPTS = [ASK, TALK, [{"role": "user", "content": "hi"}]]
TEACH = [[*ASK, {"role": "assistant", "content": "A banana."}], [*TALK, {"role": "assistant", "content": "No, I do not."}]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> NextGPTConfig:
    """A configuration whose frozen parts are there, with an LLM that pays attention to what it is shown."""
    folder = tmp_path_factory.mktemp("parts")
    config = tiny_config(folder)
    make_responsive(folder / "language_model" / "model.safetensors")
    return config


def build(parts: NextGPTConfig, adapter: dict) -> tuple[NextGPTForConditionalGeneration, NextGPTProcessor]:
    """A model whose adapter has learned something, and which calls for pictures now and then."""
    fields = {name: getattr(parts, name) for name in ("language_model", "encoder", "decoders", "output_projection")}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is none that a user could mend
        model = NextGPTForConditionalGeneration.from_parts(NextGPTConfig(**fields, adapter=adapter))
    with torch.no_grad():
        model.input_projection.weight.mul_(30)
        model.signal_rows.output.normal_(std=0.1)
        for parameter in model.adapter.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, NextGPTProcessor.from_config(model.config)


@pytest.fixture(scope="module", params=CASES)
def adapted(request, parts) -> tuple[NextGPTForConditionalGeneration, NextGPTProcessor]:
    return build(parts, CASES[request.param])


@pytest.fixture(scope="module")
def saved(adapted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for each in adapted:
        each.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["PROMPT_TUNING", "PREFIX_TUNING"])
def virtual(request, parts) -> tuple[NextGPTForConditionalGeneration, NextGPTProcessor]:
    return build(parts, CASES[request.param])


def generated(adapted, prompts: list, **options) -> list[list[int]]:
    """New tokens of every row, up to the end of its answer."""
    return new_tokens(*adapted, prompts, max_new_tokens=8, **options)


@torch.no_grad()
def logits(adapted, prompts: list) -> Tensor:
    return adapted[0](**adapted[1](prompts)).logits


# ---------------------------------------------------------------------- what every type passes


def test_it_changes_what_is_said_and_is_trained_alone(adapted):
    model, processor = adapted
    batch = processor(TEACH, add_generation_prompt=False, return_labels=True, padding_side="right")
    plain = logits((model, processor), PROMPTS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train_only(["adapter"])
    model.train()
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert losses[-1] < losses[0]
    assert changed == {f"language_model.{name}" for name in model.group_parameters("adapter")}
    assert model.group_parameters("lora").keys() == model.group_parameters("adapter").keys(), "the old spelling"
    model.eval()
    assert not torch.allclose(logits((model, processor), PROMPTS)[:, -1], plain[:, -1], atol=1e-4)
    model.load_state_dict(before)


def test_a_cache_and_a_batch_change_no_answer(adapted):
    answers = generated(adapted, PROMPTS)
    assert max(map(len, answers)) > 3
    assert generated(adapted, PROMPTS, use_cache=False) == answers
    assert [generated(adapted, [prompt])[0] for prompt in PROMPTS] == answers


def test_runs_of_signal_tokens_are_those_of_single_answers_and_of_a_plain_pass(adapted):
    model, processor = adapted
    options = {"max_new_tokens": 9, "require": {"image": 1}}
    batch = model.generate_interleaved(**processor(PROMPTS), **options)
    for row, prompt in enumerate(PROMPTS):
        inputs = processor([prompt])
        single = model.generate_interleaved(**inputs, **options)
        assert single.sequences[0] == batch.sequences[row]
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor(single.sequences)], dim=1)
        inputs.pop("attention_mask")
        states = []
        model(input_ids=ids, **inputs, signal_recorder=lambda hidden, embeddings, states=states: states.append(hidden[0]))
        assert len(single.runs) == 1
        for one, other in zip(single.runs, [run for run in batch.runs if run.row == row], strict=True):
            torch.testing.assert_close(one.hidden_states, other.hidden_states, atol=1e-3, rtol=1e-3)
            start = ids.shape[1] - len(single.sequences[0]) + one.position
            torch.testing.assert_close(one.hidden_states, states[0][start : start + 4], atol=1e-3, rtol=1e-3)


def test_it_is_saved_and_loaded_exactly(adapted, saved, tmp_path):
    model, processor = adapted
    assert torch.equal(
        logits((NextGPTForConditionalGeneration.from_pretrained(saved), processor), PROMPTS), logits(adapted, PROMPTS)
    )
    tensors = load_file(saved / folder_name(model.config.adapter) / "adapter_model.safetensors")
    assert tensors.keys() == model.adapter.state().keys()
    assert not [name for name in tensors if "embed_tokens" in name or "lm_head" in name], "it holds the adapter alone"
    pipe = NextGPTPipeline.from_pretrained(saved)  # where it is merged into the weights if it can be
    torch.testing.assert_close(logits((pipe.model, processor), PROMPTS), logits(adapted, PROMPTS), atol=5e-3, rtol=1e-3)
    pipe.model.save_pretrained(tmp_path)
    again = load_file(tmp_path / folder_name(model.config.adapter) / "adapter_model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in again)


def test_peft_alone_loads_it_on_the_plain_language_model(adapted, saved):
    model, _ = adapted
    if model.config.adapter["peft_type"] in OWN:
        pytest.skip("peft does not have it; see test_llama_adapters.py")
    plain = AutoModelForCausalLM.from_pretrained(model.config.location("language_model"))
    alone = PeftModel.from_pretrained(plain, saved / folder_name(model.config.adapter)).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found, expected = alone(ids).logits[:, -20:], model(ids).logits[..., : model.config.text_config.vocab_size]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def joined(adapted) -> NextGPTPipeline:
    decoder = load_decoder("stable-diffusion", adapted[0].config.location("image"))
    return NextGPTPipeline(*adapted, {"image": decoder})


def test_a_session_and_a_stream_answer_the_same(adapted):
    pipe = joined(adapted)
    options, session, messages = {"max_new_tokens": 8, "output_modalities": ("text",)}, pipe.new_session(), list(ASK)
    for turn in range(2):
        expected = pipe(messages, **options)
        *events, last = pipe.stream(messages, session=session, **options)
        assert last.reply.token_ids == expected.token_ids
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert text.split() == expected.text.split()
        assert (last.reply.timings.cached_tokens > 0) == (turn > 0)
        messages += [last.reply.message, {"role": "user", "content": f"and {turn}?"}]
    other = [{"role": "user", "content": [{"type": "image", "image": BLUE}, ASK[0]["content"][1]]}]
    assert pipe(other, session=session, **options).token_ids == pipe(other, **options).token_ids


def test_it_is_counted_and_checked_without_weights_and_goes_by_its_name(adapted, saved):
    model, _ = adapted
    name = title(model.config.adapter)
    parts = {part.name: part.parameters for part in count_parameters(saved).parts}
    own = sum(each.numel() for each in model.group_parameters("adapter").values())
    plain = AutoModelForCausalLM.from_pretrained(model.config.location("language_model")).num_parameters()
    assert parts[name] == own and parts["LLM"] == plain
    assert dict(describe_model(saved))["adapter"].startswith(f"{name}, ")
    [finding] = [finding for finding in examine(str(saved)) if finding.what == f"{name} tensors"]
    assert finding.works, finding.detail


# ---------------------------------------------------------------------- virtual tokens


def test_virtual_tokens_enter_once_and_are_counted_nowhere_else(virtual):
    model, processor = virtual
    inputs = processor(ASK)
    length, lengths = inputs["input_ids"].shape[1], []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answer = model.generate_interleaved(**inputs, max_new_tokens=12, require={"image": 1})
    hook.remove()
    entered = 5 if model.config.adapter["peft_type"] == "PROMPT_TUNING" else 0  # a prefix is in the cache alone
    assert lengths[0] == length + entered and set(lengths[1:]) <= {1, 4}
    fed = sum(lengths) - entered
    assert answer.past_key_values.get_seq_length() == fed + 5
    assert model(**inputs).logits.shape[1] == length
    assert model.config.max_positions == model.config.text_config.max_position_embeddings - 5


def test_a_session_keeps_virtual_tokens_and_the_media_of_its_answers(virtual):
    pipe = joined(virtual)
    options = {"max_new_tokens": 12, "require": {"image": 1}, "image": {"num_inference_steps": 1}, "seed": 1}
    session = pipe.new_session()
    *_, first = pipe.stream(ASK, session=session, **options)
    assert session.cache.get_seq_length() == len(session.token_ids) + 5
    more = [*ASK, first.reply.message, {"role": "user", "content": "again"}]
    *_, second = pipe.stream(more, session=session, **options)
    assert second.reply.timings.cached_tokens == first.reply.timings.prompt_tokens
    expected = pipe(more, **options)
    assert second.reply.token_ids == expected.token_ids
    difference = ImageChops.difference(second.reply.images[0], expected.images[0])
    assert max(high for _, high in difference.getextrema()) <= 2


def test_beams_chunks_lookups_and_a_cache_that_is_given_count_virtual_tokens_right(virtual):
    model, processor = virtual
    beams = {"num_beams": 3}
    assert generated(virtual, PROMPTS, **beams) == [generated(virtual, [prompt], **beams)[0] for prompt in PROMPTS]
    expected = generated(virtual, [TALK])
    assert generated(virtual, [TALK], prefill_chunk_size=16) == expected
    assert generated(virtual, [TALK], prompt_lookup_num_tokens=2) == expected
    with pytest.raises(UserInputError, match="needs a dynamic cache: leave cache_implementation='static' out"):
        generated(virtual, [TALK], cache_implementation="static")
    inputs = processor(ASK)
    options = {"image_values": inputs["image_values"], "max_new_tokens": 6, "do_sample": False}
    first = model.generate(**inputs | options, return_dict_in_generate=True)
    more = torch.cat([first.sequences, processor(TALK)["input_ids"]], dim=1)
    fresh = model.generate(more, **options)
    assert torch.equal(model.generate(more, past_key_values=first.past_key_values, **options), fresh)


def test_virtual_tokens_and_columns_that_are_shared_give_the_gradients_of_single_rows(virtual):
    model, processor = virtual
    model.train_only(["adapter", "input_projection"])
    options = {"add_generation_prompt": False, "return_labels": True, "padding_side": "right"}
    batch, singles = processor(TEACH, **options), [processor([each], **options) for each in TEACH]
    learned = [int((each["labels"][:, 1:] != -100).sum()) for each in singles]
    model.zero_grad()
    model(**batch).loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}
    model.zero_grad()
    for each, count in zip(singles, learned, strict=True):
        length = each["input_ids"].shape[1]  # positions given: one plain pass
        loss = model(**each, position_ids=torch.arange(length)[None]).loss
        (loss * count / sum(learned)).backward()
    assert any("prompt_encoder" in name for name in found)
    expected = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_virtual_tokens_with_checkpointed_activations_work_or_are_refused_in_one_line(virtual):
    model, processor = virtual
    batch = processor(TEACH, add_generation_prompt=False, return_labels=True, padding_side="right")
    expected = model(**batch).loss
    model.train_only(["adapter"])
    model.train()
    model.activation_checkpointing_enable()
    try:
        if model.config.adapter["peft_type"] == "PREFIX_TUNING":
            with pytest.raises(UserInputError, match="leave activation_checkpointing out, or take PROMPT_TUNING"):
                model(**batch)
        else:
            loss = model(**batch).loss
            loss.backward()
            torch.testing.assert_close(loss, expected)
            assert all(each.grad.any() for each in model.adapter.parameters().values())
    finally:
        model.activation_checkpointing_disable()
        model.eval()


# ---------------------------------------------------------------------- configurations


@pytest.mark.parametrize("peft_type", sorted({each.value for each in PeftType} - set(TESTED)))
def test_any_other_type_is_refused_by_name_when_the_configuration_is_read(parts, tmp_path, peft_type):
    parts.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"adapter": {"peft_type": peft_type}}))
    told = rf"config.json: adapter: peft_type '{peft_type}' does not work here; these do: LORA .*, IA3, .*PREFIX_TUNING"
    with pytest.raises(ModelLoadError, match=told) as caught:
        NextGPTConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"adapter": {"peft_type": "LORA"}, "lora": {"r": 2}}, "both adapter and lora"),
        ({"adapter": {"peft_type": "IA3", "target_module": ["q"]}}, "'target_module' of IA3; did you mean 'target_modules'"),
        ({"adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 0}}, "num_virtual_tokens is 0, expected a whole"),
        ({"adapter": {"peft_type": "PREFIX_TUNING", "prefix_projection": True}}, "prefix_projection does not work here"),
        ({"adapter": {"peft_type": "LORA", "inference_mode": True}}, "inference_mode is set by the model itself"),
        ({"adapter": {"peft_type": "LORA", "alora_invocation_tokens": [1]}}, "alora_invocation_tokens does not work here"),
        ({"adapter": {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT"}}, "tokenizer_name_or_path"),
        ({"adapter": "LORA"}, "adapter is 'LORA', expected"),
        ({"lora": {"peft_type": "IA3"}}, "another adapter is given as `adapter`"),
    ],
)
def test_settings_that_do_not_work_are_refused_in_one_line(given, told):
    with pytest.raises(UserInputError, match=told) as caught:
        NextGPTConfig(**given)
    assert "\n" not in str(caught.value)


def test_lora_is_the_default_and_its_old_spelling_still_loads(parts):
    def read(**given) -> NextGPTConfig:
        return NextGPTConfig(language_model=parts.language_model, encoder=parts.encoder, **given)

    assert read().adapter == read(lora={}).adapter
    assert read(lora={"r": 4}).adapter == read(adapter={"peft_type": "LORA", "r": 4}).adapter
    assert read().adapter["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert read(lora=False).adapter is read(adapter=False).adapter is False
    assert read(trained_groups=["lora"]).trained_groups == ["adapter"]


def test_a_model_without_an_adapter_works(parts, tmp_path):
    fields = {name: getattr(parts, name) for name in ("language_model", "encoder", "decoders", "output_projection")}
    model = NextGPTForConditionalGeneration.from_parts(NextGPTConfig(**fields, adapter=False))
    processor = NextGPTProcessor.from_config(model.config)
    for each in (model, processor):
        each.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()
    pipe = NextGPTPipeline.from_pretrained(tmp_path)
    assert pipe(TALK, max_new_tokens=4, output_modalities=("text",)).token_ids
    assert not model.group_parameters("adapter")


def test_layers_that_the_language_model_lacks_are_named_in_one_line(parts, tmp_path):
    config = NextGPTConfig(
        language_model=parts.language_model, encoder=parts.encoder, adapter={"peft_type": "LOHA", "target_modules": ["nope"]}
    )
    with pytest.raises(UserInputError, match="adapter: LoHa on nope: .*nope") as caught:
        NextGPTForConditionalGeneration.from_parts(config)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_size_is_refused_by_the_tensors_name(parts, tmp_path):
    model, _ = build(parts, CASES["PREFIX_TUNING"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"num_virtual_tokens": 5', '"num_virtual_tokens": 6'))
    with pytest.raises(ModelLoadError, match=r"prompt_embeddings has shape \[5, 64\], this model needs \[6, 64\]"):
        NextGPTForConditionalGeneration.from_pretrained(tmp_path)
