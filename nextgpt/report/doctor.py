"""Checks whether things would work here: the environment, and a checkpoint with its frozen parts. Loads no weights."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from packaging.requirements import Requirement
from safetensors import SafetensorError, safe_open

from nextgpt import decoders as decoder_room
from nextgpt.adapters import title, weights_file
from nextgpt.checkpoint import STAGE_GROUPS, TRAINED_FILE
from nextgpt.decoders.sources import check_components, read_json, shared_components
from nextgpt.errors import NextGPTError, first_line
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.fingerprints import WEIGHTS, changed_part, describe_change, file_hash
from nextgpt.hub.parts import fetch_model
from nextgpt.report.info import RUN_FILE
from nextgpt.signals import SignalVocabulary

if TYPE_CHECKING:  # it takes seconds to import; a look at the environment does not need it
    from nextgpt.configuration_nextgpt import NextGPTConfig

CODECS = {"H.264 decoding": ("h264", "r"), "H.264 encoding": ("libx264", "w"), "AAC decoding": ("aac", "r")}
SHOWN = 3  # names of tensors in one line


class Finding(NamedTuple):
    """One line of the report.

    Args:
        works: False where something would not; None where it cannot be told.
        what: was looked at.
        detail: what was found, and what to do where it does not work.
    """

    works: bool | None
    what: str
    detail: str


def examine(model: str | None = None) -> list[Finding]:
    """Checks the environment and, where one is named, a model."""
    findings = list(_environment())
    if model is not None:
        findings += _model(model)
    return findings


# ---------------------------------------------------------------------- environment


def _environment() -> Iterator[Finding]:
    yield Finding(True, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _versions()
    device = resolve_device("auto")
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    yield Finding(True, "device", f"{device}, {dtype} by default, {torch.get_num_threads()} threads")
    yield _memory(device)
    yield from _codecs()


def _versions() -> Iterator[Finding]:
    try:
        wanted = [Requirement(line) for line in requires("nextgpt") or ()]
    except PackageNotFoundError:
        yield Finding(None, "versions", "nextgpt is not installed, so what it needs is not known; `pip install -e .`")
        return
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(False, requirement.name, f"not installed, {requirement.specifier} is needed: pip install it")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Finding(fits, requirement.name, found if fits else f"{found}, but {requirement.specifier} is needed")


def _memory(device: torch.device) -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return Finding(None, "memory", "this system does not say")
    detail = f"{total / 1e9:.1f} GB"
    if device.type != "cpu" and hasattr(torch.accelerator, "get_memory_info"):
        free, all_of_it = torch.accelerator.get_memory_info(device)
        detail += f"; {device}: {free / 1e9:.1f} of {all_of_it / 1e9:.1f} GB free"
    return Finding(True, "memory", detail)


def _codecs() -> Iterator[Finding]:
    import av
    import soundfile

    for what, (name, mode) in CODECS.items():
        try:
            av.codec.Codec(name, mode)
            yield Finding(True, what, f"{name} of FFmpeg, through av {av.__version__}")
        except av.codec.codec.UnknownCodecError:
            yield Finding(False, what, f"this av has no {name}: install the wheel of av from PyPI")
    sounds = [kind for kind in ("WAV", "FLAC", "OGG", "MP3") if kind in soundfile.available_formats()]
    yield Finding("WAV" in sounds, "sound files", f"{', '.join(sounds)} through {soundfile.__libsndfile_version__}")


# ---------------------------------------------------------------------- a model


def _model(name: str) -> Iterator[Finding]:
    from nextgpt.configuration_nextgpt import NextGPTConfig
    from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

    try:
        folder = fetch_model(name)
        config = NextGPTConfig.from_pretrained(folder)
    except NextGPTError as error:
        yield Finding(False, "model", str(error))
        return
    yield Finding(True, "model", f"{name} ({folder})")
    yield from _parts(config)
    try:
        with torch.device("meta"):
            empty = NextGPTForConditionalGeneration(config)
    except (OSError, ValueError, KeyError) as error:
        yield Finding(False, "configuration", f"no model can be built of it: {first_line(error)}")
        return
    trained = {name: tuple(tensor.shape) for name, tensor in empty.trained_state().items()}
    yield _tensors(folder / TRAINED_FILE, trained, "trained tensors")
    files = [TRAINED_FILE]
    if empty.adapter:
        files.append(weights_file(config.adapter))
        adapter = {name: tuple(tensor.shape) for name, tensor in empty.adapter.state().items()}
        yield _tensors(folder / files[-1], adapter, f"{title(config.adapter)} tensors")
    yield from _hashes(folder, files)
    yield from _conditioning(config, folder)
    yield _tokens(config, folder)
    yield _rows(config, folder)


def _parts(config: NextGPTConfig) -> Iterator[Finding]:
    for name, part in config.parts().items():
        size = f" ({part.size / 1e9:.1f} GB)" if part.size else ""
        works, detail = _attempt(lambda part=part: part.is_available(config.base_folder))
        if works and not detail:
            works, detail = False, f"{part.source}{size} is not here: `nextgpt download` fetches it, or name its folder"
        elif works and (path := part.local_path(config.base_folder)):  # open_clip keeps a cache of its own
            unused = decoder_room.DECODERS[part.kind].load_options if part.kind in decoder_room.DECODERS else ()
            works, detail = _attempt(lambda path=path, unused=unused: path.is_file() or check_weights(path, unused))
            if works and (found := changed_part(part, config.base_folder)):
                works, detail = False, describe_change(config, name, found)
        yield Finding(works, name.replace("_", " "), part.source if works else str(detail))


def check_weights(folder: Path, unused: Iterable[str] = ()) -> None:
    """Checks that a frozen part's folder has weights, that each file of them can be read, and that none is missing.

    Args:
        unused: parts of a diffusers pipeline that may be absent.

    Raises:
        OSError: names the first file that is not as it should be.
    """
    advice = "fetch it again with `nextgpt download`, or copy the whole folder"
    if (folder / "model_index.json").is_file():
        index = read_json(str(folder), "model_index.json")
        check_components(folder, index, unused=set(unused), elsewhere=shared_components(folder))
    if not any(file for pattern in WEIGHTS for file in folder.rglob(pattern)):
        raise OSError(f"{folder} holds no weights ({', '.join(WEIGHTS)}): {advice}")
    for index in folder.rglob("*.safetensors.index.json"):
        for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if not (index.parent / name).is_file():
                raise OSError(f"{index} names {name}, which is not there: {advice}")
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise OSError(f"{file} is broken ({first_line(error)}): {advice}") from None


def _attempt(check: Callable[[], object]) -> tuple[bool, object]:
    try:
        return True, check()
    except (NextGPTError, OSError, ValueError) as error:
        return False, first_line(error)


def _tensors(file: Path, expected: dict[str, tuple[int, ...]], what: str) -> Finding:
    """Every expected tensor is there with its shape, and none is left over."""
    try:
        with safe_open(file, "pt") as content:
            found = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}
    except (OSError, SafetensorError) as error:
        return Finding(False, what, f"{file.name} cannot be read ({first_line(error)}): train one, or copy it again")
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected]
    other = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}"
        for kind, names in (("missing", missing), ("left over", left_over), ("of another shape", other))
        if names
    ]
    if problems:
        return Finding(False, what, f"{file.name}: {'; '.join(problems)}; use the configuration it was trained with")
    return Finding(True, what, f"all {len(expected)} in {file.name}")


def _hashes(folder: Path, files: list[str]) -> Iterator[Finding]:
    """Compares the hashes of the trained weights with those in the run's metadata."""
    try:
        written = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["hashes"]
    except (OSError, ValueError, KeyError):
        written = {}
    for name in files:
        if not (folder / name).is_file():
            continue
        found = file_hash(folder / name)
        if name not in written:
            yield Finding(None, "hash", f"{name} {found[:16]}…, and no {RUN_FILE} says what it should be")
        elif written[name] == found:
            yield Finding(True, "hash", f"{name} {found[:16]}…")
        else:
            yield Finding(False, "hash", f"{name} is {found[:16]}…, the run wrote {written[name][:16]}…: copy it again")


