"""A decoder's files, in a local folder or a Hub repository."""

import importlib
import inspect
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHARED_FILE = "shared_components.json"
LOADING = threading.RLock()  # transformers and diffusers change torch, for all threads, while they load a model


def local_folder(source: str) -> Path | None:
    """The folder that `source` names, or None where it can only be a Hub repository."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def read_json(source: str, filename: str, revision: str | None = None) -> dict:
    """Read one JSON file of a decoder; of a Hub repository this one file is downloaded, never the weights.

    Raises:
        OSError: the source or the file does not exist, or the file is not a JSON object.
    """
    folder = local_folder(source)
    path = folder / filename if folder else _download(source, filename, revision)
    if not path.is_file():
        raise OSError(
            f"The decoder folder {folder} has no {filename}. "
            "Copy the whole folder that `save_pretrained` or `hf download` made."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not valid JSON ({error}). Restore it from where it came.") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds a {type(content).__name__}, expected a JSON object. Restore it from where it came.")
    return content


def read_config(source: str, component: str, revision: str | None = None, filename: str = "config.json") -> dict:
    """One JSON file of a part of the pipeline, wherever `SHARED_FILE` says that the part lies; errors as of `read_json`."""
    folder = local_folder(source)
    elsewhere = shared_components(folder).get(component) if folder else None
    if elsewhere is not None:
        if not elsewhere.is_dir():
            raise OSError(f"The decoder folder {folder} lacks its part '{component}': {SHARED_FILE} names {elsewhere}.")
        return read_json(str(elsewhere), filename)
    return read_json(source, f"{component}/{filename}", revision)


class PartConfig(dict):
    """A part's configuration, in which a key that an older file does not name has the default of its class in diffusers.

    Raises:
        ValueError: at a key that neither has.
    """

    def __init__(self, values: dict, where: str):
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        import diffusers

        part_class = getattr(diffusers, self.get("_class_name", ""), None)
        default = inspect.signature(part_class).parameters.get(key) if part_class else None
        if default is None or default.default is inspect.Parameter.empty:
            raise ValueError(f"{self.where} does not say its '{key}'. Restore it from where it came.")
        return default.default


def required_size(config: dict, key: str, source: str) -> int:
    """`config[key]`, which must be a whole number above 0."""
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"{source}: expected a whole number above 0 for '{key}' in its configuration, got {value!r}.")
    return value


def read_text_length(source: str, config: dict, revision: str | None, tokenizer: str = "tokenizer") -> int:
    """Tokens that a CLIP text encoder of this configuration reads, which its tokenizer pads to."""
    length = required_size(config, "max_position_embeddings", source)
    tokenizer_config = read_config(source, tokenizer, revision, filename="tokenizer_config.json")
    padded_length = required_size(tokenizer_config, "model_max_length", source)
    if length != padded_length:
        raise ValueError(
            f"{source}: its tokenizer pads to model_max_length={padded_length} tokens, but its text encoder has "
            f"max_position_embeddings={length}. Correct {tokenizer}/tokenizer_config.json."
        )
    return length


def read_t5_shape(source: str, revision: str | None, most: int | None = None) -> tuple[int, int]:
    """States of a T5 text encoder and their width: as many as its tokenizer pads to, or `most` where that is fewer."""
    tokenizer = read_config(source, "tokenizer", revision, filename="tokenizer_config.json")
    length = required_size(tokenizer, "model_max_length", source)
    width = required_size(read_config(source, "text_encoder", revision), "d_model", source)
    return (length if most is None else min(length, most)), width


def exceed(tokenizer: Any, captions: list[str], length: int) -> bool:
    """Whether one of the captions has more tokens than `length`."""
    return any(len(ids) > length for ids in tokenizer(captions, truncation=True, max_length=length + 1).input_ids)


def _download(source: str, filename: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise OSError(unreachable(source, revision, filename, error)) from error


def unreachable(source: str, revision: str | None, wanted: str, error: Exception) -> str:
    """What to tell a user whose `source` is no folder and could not be had from the Hub either."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    at = f" at revision {revision}" if revision else ""
    return (
        f"No {wanted} for the decoder '{source}'{at}: no such folder, and the Hub did not give it ({reason}). "
        f"Correct the path, or run `hf download {source}` where there is a network."
    )


def part_patterns(source: str, patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns such as `vae/*`, with the part's folder as `SHARED_FILE` names it: `../image_decoder/vae/*`."""
    folder = local_folder(source)
    if folder is None or not (folder / SHARED_FILE).is_file():
        return tuple(patterns)
    where = read_json(source, SHARED_FILE)
    parts = (pattern.partition("/") for pattern in patterns)
    return tuple(f"{where.get(name, name)}{slash}{rest}" if slash else name for name, slash, rest in parts)


def shared_components(folder: Path) -> dict[str, Path]:
    """The parts that `SHARED_FILE` says lie in another pipeline's folder: part name → its folder; none without it."""
    if not (folder / SHARED_FILE).is_file():
        return {}
    return {name: (folder / where).resolve() for name, where in read_json(str(folder), SHARED_FILE).items()}


def part_class(library: str, name: str) -> type:
    """The class of a part, by its entry in `model_index.json`."""
    import diffusers

    if hasattr(diffusers.pipelines, library):  # a model that is made for one pipeline
        library = f"diffusers.pipelines.{library}"
    return getattr(importlib.import_module(library), name)


def check_components(folder: Path, index: dict, unused: set[str], elsewhere: dict[str, Path]) -> None:
    """Check that every part that `model_index.json` lists is in `folder`, its weights as safetensors.

    Args:
        index: the content of `model_index.json`: part name → [library, class name].
        unused: parts that will not be loaded and may be absent.
        elsewhere: the folders of parts that are not in `folder`.

    Raises:
        OSError: names the first part that is missing or not loadable, and what to do.
    """
    if strange := sorted(set(elsewhere) - set(index)):
        raise OSError(
            f"{folder / SHARED_FILE} names a part '{strange[0]}' that the pipeline lacks. "
            f"It has: {', '.join(name for name, entry in index.items() if isinstance(entry, list))}. Correct the name."
        )
    for name, entry in index.items():
        if name in unused or not isinstance(entry, list) or entry[-1] is None:
            continue
        part = elsewhere.get(name, folder / name)
        if not any(part.glob("*.json")):
            raise OSError(
                f"The decoder folder {folder} lacks its part '{name}' ({entry[-1]}): expected {part} with its "
                "configuration. Copy the whole folder that `save_pretrained` or `hf download` made."
            )
        # Of the parts, only models have a plain config.json; schedulers and tokenizers keep other names.
        if not (part / "config.json").is_file() or any(part.glob("*.safetensors")):
            continue
        if any(part.glob("*.bin")):
            raise OSError(
                f"{part} has its weights as .bin only, a pickle, which is never executed here. Expected .safetensors: "
                "use a revision that has them, or convert the folder once with diffusers' `save_pretrained`."
            )
        raise OSError(
            f"{part} has a configuration but no weights. Expected .safetensors files beside its config.json: "
            "put them there, or name the complete repository or folder as the source."
        )


@contextmanager
def capture_log_messages(name: str, word: str) -> Iterator[list[str]]:
    """Messages of the logger `name` with this word in them are not logged but listed."""
    held: list[str] = []

    def passes(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if word in message:
            held.append(message)
        return word not in message

    library = logging.getLogger(name)
    library.addFilter(passes)
    try:
        yield held
    finally:
        library.removeFilter(passes)
