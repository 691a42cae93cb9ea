"""Where the frozen parts of a model are found: packaged presets, local folders, Hub repositories."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nextgpt.errors import ModelLoadError, first_line

PRESET_PREFIX = "preset:"
FILE_ENDINGS = (".bin", ".ckpt", ".json", ".pt", ".pth", ".safetensors")  # what is named so is a file, not a repository
_PRESETS = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """The presets that come with the package: folders that hold a `config.json`."""
    return sorted(folder.parent.name for folder in _PRESETS.glob("*/config.json"))


def preset_folder(name: str) -> Path:
    """The folder of a packaged preset, or of a part of one (`nano/encoder`).

    Raises:
        ModelLoadError: there is no such preset.
    """
    folder = _PRESETS / name
    if not folder.is_dir():
        raise ModelLoadError(f"preset {name!r} does not exist; the packaged presets are: {', '.join(preset_names())}")
    return folder


def resolve_model(name_or_path: str | Path) -> str:
    """A preset's name, a local folder or a Hub repository → the folder or repository to load from.

    Raises:
        ModelLoadError: it is none of the three.
    """
    name = str(name_or_path)
    if name in preset_names():
        return str(preset_folder(name))
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if is_repository_name(name):
        return name
    raise ModelLoadError(
        f"model {name!r} is neither a preset ({', '.join(preset_names())}), nor a folder, nor a Hub repository "
        "(organisation/name): check the spelling or give the path of a saved model"
    )


def is_repository_name(name: str) -> bool:
    """Whether `name` can be a Hub repository, `organisation/name`, and is no path: only then is the Hub asked for it."""
    parts = name.split("/")
    is_path = name.startswith((".", "~")) or "\\" in name or name.lower().endswith(FILE_ENDINGS) or Path(name).exists()
    return len(parts) == 2 and all(parts) and not is_path


def fetch_model(name_or_path: str | Path, revision: str | None = None, patterns: list[str] | None = None) -> Path:
    """Like `resolve_model`, but a Hub repository is downloaded (or found in the Hub's cache): always a folder.

    Raises:
        ModelLoadError: there is no such model, or it cannot be fetched.
    """
    location = resolve_model(name_or_path)
    return Path(location) if Path(location).is_dir() else fetch_repository(location, revision, patterns)


def fetch_repository(name: str, revision: str | None = None, patterns: list[str] | None = None) -> Path:
    """The folder of a Hub repository's snapshot in the Hub's cache; what is not there yet is downloaded.

    Args:
        patterns: of the files that are wanted; all by default.

    Raises:
        ModelLoadError: the Hub does not answer, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except hub_errors() as error:
        raise ModelLoadError(
            f"{name}: there is no such folder here, and the Hub did not give it ({hub_reason(error)}): "
            "check the name and the network, or give the path of a folder"
        ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What a call of huggingface_hub raises: the network's errors (some are no `OSError`), the Hub's, and the cache's."""
    from huggingface_hub.errors import HFValidationError, HTTPError

    return (OSError, HTTPError, HFValidationError)


def hub_reason(error: BaseException) -> str:
    """Why the Hub did not give something, in a few words."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so it was not asked"
    cause = error
    while cause is not None:
        if isinstance(cause, HTTPError) and not isinstance(cause, HfHubHTTPError):  # the Hub did not answer at all
            return f"no connection: {first_line(cause)}"
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


@dataclass(frozen=True)
class FrozenPart:
    """One frozen part of a model, as the configuration names it.

    Args:
        source: Hub repository, absolute path, path relative to the configuration (`./…` or `../…`) or
            `preset:<name>/<part>`.
        revision: of the Hub repository.
        kind: which class loads it, where there is a choice (`stable-diffusion`, `imagebind` …).
        config: another source that holds the configuration files only; by default `source` itself.
        license: of the weights, as published.
        size: of the download, in bytes.
        fingerprint: of the weights that a checkpoint was trained with (see `nextgpt.hub.fingerprints`).
    """

    source: str
    revision: str | None = None
    kind: str | None = None
    config: str | None = None
    license: str | None = None
    size: int | None = None
    fingerprint: str | None = None

    @classmethod
    def from_dict(cls, name: str, spec: dict) -> FrozenPart:
        try:
            return cls(**spec)
        except TypeError as error:
            raise ModelLoadError(f"frozen part {name!r} in the configuration: {error}") from None

    def to_dict(self) -> dict:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def location(self, base: str | Path | None = None) -> str:
        """`source` as a local folder or a Hub repository; relative paths start from `base`."""
        return _locate(self.source, base)

    def config_location(self, base: str | Path | None = None) -> str:
        """Like `location`, for the configuration files."""
        return _locate(self.config or self.source, base)

    def is_available(self, base: str | Path | None = None) -> bool:
        """Whether the weights are on this machine: a folder, or a snapshot in the Hub's cache."""
        from nextgpt.encoders import keeps_own_cache

        if keeps_own_cache(self.location(base)):
            return True
        return self.local_path(base) is not None

    def local_path(self, base: str | Path | None = None) -> Path | None:
        """The folder or file on this machine that holds the weights; None where there is none."""
        location = self.location(base)
        if Path(location).is_absolute():
            return Path(location) if Path(location).exists() else None
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(location, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        return folder if any(folder.rglob("*.safetensors")) or any(folder.rglob("*.bin")) else None


def _locate(source: str, base: str | Path | None) -> str:
    if source.startswith(PRESET_PREFIX):
        return str(preset_folder(source.removeprefix(PRESET_PREFIX)))
    if source.startswith("."):
        return str((Path(base or ".") / source).resolve())
    return source