def _conditioning(config: NextGPTConfig, folder: Path) -> Iterator[Finding]:
    """The output projections give what the decoders' own files ask for, not only what a copy of them says."""
    for modality in config.signal_tokens:
        part = config.part(modality)
        where = (part.kind, config.location(modality), part.revision)
        if _attempt(lambda part=part: part.is_available(config.base_folder)) != (True, True):
            yield Finding(None, f"{modality} conditioning", "the decoder is not here, so its width is not known")
            continue
        works, spec = _attempt(lambda where=where: decoder_room.conditioning_spec(*where))
        if not works:
            yield Finding(False, f"{modality} conditioning", str(spec))
            continue
        found = _projection_shapes(folder, modality)
        if not found:
            yield Finding(None, f"{modality} conditioning", "no trained projection to compare with")
            continue
        first, *further = ((name, tensor) for name, tensor in spec.items() if tensor.is_projected)
        takes = {"": first[1], **dict(further)}
        takes = {name: (tensor.queries, tensor.width) for name, tensor in takes.items()}
        detail = decoder_room.describe_shapes(found.values())
        if found != takes:
            shapes = decoder_room.describe_shapes(takes.values())
            detail += f", but the decoder {part.source} takes {shapes}: name the decoder it was trained for"
        yield Finding(found == takes, f"{modality} conditioning", detail)


