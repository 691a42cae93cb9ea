"""The plan of the house, checked on the source text: who imports whom, and what library code never does.

It reads the rooms' Python files and runs almost none of them; what the code computes is tested in each room.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# What each room may import besides itself. `nextgpt` is the assistant: what stands in nextgpt/ and in no other room.
MAY_IMPORT = {
    "encoders": set(),
    "decoders": set(),
    "nextgpt": {"encoders", "decoders"},
    "train": {"nextgpt", "encoders", "decoders"},
    "demo": {"nextgpt"},
}
COMMAND_LINE = REPOSITORY / "nextgpt" / "cli"
HEAVY = ("torch", "torchaudio", "torchvision", "transformers", "diffusers", "peft", "open_clip", "gradio", "av")
FILES = [path for room in MAY_IMPORT for path in sorted((REPOSITORY / room).rglob("*.py"))]
PROVIDERS = packages_distributions()  # module → the distributions that install it
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


class Import(NamedTuple):
    name: str  # dotted, absolute
    in_function: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file. `from a import b` counts as `a.b`, since `b` may be a module."""
    relative = path.relative_to(REPOSITORY).with_suffix("")
    parts = relative.parts if relative.parts[0] == "nextgpt" else ("nextgpt", *relative.parts)

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(parts[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, (package, node.module)))
            yield from (Import(f"{origin}.{alias.name}", in_function) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    return visit(ast.parse(path.read_text()), False)


def room_of(name: str) -> str | None:
    """The room that a module belongs to; None for other people's modules."""
    package, *inside = name.split(".")
    if package != "nextgpt":
        return None
    return inside[0] if inside and inside[0] in MAY_IMPORT else "nextgpt"


MOST_LINES, MOST_FILES = (
    450,
    15,
)  # of a file, and in a folder beside its __init__ and __main__: a room is read in one sitting
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", sorted({path.parent for path in (*FILES, *TESTS)}), ids=lambda path: path.name)
def test_a_folder_is_read_in_one_sitting(folder: Path) -> None:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(("__", "."))]
    assert len(files) <= MOST_FILES, f"{folder.relative_to(REPOSITORY)} holds {len(files)} files"


@every_file
def test_imports_between_rooms_run_one_way(path: Path) -> None:
    here = path.relative_to(REPOSITORY).parts[0]
    for name, in_function in imports(path):
        there = room_of(name)
        if there in (None, here) or there in MAY_IMPORT[here]:
            continue
        door = COMMAND_LINE in path.parents and in_function and there in ("train", "demo")
        assert door, f"{here}/ must not import {name}"


@every_file
def test_every_import_is_declared_in_pyproject(path: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = [line for name, extra in project["optional-dependencies"].items() if name != "test" for line in extra]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"] + optional}
    for name, _ in imports(path):
        module = name.split(".")[0]
        if module in sys.stdlib_module_names or module == "nextgpt":
            continue
        providers = {canonicalize_name(provider) for provider in PROVIDERS.get(module, [module])}
        assert providers & declared, f"{module} comes from {providers}, which pyproject.toml does not declare"


@every_file
def test_library_code_names_no_device_and_prints_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    is_program = COMMAND_LINE in path.parents or 'if __name__ == "__main__":' in path.read_text()
    for node in ast.walk(tree):
        where = f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert not re.search(r"\bcuda\b", node.value), f"{where}: the caller or torch.accelerator names it"
        if isinstance(node, ast.Attribute):
            assert node.attr != "cuda", f"{where}: torch.accelerator and .to(device) work everywhere"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not is_program:
            assert node.func.id != "print", f"{where}: use logging; only programs print"


# The original project's own order of its tokens, and nano's world, which holds pictures, sounds and clips.
OWN_KINDS = ("nextgpt/hub/convert_nextgpt_checkpoint.py", "train/nano/", "nextgpt/modalities.py")


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(REPOSITORY).parts[0] in ("nextgpt", "train", "demo")],
    ids=lambda path: path.relative_to(REPOSITORY).as_posix(),
)
def test_what_differs_between_modalities_is_said_in_their_table(path: Path) -> None:
    if path.relative_to(REPOSITORY).as_posix().startswith(OWN_KINDS):
        return
    kinds = {"image", "audio", "video"}
    for node in ast.walk(ast.parse(path.read_text())):
        said = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        listed = {each.value for each in said if isinstance(each, ast.Constant)} & kinds
        where = f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}"
        assert len(listed) < 2, f"{where}: make a list or table of kinds a field of nextgpt.modalities.Modality"
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        told_apart = kinds & {each.value for each in compared if isinstance(each, ast.Constant)}
        assert not told_apart, f"{where}: a field of nextgpt.modalities.Modality tells {told_apart} from other kinds"
    assert not any(name == "nextgpt.signals.MODALITIES" for name, _ in imports(path)), "nextgpt.modalities has plug-ins too"


