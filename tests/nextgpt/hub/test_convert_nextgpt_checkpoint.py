"""The original's published checkpoints: small files of the same shape, key by key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from nextgpt.__main__ import main
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.hub.convert_nextgpt_checkpoint import IncompleteCheckpoint, convert_checkpoint
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_config

SIGNALS = {"image": 4, "audio": 8, "video": 24}
STRANGE = "gen_text_hidden_fcs_smell.0.fc.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model's configuration and its frozen parts."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny_stable_diffusion(folder / "image")
    save_tiny_audioldm(folder / "audio")
    save_tiny_text_to_video(folder / "video")
    decoders = {
        "image": {"kind": "stable-diffusion", "source": str(folder / "image")},
        "audio": {"kind": "audioldm", "source": str(folder / "audio")},
        "video": {"kind": "text-to-video", "source": str(folder / "video")},
    }
    tiny_config(folder / "parts", "vicuna", decoders=decoders).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def original(base) -> dict[str, torch.Tensor]:
    """What the first code's `pytorch_model.pt` holds, for a model of this size, in random numbers."""
    config = NextGPTConfig.from_pretrained(base / "model")
    torch.manual_seed(0)
    model = NextGPTForConditionalGeneration(config)
    tensors = {}
    for name, tensor in model.trained_state().items():
        group, _, rest = name.partition(".")
        if group == "input_projection":
            tensors[f"llama_proj.{rest}"] = torch.randn_like(tensor)
        elif group == "output_projections":
            modality, _, rest = rest.partition(".")
            suffix = "" if modality == "image" else f"_{modality}"
            tensors[f"gen_text_hidden_fcs{suffix}.0.{rest}"] = torch.randn_like(tensor)
    for name, parameter in model.language_model.named_parameters():
        if "lora_" in name:
            tensors[f"llama_model.{name}"] = torch.randn_like(parameter)
    rows = config.text_config.vocab_size + 2 + sum(SIGNALS.values())
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"llama_model.base_model.model.{name}.weight"] = torch.randn(rows, config.text_config.hidden_size)
    return tensors


def save(tensors: dict, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "pytorch_model.pt")
    return folder


def convert(source: Path, out: Path, base: Path):
    return convert_checkpoint(source, out, language_model=str(base / "parts" / "language_model"), model=str(base / "model"))


def test_the_first_codes_checkpoint_becomes_a_model_that_loads(base, original, tmp_path) -> None:
    source = save(original | {STRANGE: torch.zeros(1)}, tmp_path / "original")
    report = convert(source, tmp_path / "out", base)
    matrices = {key for key in original if key.endswith(("embed_tokens.weight", "lm_head.weight"))}
    assert set(report.used) == set(original) and not report.missing
    assert {key for key, _ in report.unused} == matrices | {STRANGE}

    model = NextGPTForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(model.input_projection.weight, original["llama_proj.weight"])
    audio = model.output_projections["audio"].query_embs
    assert torch.equal(audio, original["gen_text_hidden_fcs_audio.0.query_embs"])
    vocab = model.config.text_config.vocab_size
    embedding = original["llama_model.base_model.model.model.embed_tokens.weight"]
    image, video, audio = embedding[vocab + 2 :].split([4, 24, 8])  # behind <Img> and </Img>, in the original's order
    assert torch.equal(model.signal_rows.input, torch.cat([image, audio, video]))
    lora = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"
    assert torch.equal(model.language_model.get_parameter(lora), original[f"llama_model.{lora}"])
    assert set(model.config.trained_groups) == {"input_projection", "output_projections", "signal_rows", "adapter"}

    processor = NextGPTProcessor.from_pretrained(tmp_path / "out")
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"},
    ]
    expected = "<s>### Human: hi\n### Assistant: yes\n### Human: so\n### Assistant:"
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected


