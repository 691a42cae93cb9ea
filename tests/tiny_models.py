"""Tiny random LLMs, tokenizers and whole NExT-GPT models, built on the spot with the real classes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.encoders import ImageBindConfig, encoder_from_config
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video

TINY_TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: draw a banana on a blue background ASSISTANT: Here is a large banana, 3d style, blue background.",
    "What do you see? I see a cat and a dog. Play a trumpet, film a bird!",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": lambda vocab: LlamaConfig(vocab_size=vocab, **SIZES),
    "llama-2": lambda vocab: LlamaConfig(vocab_size=vocab, **SIZES, rms_norm_eps=1e-5, attention_bias=False),
    "vicuna": lambda vocab: LlamaConfig(vocab_size=vocab, **(SIZES | {"num_key_value_heads": 4})),
    "mistral": lambda vocab: MistralConfig(vocab_size=vocab, **SIZES, sliding_window=256),
    "gemma": lambda vocab: GemmaConfig(vocab_size=vocab, **SIZES, head_dim=8),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 300 tokens, with LLaMA's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def tiny_encoder_config(**changes) -> ImageBindConfig:
    """An ImageBind with vision and audio towers that runs in milliseconds."""
    sizes = {
        "towers": ["vision", "audio"],
        "out_embed_dim": 16,
        "image_size": 32,
        "kernel_size": [2, 16, 16],
        "vision_embed_dim": 16,
        "vision_num_blocks": 1,
        "vision_num_heads": 2,
        "video_clips": 1,
        "video_crops": 1,
        "audio_embed_dim": 16,
        "audio_num_blocks": 1,
        "audio_num_heads": 2,
        "audio_clips": 1,
    }
    return ImageBindConfig(**(sizes | changes))


def save_tiny_language_model(folder: Path, family: str = "llama") -> Path:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[family](len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_config(folder: Path, family: str = "llama", decoders: dict | None = None, **changes) -> NextGPTConfig:
    """Saves tiny frozen parts in `folder` and returns a configuration that names them."""
    save_tiny_language_model(folder / "language_model", family)
    torch.manual_seed(0)
    encoder_from_config(tiny_encoder_config()).save_pretrained(folder / "encoder")
    if decoders is None:
        save_tiny_stable_diffusion(folder / "image_decoder")
        decoders = {"image": {"kind": "stable-diffusion", "source": str(folder / "image_decoder")}}
    return NextGPTConfig(
        language_model={"source": str(folder / "language_model")},
        encoder={"kind": "imagebind", "source": str(folder / "encoder")},
        decoders=decoders,
        output_projection={"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        **({} if "adapter" in changes else {"lora": {"r": 4, "lora_alpha": 4}}),
        **changes,
    )


def tiny_model(folder: Path, family: str = "llama", **options) -> tuple[NextGPTForConditionalGeneration, NextGPTProcessor]:
    config = tiny_config(folder, family, **options)
    torch.manual_seed(0)
    return NextGPTForConditionalGeneration.from_parts(config), NextGPTProcessor.from_config(config)


def save_tiny_model(folder: Path) -> Path:
    """A checkpoint, `model`, beside its `parts`."""
    model, processor = tiny_model(folder / "parts")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def new_tokens(model: NextGPTForConditionalGeneration, processor: NextGPTProcessor, prompts: list, **options) -> list[list]:
    """What transformers' own `generate` adds to each prompt, up to the end of its answer; greedy by default."""
    inputs = processor(prompts)
    options = {"do_sample": False, "pad_token_id": 0} | options
    rows = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


# Kind of media → the decoder's kind, how it is saved, and its options where none are given: quick ones.
DECODERS = {
    "image": ("stable-diffusion", save_tiny_stable_diffusion, {"num_inference_steps": 2}),
    "audio": ("audioldm", save_tiny_audioldm, {"num_inference_steps": 2, "duration": 0.2}),
    "video": ("text-to-video", save_tiny_text_to_video, {"num_inference_steps": 2}),
}


def save_tiny_any_to_any(
    folder: Path, kinds: Sequence[str] = tuple(DECODERS), prepare: Callable[[Path], None] | None = None
) -> Path:
    """A checkpoint, `model`, that often answers with these kinds of media, beside its parts.

    Args:
        prepare: is called with each decoder's folder before anything is made of it.
    """
    decoders = {}
    for modality in kinds:
        kind, save, options = DECODERS[modality]
        source = save(folder / modality)
        if prepare is not None:
            prepare(source)
        defaults = source / "generation_defaults.json"
        given = json.loads(defaults.read_text()) if defaults.is_file() else {}
        defaults.write_text(json.dumps(given | options))
        decoders[modality] = {"kind": kind, "source": str(source)}
    model, processor = tiny_model(folder, decoders=decoders)
    torch.manual_seed(5)
    with torch.no_grad():
        model.signal_rows.output.normal_(std=0.04)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def answered_together_as_alone(pipe, talks: list, sessions: list) -> list:
    """The replies of conversations that go on in their sessions, which are those of single calls and of one of all."""
    options = {"max_new_tokens": 8, "output_modalities": ("text",)}
    expected = [pipe(talk, **options).token_ids for talk in talks]
    assert [reply.token_ids for reply in pipe(talks, **options)] == expected
    # Streams begin as they are asked for: their rows join one batch while they are under way.
    streams = [pipe.stream(talk, session=each, **options) for talk, each in zip(talks, sessions, strict=True)]
    replies = [list(stream)[-1].reply for stream in streams]
    assert [reply.token_ids for reply in replies] == expected
    return replies
