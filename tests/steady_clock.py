"""A clock by which the makers of nano's parts are soon done."""

import itertools
import time
from types import SimpleNamespace

import pytest

from nextgpt.train.nano.models import loop


def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makers train by the clock: here each look at it takes a quarter of a second, so 0.3 minutes are 24 steps."""
    ticks = itertools.count(step=0.25)
    clock = {name: lambda: next(ticks) for name in ("monotonic", "process_time")}
    monkeypatch.setattr(loop, "time", SimpleNamespace(**clock, strftime=time.strftime))
