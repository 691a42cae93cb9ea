"""No test may need the network, however pytest was started; and what tests of every room share."""

import logging
import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # its share of the processor, and of whatever it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
SILENCED = ("accelerate", "diffusers", "huggingface_hub", "open_clip", "peft", "py.warnings", "torch", "transformers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test printed travels from its worker as UTF-8, though a file's name in it need not be."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="module")
def one_thread():
    """Runs a file's tests on one processor thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def libraries_speak_again():
    """A command that is run inside a test silences libraries for its process: the next test hears them again."""
    levels = {name: logging.getLogger(name).level for name in SILENCED}
    verbosity = os.environ.get("DIFFUSERS_VERBOSITY")
    yield
    os.environ.pop("DIFFUSERS_VERBOSITY", None)
    if verbosity is not None:
        os.environ["DIFFUSERS_VERBOSITY"] = verbosity
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for name in ("diffusers", "transformers"):
        if library := sys.modules.get(f"{name}.utils.logging"):
            library.enable_progress_bar()


@pytest.fixture(scope="module")  # while it is there, nothing else in the process may call `asyncio.run`
def browser():
    """A headless Chromium. Where there is none the tests are skipped, but not where one is promised (.ci/run)."""
    from nextgpt.demo import screenshots
    from nextgpt.errors import UserInputError

    try:
        with screenshots.browser() as opened:
            yield opened
    except UserInputError as missing:
        if os.environ.get("NEXTGPT_REQUIRE_BROWSER"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
