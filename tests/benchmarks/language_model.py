"""Speed of the nano language model's pretraining beside the plainest correct step. Asserts nothing.

    python tests/benchmarks/language_model.py [--batch 2048] [--steps 6] [--threads 1]

Both learn the same made-up conversations with the same optimizer, in turns; the median of the steps counts. The plain
step writes the system prompt in front of every conversation, and lets transformers compute logits everywhere. The ratio
counts what both have to learn from: tokens that are no system prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from nextgpt.hardware import training_attention  # noqa: E402
from nextgpt.hub.parts import preset_folder  # noqa: E402
from nextgpt.train.nano.dialogues import corpus  # noqa: E402
from nextgpt.train.nano.dialogues.composer import load_composer, make_lines  # noqa: E402
from nextgpt.train.nano.models import language_model, loop  # noqa: E402

GOAL = 2.0


def plain_losses(training: language_model.Pretraining, batch: corpus.Batch, bags: Tensor) -> dict[str, Tensor]:
    """The same losses, through transformers' own forward pass."""
    table = training.table
    embeddings = training.embed(table, batch, bags, noisy=True)
    hidden = training.model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    logits = F.linear(hidden[:, :-1], table)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.tokens[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return {"words": (losses * weights).sum() / weights.sum()}


def main() -> None:
    """Both steps in turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    composer = load_composer(preset_folder("nano") / "world", "train")
    lines = list(make_lines(composer, "text", 0, 2_000))
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        texts = (p["text"] for line in lines for m in json.loads(line)["messages"] for p in m["content"] if "text" in p)
        tokenizer = corpus.train_tokenizer([*texts, corpus.SYSTEM_PROMPT])
        tokenizer.save_pretrained(folder)
        shares = {"plain": 1.0, "lean": corpus.SYSTEM_SHARE}
        corpora = {}
        for name, corpus.SYSTEM_SHARE in shares.items():
            arrays = corpus.encode_lines(Path(folder), lines)
            fields = {field: torch.from_numpy(array) for field, array in arrays.items()}
            corpora[name] = corpus.Corpus(starts=fields["lengths"].cumsum(0) - fields["lengths"], **fields)
    prompt = len(tokenizer(corpus.SYSTEM_PROMPT, add_special_tokens=False)["input_ids"])
    bag_words = corpora["lean"].bags[corpora["lean"].bags >= 0].long().unique()
    training = language_model.Pretraining(language_model.new_model(tokenizer), tokenizer, bag_words)
    optimizer = loop.adamw([training], 1e-3)
    orders = {name: language_model.batches(corpora[name], args.batch, torch.Generator().manual_seed(0)) for name in corpora}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in corpora}
    with training_attention(device):
        for step in range(args.steps + 1):
            for name, order in orders.items():
                rows, start = next(order), time.perf_counter()
                batch = corpora[name].batch(rows)
                with loop.autocast(device):
                    losses = (
                        training(batch, corpora[name].bags)
                        if name == "lean"
                        else plain_losses(training, batch, corpora[name].bags)
                    )
                loop.update(optimizer, sum(losses.values()))
                seconds = time.perf_counter() - start
                tokens = int(corpora[name].lengths[rows].sum())
                learned = tokens - prompt * len(rows) * shares[name]
                if step:
                    speeds[name].append((tokens / seconds, learned / seconds))
    medians = {name: [statistics.median(kind) for kind in zip(*some, strict=True)] for name, some in speeds.items()}
    for name, (tokens, learned) in medians.items():
        print(f"{name:6} {tokens:8.0f} tokens a second, {learned:8.0f} of them no system prompt")
    with_prompt, without = (lean / plain for lean, plain in zip(medians["lean"], medians["plain"], strict=True))
    print(f"lean : plain = {without:.2f} (goal {GOAL}), the system prompt counted too {with_prompt:.2f}")


if __name__ == "__main__":
    main()
