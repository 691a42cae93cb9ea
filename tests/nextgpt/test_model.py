"""The model across LLM families: forward, losses, what is trained, what is saved."""

import warnings

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
)

from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration, NextGPTProcessor
from nextgpt.errors import ModelLoadError, UserInputError
from tiny_models import FAMILIES, tiny_config, tiny_model, tiny_tokenizer

RED = Image.new("RGB", (40, 30), "red")
DIALOGUE = [
    {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A banana."}, {"type": "image", "caption": "banana"}]},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_learns_and_generates_media(family, tmp_path):
    model, processor = tiny_model(tmp_path, family)
    batch = processor([DIALOGUE, DIALOGUE[:1]], add_generation_prompt=False, return_labels=True)
    targets = {"image": {"prompt_embeds": torch.randn(1, *model.config.conditioning_shapes["image"]["prompt_embeds"])}}

    model.train_only(["input_projection", "output_projections", "signal_rows", "lora"])
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        output = model(**batch, conditioning_targets=targets)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.losses)
    assert set(losses[0]) == {"text", "conditioning/image/prompt_embeds"}
    assert all(losses[-1][name] < losses[0][name] for name in losses[0])

    model.eval()
    answer = model.generate_interleaved(**processor(DIALOGUE[:1]), max_new_tokens=20, require={"image": 2})
    assert [run.modality for run in answer.runs] == ["image", "image"]
    assert all(torch.isfinite(run.hidden_states).all() for run in answer.runs)


def test_only_the_named_groups_change_and_the_base_stays(llama, tmp_path):
    model, processor = tiny_model(tmp_path)
    batch = processor(DIALOGUE, add_generation_prompt=False, return_labels=True)
    targets = {"image": {"prompt_embeds": torch.randn(1, *model.config.conditioning_shapes["image"]["prompt_embeds"])}}
    expected = {
        ("input_projection",): ["input_projection."],
        ("output_projections", "signal_rows"): ["output_projections.", "signal_rows."],
        ("lora",): [".lora_A.", ".lora_B."],
    }
    for groups, names in expected.items():
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train_only(groups)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        for _ in range(2):  # LoRA's B starts at zero, so that A moves from the second step
            model(**batch, conditioning_targets=targets).loss.backward()
            optimizer.step()
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed, groups
        assert all(any(part in name for part in names) for name in changed), (groups, changed)
        assert all(p.grad is None for p in model.encoder.parameters())


def test_losses_are_those_of_the_definition(llama, monkeypatch):
    """Text: cross-entropy over the whole vocabulary at labelled positions; conditioning: mean square distance."""
    model, processor = llama
    batch = processor(DIALOGUE, add_generation_prompt=False, return_labels=True)
    targets = {"image": {"prompt_embeds": torch.zeros(1, *model.config.conditioning_shapes["image"]["prompt_embeds"])}}
    labels = batch.pop("labels")
    with torch.no_grad():
        output = model(**batch, labels=labels, conditioning_targets=targets)
        logits = model(**batch).logits
        states = []
        model(**batch, signal_recorder=lambda hidden, embeddings: states.append((hidden, embeddings)))
    text = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)
    torch.testing.assert_close(output.losses["text"], text)
    mask = model.signal_mask(batch["input_ids"], "image")
    conditioning = model.project("image", *(each[mask][None] for each in states[0]))["prompt_embeds"]
    torch.testing.assert_close(output.losses["conditioning/image/prompt_embeds"], conditioning.square().mean())
    torch.testing.assert_close(output.loss, text + conditioning.square().mean())
    monkeypatch.setattr(model.config, "loss_weights", model.config.loss_weights | {"conditioning/image": 3.0})
    with torch.no_grad():
        weighted = model(**batch, labels=labels, conditioning_targets=targets).loss
    torch.testing.assert_close(weighted, text + 3 * conditioning.square().mean())


@pytest.mark.parametrize(
    "groups",
    [("input_projection",), ("output_projections", "signal_rows"), ("output_projections",), ("lora", "signal_rows")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_columns_that_are_shared_or_need_no_gradient_change_no_loss_and_no_gradient(family, groups, tmp_path, monkeypatch):
    """Rows that begin alike and rows that do not, padded on the right: as in one pass over everything."""
    model, processor = tiny_model(tmp_path, family)
    late = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, *DIALOGUE]
    shape = model.config.conditioning_shapes["image"]["prompt_embeds"]
    model.train_only(groups)
    model.train()
    for conversations in ([DIALOGUE, DIALOGUE[:1]], [late, DIALOGUE], [late, late], [late]):
        batch = processor(conversations, add_generation_prompt=False, return_labels=True, padding_side="right")
        targets = {"image": {"prompt_embeds": torch.ones(sum(len(each) % 2 == 0 for each in conversations), *shape)}}
        assert model._shared_columns(batch["input_ids"], batch["attention_mask"]) > 0
        assert (model._columns_without_gradient(batch["input_ids"]) > 0) == ("lora" not in groups)
        found = [gradients(model, batch, targets)]
        with monkeypatch.context() as patch:
            for name in ("_shared_columns", "_columns_without_gradient"):
                patch.setattr(model, name, lambda *columns: 0)
            found.append(gradients(model, batch, targets))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def gradients(model, batch, targets) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch, conditioning_targets=targets).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_targets_that_do_not_fit_are_named(llama):
    model, processor = llama
    batch = processor(DIALOGUE, add_generation_prompt=False, return_labels=True)
    good = torch.zeros(1, *model.config.conditioning_shapes["image"]["prompt_embeds"])
    for targets, told in (
        ({}, "The image output projection takes 'prompt_embeds', which is missing"),
        ({"prompt_embeds": good, "pooled_prompt_embeds": good}, "takes no 'pooled_prompt_embeds'"),
        ({"prompt_embeds": good[:, :1]}, r"'prompt_embeds' of shape \[N, 77, 32\], got \[1, 1, 32\]"),
        ({"prompt_embeds": good.repeat(2, 1, 1)}, "has 1 image signal runs, conditioning_targets 2 rows"),
    ):
        with pytest.raises(UserInputError, match=told):
            model(**batch, conditioning_targets={"image": targets})


