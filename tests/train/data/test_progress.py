"""What the bars of the data tools count: conversations that are done, out of those there are."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from nextgpt.train.data.check import check_files
from nextgpt.train.data.dataset import ChatDataset, Reader
from nextgpt.train.data.lines import with_progress
from nextgpt.train.start import load_processor
from tiny_training import naming, write_lines


@pytest.fixture
def data(world, tmp_path) -> str:
    """Three conversations, and a line that is none."""
    file = Path(write_lines(world / "counted.jsonl", [naming(color) for color in ("red", "blue", "green")]))
    file.write_text(file.read_text(encoding="utf-8").replace("\n", "\n   \n", 1), encoding="utf-8")
    return str(file)


def test_a_check_counts_the_conversations(world, data, capsys) -> None:
    check_files([data], str(world / "model"), workers=0)
    assert "Checking: 100%" in (shown := capsys.readouterr().err) and " 3/3 " in shown


@pytest.mark.parametrize("workers", [0, 1])
def test_tokenizing_counts_what_is_tokenized(world, data, tmp_path, capsys, workers) -> None:
    from nextgpt.configuration_nextgpt import NextGPTConfig

    location = world / "model"
    processor = load_processor(location, NextGPTConfig.from_pretrained(location))
    ChatDataset([data], Reader(processor), folder=tmp_path, workers=workers)
    assert "Tokenizing: 100%" in (shown := capsys.readouterr().err) and " 3/3 " in shown


def test_an_estimate_leaves_out_how_long_the_first_result_was_awaited(capsys) -> None:
    def results():
        time.sleep(0.5)
        for number in range(30):
            yield number
            time.sleep(0.01)

    for _ in with_progress(results(), "Reading", total=100_000):
        pass
    estimates = re.findall(r"<(\d+):(\d\d):(\d\d)|<(\d\d):(\d\d)", capsys.readouterr().err)
    assert estimates and not any(int(hours or 0) for hours, *_ in estimates)  # 100,000 × 0.5 s are 14 hours
