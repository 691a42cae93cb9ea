"""Many clients for minutes, some of whom leave or send nonsense: is every answer the one that it would be alone?

    python tests/benchmarks/soak.py [--model nano] [--clients 200] [--seconds 300] [--abort 0.1] [--broken 0.05]

A server in a process of its own answers 40 requests one by one; they differ in words, media, seeds. Then the clients ask for
the same ones at random, each again as soon as it is answered; some go away in the middle, some send what is no request, and
who is told to come back later does so after `Retry-After`. At the end: what was sent is what was answered, refused and
broken off, to the request; every answer equals its own (the text, and each picture but for rounding); and the memory of the
server in the last minute is compared with that of the second. Exits with 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("What is a violin?", "Draw a red car.", "a small cat, cartoon style", "Tell me about owls.", "Show me a blue fish.")
BROKEN = (b"{", b"[]", b'{"model": "served"}', b'{"model": "served", "messages": [{"role": "user", "content": 5}]}')
ADDRESS = re.compile(r"/v1/media/[\w-]+")
SAME = 1 / 255  # of a colour: what is added in another order is rounded otherwise


def requests() -> list[dict]:
    """Forty of them."""
    common = {"model": "served", "max_completion_tokens": 40, "modalities": ["text", "image"], "media_format": "b64_json"}
    asked = []
    for number in range(40):
        own = {"require": {"image": 1}} if number % 5 == 1 else {"temperature": 1.0} if number % 5 == 3 else {}
        words = f"{WORDS[number % 5]}{' Please.' * (number // 5)}"
        asked.append(common | own | {"messages": [{"role": "user", "content": words}], "seed": number})
    return asked


def told(answer: dict) -> tuple[str, list[np.ndarray]]:
    """An answer's text without addresses, and its pictures."""
    message = answer["choices"][0]["message"]
    files = [part["b64_json"] for part in message["parts"] if part["type"] == "image"]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(file))), np.float32) / 255 for file in files]
    return ADDRESS.sub("", message["content"]), pictures


def equal(one: tuple, other: tuple) -> bool:
    """Whether two answers are the same."""
    same_text = one[0] == other[0] and len(one[1]) == len(other[1])
    return same_text and all(np.abs(a - b).max() <= SAME + 1e-6 for a, b in zip(one[1], other[1], strict=True))


class Soak:
    """The clients and what became of their requests."""

    def __init__(self, args: argparse.Namespace, client: httpx.AsyncClient, alone: list[tuple]):
        self.args, self.client, self.alone = args, client, alone
        self.outcomes: Counter[str] = Counter()
        self.over = time.monotonic() + args.seconds

    async def ask(self, number: int) -> None:
        """One client."""
        chance, asked = random.Random(number), requests()
        while time.monotonic() < self.over:
            self.outcomes["sent"] += 1
            which, luck = chance.randrange(len(asked)), chance.random()
            try:
                if luck < self.args.broken:
                    answer = await self._post(chance.choice(BROKEN))
                elif luck < self.args.broken + self.args.abort:
                    await asyncio.wait_for(self._post(asked[which]), chance.random() * 2)
                    self.outcomes["answered before it was left"] += 1
                    continue
                else:
                    answer = await self._post(asked[which])
            except TimeoutError:
                self.outcomes["aborted"] += 1
                continue
            if answer.status_code == 200:
                self.outcomes["answered"] += 1
                self.outcomes["not its own"] += not equal(told(answer.json()), self.alone[which])
            elif answer.status_code == 429:
                self.outcomes["refused"] += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]) * (1 + chance.random()))
            else:
                self.outcomes["refused" if answer.status_code == 400 and luck < self.args.broken else "failed"] += 1

    async def _post(self, body: dict | bytes) -> httpx.Response:
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await self.client.post("/v1/chat/completions", headers={"Content-Type": "application/json"}, **given)


def memory_of(process: int) -> float:
    """Resident memory in MB (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run(args: argparse.Namespace, address: str, process: int) -> bool:
    """Prints what came of it; returns whether all was as it should be."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits) as client:
        alone = []
        for asked in requests():
            alone.append(told((await client.post("/v1/chat/completions", json=asked)).json()))
        soak = Soak(args, client, alone)
        began, memory = time.monotonic(), []
        clients = [asyncio.create_task(soak.ask(number)) for number in range(args.clients)]
        while not all(task.done() for task in clients):
            await asyncio.sleep(1)
            memory.append((time.monotonic() - began, memory_of(process)))
        for task in clients:
            task.result()
    found = soak.outcomes
    ended = sum(found[name] for name in ("answered", "answered before it was left", "refused", "aborted", "failed"))
    second = [megabytes for at, megabytes in memory if 60 <= at < 120] or [memory[0][1]]
    last = [megabytes for at, megabytes in memory if at >= memory[-1][0] - 60]
    growth = (sum(last) / len(last)) / (sum(second) / len(second)) - 1
    print(dict(found))
    print(f"sent {found['sent']}, accounted for {ended}; memory {max(last):.0f} MB, {growth:+.1%} since the second minute")
    return ended == found["sent"] and not found["not its own"] and not found["failed"] and growth <= 0.05


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--abort", type=float, default=0.1, help="share of requests whose client leaves")
    parser.add_argument("--broken", type=float, default=0.05, help="share of requests that are none")
    args = parser.parse_args()
    command = [sys.executable, "-m", "nextgpt", "serve", "--model", args.model, "--name", "served", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = server.stdout.readline().split(" at ")[1].split("/v1")[0]
        fine = asyncio.run(run(args, address, server.pid))
    finally:
        server.terminate()
        server.wait()
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