def test_placeholders_never_score_and_signals_do(llama):
    model, processor = llama
    logits = model(**processor(DIALOGUE[:1])).logits
    assert logits.shape[-1] == model.config.vocab_size
    assert logits[..., list(model.vocabulary.placeholders.values())].max() < -1e30
    assert torch.isfinite(logits[..., list(model.vocabulary.runs["image"])]).all()


@pytest.mark.parametrize(
    ("kind", "own"),
    [(CohereConfig, {"logit_scale": 0.25}), (GraniteConfig, {"logits_scaling": 4.0}), (Gemma2Config, {"head_dim": 8})],
)
def test_logits_are_what_the_llm_makes_of_them_itself(kind, own, tmp_path):
    config = tiny_config(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(kind(vocab_size=len(tiny_tokenizer()), **sizes, **own))
    plain.save_pretrained(tmp_path / "language_model")
    model = NextGPTForConditionalGeneration.from_parts(NextGPTConfig(**config.to_dict())).eval()
    ids = torch.randint(3, 50, (1, 7))
    with torch.no_grad():
        expected, found = plain.eval()(ids).logits, model(input_ids=ids).logits
    assert torch.allclose(found[..., : expected.shape[-1]], expected, atol=1e-5)


def test_media_and_placeholders_must_match(llama):
    model, processor = llama
    batch = processor(DIALOGUE[:1])
    batch["image_values"] = batch["image_values"].repeat(2, 1, 1, 1)
    with pytest.raises(UserInputError, match="1 image placeholders, but 2 images"):
        model(**batch)


def test_round_trip_is_exact_and_holds_only_what_was_trained(llama, tmp_path):
    model, processor = llama
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"input_projection", "output_projections", "signal_rows"}
    adapter = load_file(tmp_path / "saved" / "lora" / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)

    batch = processor(DIALOGUE[:1])
    with torch.no_grad():
        expected = model(**batch).logits
    for auto in (AutoModelForMultimodalLM, AutoModel):
        again = auto.from_pretrained(tmp_path / "saved")
        processed = AutoProcessor.from_pretrained(tmp_path / "saved")(DIALOGUE[:1])
        assert torch.equal(again(**processed).logits, expected)
    assert isinstance(again, NextGPTForConditionalGeneration)
    assert again.config.to_json_string() == model.config.to_json_string()


def test_peft_alone_loads_the_lora_folder_on_the_plain_base(llama, tmp_path):
    from peft import PeftModel

    model, _ = llama
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model.config.location("language_model"))
    peft_model = PeftModel.from_pretrained(base, tmp_path / "lora")
    ids = torch.arange(5, 25)[None]
    vocabulary = model.config.text_config.vocab_size
    with torch.no_grad():
        assert torch.allclose(peft_model(ids).logits, model(ids).logits[..., :vocabulary], atol=1e-5)
        assert not torch.allclose(peft_model(ids).logits, base.get_input_embeddings().weight.sum() * 0, atol=1e-3)


def test_relative_parts_move_with_the_configuration(tmp_path):
    config = tiny_config(tmp_path / "parts")
    config.save_pretrained(tmp_path / "parts")
    relative = NextGPTConfig.from_pretrained(tmp_path / "parts")
    relative.language_model["source"] = "./language_model"
    relative.save_pretrained(tmp_path / "elsewhere" / "deep")
    moved = NextGPTConfig.from_pretrained(tmp_path / "elsewhere" / "deep")
    assert moved.language_model["source"] == "../../parts/language_model"
    assert moved.location("language_model") == str(tmp_path / "parts" / "language_model")
    assert moved.text_config.vocab_size == len(tiny_tokenizer())


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(llama, tmp_path):
    model, processor = llama
    model.save_pretrained(tmp_path)
    config = NextGPTConfig.from_pretrained(tmp_path)
    config.output_projection["hidden_size"] = 32
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"output_projections\.image.* has shape .* this model needs"):
        NextGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    config = tiny_config(tmp_path)
    config.language_model["source"] = str(tmp_path / "nowhere")
    config._text_config = None
    with pytest.raises((ModelLoadError, OSError), match="nowhere"):
        NextGPTForConditionalGeneration.from_parts(config)


def test_meta_device_instantiates_without_weights(tmp_path):
    config = tiny_config(tmp_path)
    with torch.device("meta"):
        model = NextGPTForConditionalGeneration(config)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_making_a_model_warns_of_nothing_that_a_user_could_not_mend(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model(tmp_path)


def test_tokenizer_that_does_not_belong_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="the model expects"):
        NextGPTProcessor(tokenizer, config.encoder_config, signal_tokens={"image": 4}, token_offset=len(tokenizer) + 7)
