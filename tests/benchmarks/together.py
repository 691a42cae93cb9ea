"""How much sooner requests are answered together than one after another, by nano: `python tests/benchmarks/together.py`."""

import time
from concurrent.futures import ThreadPoolExecutor

from nextgpt import NextGPTPipeline

pipe = NextGPTPipeline.from_pretrained("nano", device="cpu")


def seconds(prompt: str, threads: int, requests: int = 8) -> float:
    """That so many requests take, in so many threads."""
    messages = [{"role": "user", "content": prompt}]
    pipe(messages, seed=0)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda seed: pipe(messages, seed=seed), range(requests)))
    return time.perf_counter() - began


for prompt in ("What can you do?", "Draw a cat."):
    apart, together = seconds(prompt, threads=1), seconds(prompt, threads=8)
    print(f"{prompt} 8 requests one by one {apart:.1f} s, together {together:.1f} s: {apart / together:.1f} times as fast")