@every_file
def test_public_functions_have_type_hints(path: Path) -> None:
    def visible(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for child in getattr(node, "body", []):
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from visible(child)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                yield child

    for function in visible(ast.parse(path.read_text())):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        where = f"{path.relative_to(REPOSITORY)}:{function.lineno} {function.name}"
        assert not bare, f"{where}: no type hint for {', '.join(bare)}"
        assert function.returns is not None, f"{where}: no type hint for what it returns"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["chat", "--help"],
        ["train", "encoders", "--help"],
        ["data", "check", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    program = f"""
import sys
from nextgpt.__main__ import main
sys.argv = ["nextgpt", *{arguments!r}]
try:
    main()
except SystemExit as finished:
    assert not finished.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded for the help: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: nextgpt" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["doctor"], ("diffusers", "transformers.modeling_utils")),
        (["info", "nano"], ("diffusers",)),
    ],
    ids=" ".join,
)
def test_a_report_loads_no_library_that_it_does_not_need(arguments: list[str], heavy: tuple[str, ...]) -> None:
    program = f"""
import sys
from nextgpt.__main__ import main
main({arguments!r})
loaded = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"loaded for the report: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_rooms_load_the_heavy_libraries_only_where_they_are_used() -> None:
    heavy = ("diffusers", "gradio", "open_clip", "av", "soundfile", "torchaudio")
    program = f"""
import sys
import nextgpt.encoders, nextgpt.decoders, nextgpt.train, nextgpt.demo
loaded = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"loaded by importing the rooms: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_that_wait_do_not_spin_for_long_unless_somebody_said_so() -> None:
    program = "import os, nextgpt; print(os.environ.get('GOMP_SPINCOUNT'))"
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, expected in (({}, "3000"), ({"GOMP_SPINCOUNT": "9"}, "9"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=REPOSITORY, env={**own, **given}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


PRESET_7B = REPOSITORY / "nextgpt" / "presets" / "7b"
# As published: the model cards of Stable Diffusion v1.5, AudioLDM (975M), Zeroscope (ModelScope's 1.7 B, plus VAE).
PARAMETERS_7B = {
    "image_decoder": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "audio_decoder": {"unet": 739_139_080, "vae": 55_376_873, "text_encoder": 125_302_016, "vocoder": 55_264_897},
    "video_decoder": {"unet": 1_411_233_860, "vae": 83_653_863, "text_encoder": 340_387_840},
}


@pytest.mark.parametrize("part", PARAMETERS_7B)
def test_the_7b_decoders_are_built_from_the_packaged_files_at_their_published_size(part: str) -> None:
    import diffusers
    import torch
    import transformers

    found = {}
    components = json.loads((PRESET_7B / part / "model_index.json").read_text())
    for name in PARAMETERS_7B[part]:
        library, class_name = components[name]
        with torch.device("meta"):
            if library == "diffusers":
                model_class = getattr(diffusers, class_name)
                model = model_class.from_config(model_class.load_config(PRESET_7B / part / name))
            else:
                model_class = getattr(transformers, class_name)
                model = model_class(model_class.config_class.from_pretrained(PRESET_7B / part / name))
        found[name] = sum(parameter.numel() for parameter in model.parameters())
    assert found == PARAMETERS_7B[part]


def test_the_7b_encoder_is_imagebind_huge() -> None:
    import torch

    from nextgpt.encoders import encoder_config, encoder_from_config, imagebind_huge_config

    config = encoder_config(PRESET_7B / "encoder")
    with torch.device("meta"):
        encoder = encoder_from_config(config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 1_200_781_057
    written, defaults = config.to_dict(), imagebind_huge_config().to_dict()
    assert written | {"architectures": None} == defaults | {"architectures": None}


def test_the_7b_language_model_is_vicuna_7b() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(PRESET_7B / "language_model"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_738_415_616
