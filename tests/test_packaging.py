"""The package as users get it: wheel, editable install, plain clone. Knows file names and imports, not behaviour.

Each install goes into an environment of its own that sees this one's dependencies, but not this one's nextgpt.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = {"nextgpt": "nextgpt", "encoders": "nextgpt/encoders", "decoders": "nextgpt/decoders"}
ROOMS |= {"train": "nextgpt/train", "demo": "nextgpt/demo"}
PACKAGES = ("encoders", "decoders", "train", "train.nano", "demo", "media", "presets")
WHERE_THEY_ARE = f"""
import importlib.util
for package in {PACKAGES}:
    print(importlib.util.find_spec("nextgpt." + package).origin)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's standard output; its whole output in the failure if it fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Environment:
    """A virtual environment that shares the dependencies of the one the tests run in."""

    folder: Path
    elsewhere: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        environment = cls(folder, folder / "elsewhere")
        environment.elsewhere.mkdir()
        # A folder named in a .pth file joins the path, but its own .pth files (an editable nextgpt) are not read.
        (environment.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return environment

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def install(self, *arguments: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python", "--disable-pip-version-check")
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet")
        run(*pip, "install", *options, *arguments, cwd=self.folder)

    def rooms(self, cwd: Path | None = None) -> list[Path]:
        """The files that the packages are imported from when Python starts in `cwd`; none is imported."""
        printed = run(self.folder / "bin" / "python", "-c", WHERE_THEY_ARE, cwd=cwd or self.elsewhere)
        return [Path(line) for line in printed.splitlines()]


def copy_sources(folder: Path, *, weights: bool) -> Path:
    """A copy of what an installation needs of a clone, with the `weights` hard-linked or without them."""
    skip = shutil.ignore_patterns("__pycache__", ".*", *([] if weights else ["*.safetensors"]))
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, folder / room, ignore=skip, copy_function=link_or_copy)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, folder)
    return folder


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("wheel sources"), weights=True)


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--wheel-dir", built)
    run(sys.executable, "-m", "pip", "wheel", *options, sources, cwd=sources)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp("installed") / "environment")
    environment.install(wheel)
    return environment


def test_the_wheel_holds_every_file_of_every_room_and_nothing_else(wheel: Path, sources: Path) -> None:
    expected = {
        f"{inside}/{path.relative_to(sources / room).as_posix()}"
        for room, inside in ROOMS.items()
        for path in (sources / room).rglob("*")
        if path.is_file()
        and not path.is_relative_to(sources / "demo" / "assets")  # README's pictures
        and not path.is_relative_to(sources / "train" / "nano" / "parts")  # on their way into the preset
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected, "see packages and package-data in pyproject.toml"


def test_an_installed_wheel_works_without_the_repository(installed: Environment) -> None:
    files = installed.rooms()
    assert all(file.is_relative_to(installed.site_packages / "nextgpt") for file in files), files
    imports = "; ".join(f"import nextgpt.{package}" for package in PACKAGES)
    run(installed.folder / "bin" / "python", "-c", imports, cwd=installed.elsewhere)


def test_the_installed_command_answers(installed: Environment) -> None:
    assert "usage: nextgpt" in run(installed.folder / "bin" / "nextgpt", "--help", cwd=installed.elsewhere)


def test_an_editable_install_uses_the_checkout_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a checkout").mkdir()
    checkout = copy_sources(tmp_path / "a checkout", weights=False)
    environment = Environment.create(tmp_path / "environment")
    environment.install("--editable", checkout)
    assert all(file.is_relative_to(checkout) for file in environment.rooms())
    assert all(file.is_relative_to(checkout) for file in environment.rooms(cwd=checkout))


def test_python_started_in_a_clone_uses_the_clone_even_after_a_plain_install(installed: Environment, tmp_path: Path) -> None:
    clone = copy_sources(tmp_path, weights=False)
    files = installed.rooms(cwd=clone)
    assert all(file.is_relative_to(clone) for file in files), files


def test_every_locked_version_satisfies_the_declared_dependencies() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    for requirement in map(Requirement, project["dependencies"] + extras):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"constraints.txt does not lock {name}"
        assert requirement.specifier.contains(locked[name]), f"{requirement} excludes the locked {locked[name]}"


def test_the_wheels_that_the_readme_names_are_the_locked_ones() -> None:
    named = re.findall(r"\b(torch\w*)==([\d.]+)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    locked = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(named) == 3 and all(f"{name}=={version}" in locked for name, version in named)
