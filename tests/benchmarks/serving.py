"""What the server gives of what the model could, and how long its clients wait. Asserts nothing.

    python tests/benchmarks/serving.py [--model nano] [--seconds 10] [--clients 1 8 32]

First the ceiling: the model's own `generate` and the decoders called directly, with one conversation and with eight at once.
Then `nextgpt serve` in a process of its own, asked by clients that each ask again as soon as they are answered; and the
pipeline called directly by eight threads that take turns behind a lock. `ratio` is requests a second over the ceiling's:
of one for one client, of eight for more. The clients run in another process, whose processor time is printed: on a small
machine they take theirs from the server. Last, the time to the first token of text that arrives at random at half of what
the server was seen to answer, alone and while clips are being made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TOKENS = 48
ASKED = 8  # requests of which the ceiling is measured
TEXT = ("What is a violin?", "Tell me about cats.", "What can you do?", "Hello, who are you?")
PICTURES = ("Draw a red car.", "a small cat, cartoon style", "Paint a banana on blue.", "Show me a large rocket.")
CLIP = "Show me a cat spinning."


def body(kind: str, number: int, stream: bool = False) -> dict:
    """A request of a kind: `text`, `picture`, `both` by turns."""
    if kind == "both":
        kind = ("text", "picture")[number % 2]
    words = (TEXT if kind == "text" else PICTURES)[number // 2 % 4]
    own = {"modalities": ["text"]} if kind == "text" else {"require": {"image": 1}}
    common = {"messages": [{"role": "user", "content": words}], "max_completion_tokens": TOKENS, "seed": number}
    return {"model": "served", "stream": stream, **common, **own}


# ---------------------------------------------------------------------- the ceiling


def ceiling(pipe, kind: str, batch: int, repeats: int = 3) -> float:
    """Requests a second that the model and the decoders make when nothing stands between."""
    import torch

    from nextgpt.modalities import take_values
    from nextgpt.multimodal.generation_modes import make_media

    if kind == "both":
        return 2 / sum(1 / ceiling(pipe, each, batch, repeats) for each in ("text", "picture"))
    asked = [body(kind, 2 * i) for i in range(ASKED)]  # the same whatever the batch: some answers are longer than others
    required = asked[0].get("require")

    def answer(some: list[dict]) -> None:
        inputs = dict(pipe.processor([each["messages"] for each in some]))
        inputs["media_features"] = pipe.model.encode_media(inputs["input_ids"], **take_values(inputs))
        allowed = None if required else ("text",)
        with torch.no_grad():
            output = pipe.model.generate_interleaved(
                **inputs, max_new_tokens=TOKENS, require=required, output_modalities=allowed, do_sample=False
            )
        if output.runs and required:
            make_media(pipe.model, pipe.decoders["image"], output.runs, list(range(len(output.runs))), {})

    def once() -> None:
        for start in range(0, ASKED, batch):
            answer(asked[start : start + batch])

    once()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return ASKED / statistics.median(seconds)


def behind_a_lock(pipe, kind: str, clients: int, seconds: float) -> float:
    """Requests a second of threads that take turns."""
    lock, over, done = threading.Lock(), time.monotonic() + seconds, []

    def ask(start: int) -> None:
        number = start
        while time.monotonic() < over:
            given = body(kind, number)
            options = {"require": given["require"]} if "require" in given else {"output_modalities": ("text",)}
            with lock:
                if time.monotonic() < over:
                    pipe(given["messages"], max_new_tokens=TOKENS, seed=number, **options)
                    done.append(1)
            number += clients

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) / (time.monotonic() - began)


# ---------------------------------------------------------------------- the clients, in a process of their own


async def keep_asking(address: str, kind: str, clients: int, seconds: float) -> dict:
    """Requests a second of clients that ask again as soon as they are answered."""
    import httpx

    done, failed = 0, 0
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        over = time.monotonic() + seconds

        async def ask(start: int) -> None:
            nonlocal done, failed
            number = start
            while time.monotonic() < over:
                answer = await client.post("/v1/chat/completions", json=body(kind, number))
                done, failed = done + (answer.status_code == 200), failed + (answer.status_code != 200)
                number += clients

        began = time.monotonic()
        await asyncio.gather(*[ask(i) for i in range(clients)])
        return {"per_second": done / (time.monotonic() - began), "failed": failed}


async def arrive_at_random(address: str, per_second: float, seconds: float, with_clip: bool) -> dict:
    """Seconds to the first token of text that arrives at random."""
    import httpx

    waits: list[float] = []
    chance = random.Random(0)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def ask(number: int) -> None:
            began = time.monotonic()
            async with client.stream("POST", "/v1/chat/completions", json=body("text", number, stream=True)) as answer:
                first = True
                async for line in answer.aiter_lines():
                    if first and '"content":"' in line and '"content":""' not in line:
                        waits.append(time.monotonic() - began)
                        first = False

        async def make_clips(over: float) -> None:
            clip = {"model": "served", "messages": [{"role": "user", "content": CLIP}], "require": {"video": 1}}
            while time.monotonic() < over:
                await client.post("/v1/chat/completions", json=clip | {"max_completion_tokens": 64})

        over, asked = time.monotonic() + seconds, []
        clips = asyncio.create_task(make_clips(over)) if with_clip else None
        while time.monotonic() < over:
            asked.append(asyncio.create_task(ask(2 * len(asked))))
            await asyncio.sleep(chance.expovariate(per_second))
        await asyncio.gather(*asked)
        if clips is not None:
            await clips
    waits.sort()
    return {"median": statistics.median(waits), "p95": waits[int(0.95 * (len(waits) - 1))], "requests": len(waits)}


def in_another_process(what: str, *arguments) -> dict:
    """Runs clients in a process of their own; adds its processor time."""
    command = [sys.executable, __file__, "--clients-of", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def run_clients(what: str, arguments: list[str]) -> None:
    """What the other process does."""
    if what == "keep_asking":
        address, kind, clients, seconds = arguments
        found = asyncio.run(keep_asking(address, kind, int(clients), float(seconds)))
    else:
        address, per_second, seconds, with_clip = arguments
        found = asyncio.run(arrive_at_random(address, float(per_second), float(seconds), with_clip == "True"))
    print(json.dumps(found | {"cpu": time.process_time()}))


# ---------------------------------------------------------------------- all of it


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=["text", "picture", "both"])
    parser.add_argument("--clients-of", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clients_of:
        run_clients(args.clients_of[0], args.clients_of[1:])
        return
    from nextgpt import NextGPTPipeline

    pipe = NextGPTPipeline.from_pretrained(args.model)
    ceilings = {(kind, batch): ceiling(pipe, kind, batch) for kind in args.kinds for batch in (1, 8)}
    locked = {kind: behind_a_lock(pipe, kind, 8, args.seconds) for kind in args.kinds}
    del pipe
    command = [sys.executable, "-m", "nextgpt", "serve", "--model", args.model, "--name", "served", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = server.stdout.readline().split(" at ")[1].split("/v1")[0]
        rows, capacity = [], 0.0
        for kind in args.kinds:
            in_another_process("keep_asking", address, kind, 1, 2)  # loads what loads on first use
            rows.append((kind, "behind a lock, 8", locked[kind], locked[kind] / ceilings[kind, 8], 0.0, 0))
            for clients in args.clients:
                found = in_another_process("keep_asking", address, kind, clients, args.seconds)
                ratio = found["per_second"] / ceilings[kind, 1 if clients == 1 else 8]
                rows.append((kind, f"served, {clients}", found["per_second"], ratio, found["cpu"], found["failed"]))
                capacity = max(capacity, found["per_second"]) if kind == "text" else capacity
        waits = []
        if capacity:
            alone = in_another_process("arrive", address, 0.5, max(args.seconds, 10), False)
            for name, clip in (("at half of what it can", False), ("the same while clips are made", True)):
                waits.append((name, in_another_process("arrive", address, capacity / 2, args.seconds, clip)))
            waits.insert(0, ("one now and then", alone))
    finally:
        server.terminate()
        server.wait()
    print("| requests | ceiling of 1, a second | ceiling of 8 |\n|---|---|---|")
    for kind in args.kinds:
        print(f"| {kind} | {ceilings[kind, 1]:.2f} | {ceilings[kind, 8]:.2f} |")
    print("\n| requests | clients | a second | ratio to the ceiling | processor seconds of the clients | failed |")
    print("|---|---|---|---|---|---|")
    for kind, clients, rate, ratio, cpu, failed in rows:
        print(f"| {kind} | {clients} | {rate:.2f} | {ratio:.2f} | {cpu:.1f} | {failed} |")
    print("\n| text that arrives | requests | first token, median | 95% | median to alone |\n|---|---|---|---|---|")
    for name, found in waits:
        ratio = found["median"] / waits[0][1]["median"]
        print(f"| {name} | {found['requests']} | {found['median']:.3f} s | {found['p95']:.3f} s | {ratio:.2f} |")


if __name__ == "__main__":
    main()
