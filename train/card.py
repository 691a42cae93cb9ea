"""The model card of a trained model, filled in from its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextgpt import adapters
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.media.text import listed

CARD_FILE = "README.md"
SHOWN_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
)


TITLES = {
    "align_encoders": "encoders aligned",
    "align_decoders": "decoders aligned",
    "instruct": "instruction-tuned",
    "prefer": "taught preferences",
    "rl": "taught by rewards",
    "ilql": "taught by rewarded conversations",
}


def title(metadata: dict[str, Any]) -> str:
    """What a model is called: "nano, instruction-tuned on own and nano"."""
    files = [Path(file).stem for file in metadata["data"]["files"]]
    return f"{metadata['base_model']}, {TITLES[metadata['stage']]} on {listed(files)}"


def write_card(folder: str | Path, config: NextGPTConfig, metadata: dict[str, Any]) -> Path:
    """Writes `README.md`, as the Hub shows it.

    Args:
        config: of the model.
        metadata: of the run that made it, as `nextgpt.train.run_metadata` has them.
    """
    settings, data, start = metadata["configuration"], metadata["data"], metadata["starts"][-1]
    finished = metadata["finished"]
    licenses = sorted({part.license for part in config.parts().values() if part.license})
    rows = [
        ("stage", metadata["stage"]),
        ("started from", f"{settings['model']} (fingerprint `{metadata['model_fingerprint'][:16]}`)"),
        ("data", ", ".join(Path(file).name for file in data["files"])),
        ("data fingerprint", f"`{data['fingerprint'][:16]}`"),
        ("conversations", f"{data['conversations']:,} ({data['tokens']:,} tokens; {data['skipped']} bad ones skipped)"),
        ("steps", f"{finished['steps']:,} ({finished['epochs'] or 0:.2f} epochs)"),
        ("last loss", "–" if finished["loss"] is None else f"{finished['loss']:.4f}"),
        ("seed", metadata["seed"]),
        *((name, settings["arguments"][name]) for name in SHOWN_ARGUMENTS if name in settings["arguments"]),
        ("code", start["git_revision"] or f"nextgpt {start['versions']['nextgpt']}"),
        ("versions", ", ".join(f"{name} {start['versions'][name]}" for name in ("torch", "transformers", "peft"))),
    ]
    parts = [
        f"| {name.replace('_', ' ')} | {' @ '.join(filter(None, (part.source, part.revision)))} | {part.license or '–'} |"
        for name, part in config.parts().items()
    ]
    adapter = f", and {adapters.title(config.adapter)} ({adapters.describe(config.adapter)})" if config.adapter else ""
    text = "\n".join(
        [
            "---",
            "library_name: nextgpt",
            "pipeline_tag: any-to-any",
            "tags: [nextgpt, any-to-any, multimodal]",
            "---",
            "",
            f"# {title(metadata)}",
            "",
            f"A NExT-GPT: takes text, {', '.join(config.input_modalities)}; gives text, {', '.join(config.signal_tokens)}.",
            f"This folder holds what was trained: projections, the signal tokens' rows{adapter}.",
            "The frozen parts are fetched from where the table names them.",
            "",
            "    from nextgpt import NextGPTPipeline",
            "",
            '    pipe = NextGPTPipeline.from_pretrained("this folder")',
            '    print(pipe([{"role": "user", "content": "hello"}]).text)',
            "",
            "## How it was trained",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "## Frozen parts",
            "",
            "| part | source | licence |",
            "|---|---|---|",
            *parts,
            "",
            f"The licences of the frozen parts hold for what they make: {', '.join(licenses) or 'see their sources'}.",
            "",
        ]
    )
    path = Path(folder) / CARD_FILE
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
