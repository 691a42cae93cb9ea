"""The script for a machine with an accelerator goes its whole way on a processor."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu.py"


@pytest.mark.slow
def test_the_rehearsal_does_all_that_can_be_done_here() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--rehearse"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 20, done.stdout
    missing = set() if find_spec("bitsandbytes") else {"7b, LLM in 4 bits: load"}
    assert {name for name, result, *_ in rows if result.startswith(("not done", "WRONG"))} == missing, done.stdout


def test_without_an_accelerator_it_says_what_else_there_is() -> None:
    code = f"import sys, torch; torch.accelerator.current_accelerator = lambda **_: None; sys.argv = [{str(SCRIPT)!r}]\n"
    code += f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "there is no accelerator here: --rehearse goes the same way on the processor",
    )