def _projection_shapes(folder: Path, modality: str) -> dict[str, tuple[int, int]]:
    """(queries, width) of each tensor that the trained projection makes, by name; the first one goes by an empty name."""
    prefix = f"output_projections.{modality}."
    shapes = {}
    try:
        with safe_open(folder / TRAINED_FILE, "pt") as content:
            for key in content.keys():
                if key.startswith(prefix) and key.endswith("query_embs"):
                    head = key.removesuffix("query_embs")
                    width = content.get_slice(f"{head}model.weight").get_shape()[0]
                    name = head.removeprefix(prefix).removeprefix("heads.").rstrip(".")
                    shapes[name] = (content.get_slice(key).get_shape()[1], width)
    except (OSError, SafetensorError):
        return {}
    return dict(sorted(shapes.items()))


def _tokens(config: NextGPTConfig, folder: Path) -> Finding:
    """The signal tokens stand in the tokenizer at the ids where the model looks for them."""
    from nextgpt.processing_nextgpt import NextGPTProcessor

    works, processor = _attempt(lambda: NextGPTProcessor.from_pretrained(folder))
    if not works:
        return Finding(False, "signal tokens", str(processor))
    expected = SignalVocabulary.create(config.signal_tokens, config.input_modalities, config.token_offset)
    if processor.vocabulary != expected:
        return Finding(
            False, "signal tokens", f"the tokenizer has {processor.vocabulary}, the model needs {expected}: copy both again"
        )
    runs = ", ".join(f"{len(ids)} {modality}" for modality, ids in expected.runs.items())
    return Finding(True, "signal tokens", f"{runs} from id {expected.offset} on")


def _rows(config: NextGPTConfig, folder: Path) -> Finding:
    """The signal tokens' rows were trained: without that no media ever come."""
    try:
        with safe_open(folder / TRAINED_FILE, "pt") as content:
            rows = [content.get_tensor(f"signal_rows.{side}").float() for side in ("input", "output")]
    except (OSError, SafetensorError) as error:
        return Finding(False, "signal rows", f"cannot be read ({first_line(error)})")
    if not all(torch.isfinite(each).all() and len(each.unique(dim=0)) == len(each) for each in rows):
        return Finding(False, "signal rows", "they hold numbers that are not finite, or equal rows: train stage 2 again")
    if config.trained_groups is None:
        return Finding(None, "signal rows", "finite and distinct; whether they were trained is not written down")
    if "signal_rows" not in config.trained_groups:
        untrained = ", ".join(group for group in STAGE_GROUPS if group not in config.trained_groups)
        return Finding(False, "signal rows", f"not trained yet ({untrained}): no media will come; train stage 2")
    return Finding(True, "signal rows", f"trained, with {', '.join(config.trained_groups)}")