def test_the_rows_are_found_by_the_ids_that_the_original_wrote_down(base, original, tmp_path) -> None:
    source = save(original, tmp_path / "original")
    first = NextGPTConfig.from_pretrained(base / "model").text_config.vocab_size
    names = [f"[AUD{i}]" for i in range(8)] + [f"[IMG{i}]" for i in range(4)] + ["<Img>", "</Img>"]
    names += [f"[VID{i}]" for i in range(24)]  # another order
    (source / "added_tokens.json").write_text(json.dumps({name: first + i for i, name in enumerate(names)}))
    convert(source, tmp_path / "out", base)
    rows = original["llama_model.base_model.model.lm_head.weight"][first:]
    found = NextGPTForConditionalGeneration.from_pretrained(tmp_path / "out").signal_rows.output
    assert torch.equal(found, torch.cat([rows[8:12], rows[:8], rows[14:]]))


def test_another_base_is_refused(base, original, tmp_path) -> None:
    llama_2 = tmp_path / "vicuna"
    AutoTokenizer.from_pretrained(base / "parts" / "language_model").save_pretrained(llama_2)
    config = AutoConfig.from_pretrained(base / "parts" / "language_model")
    config.max_position_embeddings = 4096
    config.save_pretrained(llama_2)
    source = save(original, tmp_path / "original")
    with pytest.raises(UserInputError, match=r"trained on Vicuna 7B v0 .*4096, as Vicuna v1.5"):
        convert_checkpoint(source, tmp_path / "out", language_model=str(llama_2), model=str(base / "model"))
    assert not (tmp_path / "out").exists()


def test_every_missing_key_is_named(base, original, tmp_path, capsys) -> None:
    less = {key: tensor for key, tensor in original.items() if "lora_" not in key and not key.startswith("llama_proj.w")}
    source = save(less | {"llama_proj.bias": torch.zeros(3)}, tmp_path / "original")
    with pytest.raises(IncompleteCheckpoint, match=r"leaves \d+ tensors of this model unfilled") as caught:
        convert(source, tmp_path / "out", base)
    assert {"input_projection.weight", "input_projection.bias"} <= set(caught.value.report.missing)
    assert sum("lora_" in name for name in caught.value.report.missing) == 16
    words = ["convert", str(source), "-o", str(tmp_path / "out"), "--model", str(base / "model")]
    assert main([*words, "--language-model", str(base / "parts" / "language_model")]) == 2
    printed = capsys.readouterr()
    assert "missing  input_projection.weight" in printed.out
    assert "unused   llama_proj.bias: has shape [3], this model needs [32]" in printed.out
    assert "unfilled" in printed.err


def test_the_second_codes_checkpoint_is_refused_with_the_reason(base, tmp_path) -> None:
    tensors = {
        "model.mm_input_projector.weight": torch.zeros(2, 2),
        "model.mm_output_img_projector.fc.weight": torch.ones(2),
    }
    with pytest.raises(IncompleteCheckpoint, match=r"second code \(2 projector tensors\).* 2n-1 positions") as caught:
        convert(save(tensors, tmp_path / "original"), tmp_path / "out", base)
    assert [key for key, _ in caught.value.report.unused] == list(tensors)


def test_what_is_no_checkpoint_is_refused(base, tmp_path) -> None:
    with pytest.raises(ModelLoadError, match="no such file"):
        convert(tmp_path, tmp_path / "out", base)
    with pytest.raises(ModelLoadError, match="no/such/base: no such folder; name a folder of Vicuna 7B v0"):
        convert_checkpoint(tmp_path, tmp_path / "out", language_model="no/such/base", model=str(base / "model"))
    with pytest.raises(UserInputError, match="expected keys such as llama_proj.weight, found other"):
        convert(save({"other": torch.zeros(1)}, tmp_path / "1"), tmp_path / "out", base)

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    with pytest.raises(ModelLoadError, match="cannot be read as tensors alone"):
        convert(save({"llama_proj.weight": Code()}, tmp_path / "2"), tmp_path / "out", base)
    assert not (tmp_path / "executed").exists()
