"""How much a busy processor slows nano, with OpenMP's own spinning (the baseline) and with that of this package.

python tests/benchmarks/busy.py
"""

from __future__ import annotations

import os
import subprocess
import sys

BASELINE = "import torch\n"  # loaded first, it does not see what this package sets
PROGRAM = """
import statistics, time
from nextgpt import NextGPTPipeline
pipe = NextGPTPipeline.from_pretrained("nano", device="cpu")
seconds = []
for seed in range(5):
    start = time.perf_counter()
    pipe([{"role": "user", "content": "Draw a cat."}], seed=seed)
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[1:]))
"""


def seconds(before: str = "") -> float:
    """The median of four pictures, warm; `before` stands before the program."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", before + PROGRAM], env=own, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints both, idle and beside one process that never rests."""
    for what in ("idle", "beside a busy process"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if what != "idle" else None
        try:
            baseline, ours = seconds(BASELINE), seconds()
        finally:
            if busy:
                busy.kill()
        print(
            f"{what}: a picture takes {ours:.2f} s, with OpenMP's own spinning {baseline:.2f} s: {baseline / ours:.1f} times"
        )


if __name__ == "__main__":
    main()
