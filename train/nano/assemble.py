"""Puts the nano model together: frozen parts into the preset, then what the three stages trained. Copies, trains nothing.

`python -m nextgpt.train.nano.assemble frozen` copies the frozen parts into the preset folder and writes the
configuration that the first stage starts from; `… trained` copies the last stage's result there.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.modeling_nextgpt import TRAINED_FILE
from nextgpt.parts import preset_folder
from nextgpt.train.nano.loop import LOG_FILE
from nextgpt.train.nano.world import World

logger = logging.getLogger(__name__)

FROZEN = ("encoder", "language_model", "image_decoder", "judge")
LEFT_OUT = shutil.ignore_patterns("checkpoint*", LOG_FILE, "*.png", "README.md", "runs")
OF_THE_RUN = ("trainer_state.json", "training_args.bin", "run.json", "README.md", "skipped.jsonl")  # not of the preset
LICENCE = "Apache-2.0; trained on artwork listed in ATTRIBUTION.md"


def new_config(parts: str = "preset:nano") -> NextGPTConfig:
    """The nano model: every number that is not its frozen parts' own.

    Args:
        parts: where the frozen parts' folders lie.
    """
    return NextGPTConfig(
        language_model={"source": f"{parts}/language_model", "license": LICENCE},
        encoder={"kind": "imagebind", "source": f"{parts}/encoder", "license": LICENCE},
        decoders={
            "image": {"kind": "stable-diffusion", "source": f"{parts}/image_decoder", "license": LICENCE},
        },
        input_modalities=["image"],
        output_projection={"hidden_size": 192, "num_layers": 2, "num_heads": 4},
        lora={"r": 16, "lora_alpha": 32},
    )


def assemble_frozen(root: Path, preset: Path) -> None:
    """Copies the frozen parts and the judge, gathers the logs, and writes `root/model/config.json`."""
    logs = {}
    for part in (*FROZEN, "autoencoder", "text_encoder"):
        file = root / part / LOG_FILE
        if file.is_file():
            logs[part] = json.loads(file.read_text(encoding="utf-8"))
        if part in FROZEN and (root / part).is_dir():
            shutil.rmtree(preset / part, ignore_errors=True)
            shutil.copytree(root / part, preset / part, ignore=LEFT_OUT)
    if (root / "autoencoder" / "config.json").is_file():  # it may have been refined since the UNet was trained
        shutil.copytree(root / "autoencoder", preset / "image_decoder" / "vae", ignore=LEFT_OUT, dirs_exist_ok=True)
    (preset / LOG_FILE).write_text(json.dumps(logs, indent=1) + "\n", encoding="utf-8")
    copy_world(World(root / "world"), preset / "world")
    shutil.copy(root / "world" / "ATTRIBUTION.md", preset / "ATTRIBUTION.md")
    new_config().save_pretrained(root / "model")


def copy_world(world: World, folder: Path) -> None:
    """Copies what the evaluation needs of the world; of the artwork from outside it only what no part learned from."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("world.json", "art.npz"):
        shutil.copy(world.folder / file, folder / file)
    outside = np.zeros_like(world.outside)
    kept = [number for split in ("dev", "heldout") for number in world.outside_numbers(split)]
    outside[kept] = world.outside[kept]
    np.savez_compressed(folder / "outside.npz", art=outside)


def to_bfloat16(file: Path) -> None:
    """Halves a safetensors file."""
    with safe_open(file, "pt") as tensors:
        halved = {name: tensors.get_tensor(name).bfloat16() for name in tensors.keys()}  # noqa: SIM118
        metadata = tensors.metadata()
    save_file(halved, file, metadata=metadata)


def assemble_trained(root: Path, preset: Path) -> None:
    """Copies what the last stage saved, and adds the stages' curves to the log."""
    log = json.loads((preset / LOG_FILE).read_text(encoding="utf-8"))
    for stage in ("align_encoders", "align_decoders", "instruct"):
        state = json.loads((root / stage / "trainer_state.json").read_text(encoding="utf-8"))
        curve = [row for row in state["log_history"] if "loss" in row]
        log[stage] = {"steps": state["global_step"], "curve": curve[:: max(1, len(curve) // 40)]}
    (preset / LOG_FILE).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    for path in (root / "instruct").iterdir():
        if path.is_file() and path.name not in OF_THE_RUN:
            shutil.copy(path, preset / path.name)
    to_bfloat16(preset / TRAINED_FILE)
    shutil.copytree(root / "instruct" / "lora", preset / "lora", ignore=LEFT_OUT, dirs_exist_ok=True)


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("frozen", "trained"))
    parser.add_argument("--root", type=Path, default=Path("runs/nano"))
    parser.add_argument("--preset", type=Path, help="by default the package's own")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preset = args.preset or preset_folder("7b").parent / "nano"
    preset.mkdir(parents=True, exist_ok=True)
    {"frozen": assemble_frozen, "trained": assemble_trained}[args.what](args.root, preset)
    logger.info("%s parts are in %s", args.what, preset)


if __name__ == "__main__":
    main()
