"""Puts the nano model together: frozen parts into one folder, then what the three stages trained. Copies, trains nothing.

`python -m nextgpt.train.nano.assemble frozen` copies the frozen parts into `<root>/preset` and writes the configuration
that `models.initial` makes a model of; `… trained` copies the last stage's result into the preset, which makes it a whole
model; `… ship` copies that into the package.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders.sources import SHARED_FILE
from nextgpt.encoders import ImageBind, ImageBindConfig
from nextgpt.hub.parts import preset_folder
from nextgpt.report.info import KNOWN_FILE
from nextgpt.train.data.files import whole_file
from nextgpt.train.nano.evaluation.classifiers import FOLDERS
from nextgpt.train.nano.models.loop import LOG_FILE, thinned
from nextgpt.train.nano.world.clips import ClipWorld
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SoundWorld

logger = logging.getLogger(__name__)

DECODERS = {  # what it makes → its kind and its folder
    "image": ("stable-diffusion-3", "image_decoder"),
    "audio": ("stable-diffusion-3-spectrograms", "sound_decoder"),
    "video": ("stable-diffusion-3-clips", "clip_decoder"),
}
SHIPPED = (
    "encoder",
    "language_model",
    *(folder for _, folder in DECODERS.values()),
    *FOLDERS.values(),
)
INSIDE = ("autoencoder", "text_encoder", "clip_text_encoder", "sound_autoencoder", "sound_text_encoder")
SHARED = {"clip_decoder": {"vae": "../image_decoder/vae"}}
STAGES = ("align_encoders", "align_decoders", "instruct", "output_projections")  # in turn; the last one's result is shipped
MOST_BYTES, MOST_FILE_BYTES = 100_000_000, 20_000_000
LEFT_OUT = ("checkpoint*", "*.work", LOG_FILE, "*.png", "README.md", "runs")
OF_THE_RUN = ("trainer_state.json", "training_args.bin", "run.json", "README.md", "skipped.jsonl")  # not of the preset
CURVE_ROWS = 40  # of a stage's curve that are kept, at most
LICENCE = "Apache-2.0; trained on artwork listed in ATTRIBUTION.md"


def new_config(
    parts: str = "preset:nano",
    takes: Sequence[str] = ("image",),
    makes: Sequence[str] = ("image",),
    folder: str | Path = "",
) -> NextGPTConfig:
    """The nano model: every number that is not its frozen parts' own.

    Args:
        parts: where the frozen parts' folders lie.
        takes, makes: which modalities, beside text.
        folder: an existing one that relative places of parts start from.
    """
    return NextGPTConfig(
        language_model={"source": f"{parts}/language_model", "license": LICENCE},
        encoder={"kind": "imagebind", "source": f"{parts}/encoder", "license": LICENCE},
        decoders={
            modality: {"kind": kind, "source": f"{parts}/{folder}", "license": LICENCE}
            for modality, (kind, folder) in DECODERS.items()
            if modality in makes
        },
        input_modalities=list(takes),
        output_projection={"hidden_size": 128, "num_layers": 2, "num_heads": 4},
        adapter={"peft_type": "LORA", "r": 16, "lora_alpha": 32},
        name_or_path=str(folder),
    )


def made(root: Path, part: str) -> bool:
    """Whether a part is there: its folder appears when its making begins, its log when it is done."""
    return (root / part / LOG_FILE).is_file()


def assemble_frozen(root: Path, preset: Path) -> None:
    """Copies the frozen parts and the classifiers that are there, gathers the logs, and writes `root/model/config.json`.

    Pictures are always there. Clips are taken and made if there is a decoder of clips; sounds are taken if there is an
    audio tower, and made if there is a decoder of sounds.
    """
    logs = {}
    for part in (*SHIPPED, "audio_encoder", *INSIDE):
        if not made(root, part):
            continue
        logs[part] = json.loads((root / part / LOG_FILE).read_text(encoding="utf-8"))
        if part in SHIPPED:
            shared = SHARED.get(part, {})
            shutil.rmtree(preset / part, ignore_errors=True)
            copy_folder(root / part, preset / part, shared)
            if shared:
                (preset / part / SHARED_FILE).write_text(json.dumps(shared) + "\n", encoding="utf-8")
    if made(root, "audio_encoder"):
        join_towers([root / "encoder", root / "audio_encoder"], preset / "encoder")
    (preset / LOG_FILE).write_text(json.dumps(logs, indent=1) + "\n", encoding="utf-8")
    copy_world(World(root / "world"), preset / "world")
    shutil.copy(root / "world" / "ATTRIBUTION.md", preset / "ATTRIBUTION.md")

    makes = ["image", *(modality for modality in ("audio", "video") if made(root, DECODERS[modality][1]))]
    takes = ["image", *["audio"] * made(root, "audio_encoder"), *["video"] * ("video" in makes)]
    if "audio" in {*takes, *makes}:
        SoundWorld(root / "world").copy(preset / "world")
    known = json.dumps(known_names(preset / "world", {"image", *takes, *makes}), indent=1, ensure_ascii=False)
    (preset / KNOWN_FILE).write_text(f"{known}\n", encoding="utf-8")
    model = root / "model"
    model.mkdir(exist_ok=True)
    new_config(relative_path(preset, model), takes=takes, makes=makes, folder=model).save_pretrained(model)


def relative_path(folder: Path, start: Path) -> str:
    """A folder as a configuration in another one names it, beginning with a dot."""
    path = Path(os.path.relpath(folder, start)).as_posix()
    return path if path.startswith("..") else f"./{path}"


def known_names(folder: Path, modalities: Iterable[str] = DECODERS) -> dict[str, list[str]]:
    """What a built world holds, as `nextgpt.report.info.known_world` gives it.

    Args:
        folder: of the world.
        modalities: that the model takes or makes.
    """
    world, known = World(folder), {}
    if "image" in modalities:
        known |= {"things": world.names, "styles": list(world.styles)}
        known |= {"backgrounds": list(world.backgrounds), "sizes": list(world.sizes)}
    if "audio" in modalities:
        sounds = SoundWorld(folder)
        known |= {"sounds": sounds.names}
        known |= {"sounds without pitch": [sound["name"] for sound in sounds.sounds if not sound["pitched"]]}
        known |= {"registers": list(sounds.registers), "figures": list(sounds.figures)}
    if "video" in modalities:
        clips = ClipWorld(world)
        known |= {"filmed things": clips.names, "motions": list(clips.motions)}
    return known


def copy_folder(source: Path, target: Path, left_out: Iterable[str] = ()) -> None:
    """Copies a saved part over what is there, without what only its making needs and without what is named."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT, *left_out), dirs_exist_ok=True)


