"""The graph of the nano model's making: order, shares of a budget, side by side, what a failure leaves behind."""

import signal
import subprocess
import sys
import time

import pytest

from nextgpt.train.nano import make
from nextgpt.train.nano.make import MakeError, Runner, Step, order, report, share_out

TOUCH = "import pathlib, sys, time; time.sleep(float(sys.argv[2])); pathlib.Path(sys.argv[1]).touch(); print('made')"


@pytest.fixture
def steps(monkeypatch):
    """Two steps that stand alone, one that needs both, one after that."""
    few = {
        "left": Step("x", (), "left.done", 10),
        "right": Step("x", (), "right.done", 30),
        "both": Step("x", ("left", "right"), "both.done", 20),
        "last": Step("x", ("both",), "last.done"),
    }
    monkeypatch.setattr(make, "STEPS", few)
    return few


def touching(root, steps, seconds=0.0):
    return {step: [sys.executable, "-c", TOUCH, str(root / make.STEPS[step].done), str(seconds)] for step in steps}


def test_every_step_needs_steps_that_stand_before_it():
    before = set()
    for name, step in make.STEPS.items():
        assert set(step.needs) <= before, name
        before.add(name)


def test_steps_are_put_in_order_and_what_is_lacking_is_named(steps, tmp_path):
    assert order(["both", "left", "right"], tmp_path) == ["left", "right", "both"]
    with pytest.raises(MakeError, match="--steps names 'middle'; the steps are left, right, both, last"):
        order(["middle"], tmp_path)
    with pytest.raises(MakeError, match="both needs right, which is not in"):
        order(["left", "both"], tmp_path)
    (tmp_path / "right.done").touch()
    assert order(["left", "both"], tmp_path) == ["left", "both"]


def test_a_budget_is_shared_out_over_the_longest_path_or_the_sum(steps):
    names = list(steps)
    alone = share_out(names, 9, together=False)
    assert sum(alone.values()) + 3 * make.OVERHEAD == pytest.approx(9, abs=0.01)
    assert alone["right"] == pytest.approx(3 * alone["left"], abs=0.01) and "last" not in alone
    together = share_out(names, 9, together=True)
    assert together["right"] + together["both"] + 2 * make.OVERHEAD == pytest.approx(9, abs=0.01)
    assert share_out(["last"], 9, together=True) == {}
    with pytest.raises(MakeError, match="--minutes 0.5 is too little for 3 steps that train: give at least 1.75"):
        share_out(names, 0.5, together=False)


def test_steps_run_as_what_they_need_is_there(steps, tmp_path):
    Runner(tmp_path, touching(tmp_path, steps, 0.3), jobs=2).run()
    made = [(tmp_path / steps[step].done).stat().st_mtime for step in ("left", "right", "both", "last")]
    assert max(made[:2]) < made[2] < made[3]
    assert (tmp_path / "logs" / "both.log").read_text().strip() == "made"
    lines = report(tmp_path).splitlines()
    assert lines[2].startswith("| left | 0.0 | done") and lines[-1].endswith("| 4 of 4 |")


def test_a_step_that_fails_is_named_with_its_last_line_and_the_others_end(steps, tmp_path):
    commands = touching(tmp_path, ["left", "right", "both"], 30)
    commands["left"] = [sys.executable, "-c", "raise SystemExit('no room left')"]
    began = time.monotonic()
    with pytest.raises(MakeError, match="left failed with exit code 1: no room left"):
        Runner(tmp_path, commands, jobs=2).run()
    assert time.monotonic() - began < 25 and not (tmp_path / "right.done").exists()
    with pytest.raises(MakeError, match="left ended without .*left.done"):
        Runner(tmp_path, {"left": [sys.executable, "-c", "pass"]}, jobs=1).run()


def test_a_part_that_is_final_is_taken_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "PARTS", tmp_path / "parts")
    (tmp_path / "parts" / "autoencoder").mkdir(parents=True)
    (tmp_path / "parts" / "autoencoder" / "training_log.json").write_text("{}")
    make.take_final_parts(tmp_path / "root")
    assert make.is_done("autoencoder", tmp_path / "root")
    (tmp_path / "root" / "autoencoder" / "training_log.json").write_text("made here")
    make.take_final_parts(tmp_path / "root")
    assert (tmp_path / "root" / "autoencoder" / "training_log.json").read_text() == "made here"


def test_what_a_finished_step_was_made_of_is_not_missed(tmp_path):
    (tmp_path / "image_decoder").mkdir()
    (tmp_path / "image_decoder" / "training_log.json").write_text("{}")
    left = make.lacking("image_refinement", tmp_path)
    assert left == {"image_refinement"}
    assert make.lacking("clip_decoder", tmp_path) == {"clip_decoder", "autoencoder", "clip_text_encoder", "pictures"}
    assert make.lacking(make.GOAL, tmp_path) == set(make.STEPS) - {"text_encoder", "image_decoder"}


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(MakeError, match="nothing was made there yet"):
        report(tmp_path)


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(make, "PACKAGES", {"torch": "2.0", "no-such-package": "1.0", "numpy": "99.0"})
    missing = make.missing_packages()
    assert missing[0] == "no-such-package (missing, needs 1.0)" and missing[1].startswith("numpy (")


def run_make(*words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "nextgpt.train.nano.make", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_shows_what_it_would_run_and_bad_input_is_one_line(tmp_path):
    words = ("--root", str(tmp_path), "--device", "cpu", "--show")
    shown = run_make("run", *words, "--minutes", "60").stdout.splitlines()
    assert len(shown) == len(make.STEPS)
    assert sum("--minutes" in line for line in shown) == sum(step.minutes is not None for step in make.STEPS.values())
    rehearsed = run_make("run", *words, "--rehearse").stdout
    assert "max_steps=2" in rehearsed and "--count 200" in rehearsed
    for bad, message in ((("--minutes", "1"), "too little"), (("--steps", "nothing"), "'nothing'")):
        ended = run_make("run", *words, *bad)
        assert ended.returncode == 1 and message in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr


def test_ctrl_c_ends_the_steps_too(tmp_path):
    """What runs is asked to end as Ctrl-C asks it, and the command says that it goes on when started again."""
    script = (
        "import signal, sys; from nextgpt.train.nano import make\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background has it ignored
        "make.STEPS = {'slow': make.Step('x', (), 'slow.done')}\n"
        "line = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "make.run = lambda args: make.Runner(args.root, {'slow': line}, 1).run()\n"
        "sys.argv = ['make', '--root', sys.argv[1]]; make.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "logs" / "slow.log"
    until = time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.strip().endswith("Started again, it goes on.") and "KeyboardInterrupt" in log.read_text()
    assert not (tmp_path / "slow.done").exists()