def join_towers(folders: Sequence[Path], out: Path) -> None:
    """Saves one encoder with the towers of several; what is not a tower's own is the first one's.

    Raises:
        RuntimeError: when their embeddings are not equally wide.
    """
    first, *others = encoders = [ImageBind.from_pretrained(folder, dtype=torch.bfloat16) for folder in folders]
    numbers = first.config.to_dict()
    for other in others:
        own = tuple(f"{tower}_" for tower in other.config.towers)
        numbers |= {name: value for name, value in other.config.to_dict().items() if name.startswith(own)}
    towers = tuple(tower for encoder in encoders for tower in encoder.config.towers)
    joined = ImageBind(ImageBindConfig.from_dict(numbers | {"towers": towers})).bfloat16()
    joined.load_state_dict({name: value for encoder in encoders for name, value in encoder.state_dict().items()})
    joined.save_pretrained(out, max_shard_size="20MB")


def check_sizes(preset: Path, *more: Path) -> None:
    """Says how large the weights of the preset are, with those of further files in its folder.

    Raises:
        ValueError: when a file or all together are larger than the package may hold.
    """
    sizes = {path: path.stat().st_size for path in (*preset.rglob("*.safetensors"), *more)}
    folders = Counter()
    for path, size in sizes.items():
        folders[path.relative_to(preset).parts[0]] += size
    listed = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in folders.most_common(12))
    logger.info("%.1f MB: %s", sum(sizes.values()) / 1e6, listed)
    large = [str(path) for path, size in sizes.items() if size > MOST_FILE_BYTES]
    if large or sum(sizes.values()) > MOST_BYTES:
        raise ValueError(
            f"{preset} holds {sum(sizes.values()) / 1e6:.1f} MB, expected at most {MOST_BYTES / 1e6:.0f} and at most "
            f"{MOST_FILE_BYTES / 1e6:.0f} a file (larger: {', '.join(large) or 'none'}). In MB: {listed}. "
            "Make a part smaller."
        )


def copy_world(world: World, folder: Path) -> None:
    """Copies what the evaluation needs of the world; of the artwork from outside it only what no part learned from."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("world.json", "art.npz"):
        shutil.copy(world.folder / file, folder / file)
    outside = np.zeros_like(world.outside)
    kept = [number for split in ("dev", "heldout") for number in world.outside_numbers(split)]
    outside[kept] = world.outside[kept]
    np.savez_compressed(folder / "outside.npz", art=outside)


def to_bfloat16(file: Path, out: Path) -> None:
    """Writes a safetensors file half as large."""
    with safe_open(file, "pt") as tensors:
        halved = {name: tensors.get_tensor(name).bfloat16() for name in tensors.keys()}  # noqa: SIM118
        metadata = tensors.metadata()
    save_file(halved, out, metadata=metadata)


def assemble_trained(root: Path, preset: Path) -> None:
    """Copies what the last stage saved, and adds the stages' curves to the log."""
    log = json.loads((preset / LOG_FILE).read_text(encoding="utf-8"))
    for stage in STAGES:
        state = json.loads((root / stage / "trainer_state.json").read_text(encoding="utf-8"))
        curve = [row for row in state["log_history"] if "loss" in row]
        log[stage] = {"steps": state["global_step"], "curve": thinned(curve, CURVE_ROWS)}
    (preset / LOG_FILE).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    last = root / STAGES[-1]
    for path in last.iterdir():
        if path.is_file() and path.name not in (*OF_THE_RUN, TRAINED_FILE):
            shutil.copy(path, preset / path.name)
    copy_folder(last / "lora", preset / "lora")
    (preset / TRAINED_FILE).unlink(missing_ok=True)
    with whole_file(preset / TRAINED_FILE) as beside:  # which comes last: where it lies, all is done
        to_bfloat16(last / TRAINED_FILE, beside)
        check_sizes(preset, beside)


def ship(made_in: Path, preset: Path) -> None:
    """Replaces a preset of the package by a whole model; its parts are named as the package's own from then on."""
    shutil.rmtree(preset, ignore_errors=True)
    shutil.copytree(made_in, preset)
    config = json.loads((preset / "config.json").read_text(encoding="utf-8"))
    for part in (config["language_model"], config["encoder"], *config["decoders"].values()):
        part["source"] = f"preset:{preset.name}/{Path(part['source']).name}"
    (preset / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("frozen", "trained", "ship"))
    parser.add_argument("--root", type=Path, default=Path("runs/nano"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preset = args.root / "preset"
    preset.mkdir(parents=True, exist_ok=True)
    match args.what:
        case "frozen":
            assemble_frozen(args.root, preset)
        case "trained":
            assemble_trained(args.root, preset)
        case "ship":
            ship(preset, preset_folder("7b").parent / "nano")
    logger.info("%s: done in %s", args.what, args.root)


if __name__ == "__main__":
    main()
