"""Makes the nano language model: a tokenizer and a small Llama trained on the words-only dialogues; knows no pixel.

``python -m nextgpt.train.nano.models.language_model --data runs/nano/data --out runs/nano/language_model --minutes 4`` reads
``text.jsonl`` (see ``dialogues.py``), trains a byte-level BPE tokenizer and the model from scratch, and measures both
on ``text_dev.jsonl``. It goes on from its last checkpoint when started again.

In pretraining the model also learns to *read one embedding in place of a medium*: in 40% of the conversations that
show pictures, sounds or clips, a caption is replaced by a single position whose input embedding is the sum of the
embeddings of the caption's words, with some noise. So a linear projection of a medium's features can later speak to the
frozen model.
"""

import argparse
import json
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nextgpt.hardware import training_attention
from nextgpt.train.nano.dialogues.corpus import (
    BAG,
    SYSTEM_PROMPT,
    Corpus,
    Encoder,
    Example,
    encode_corpus,
    read_messages,
    train_tokenizer,
)
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world.things import CAPTION, SHOWN

logger = logging.getLogger(__name__)

SOFT_NOISE = 1.5  # at most, in units of the embedding table's own standard deviation


# -- training ---------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The nano Llama, about 5 M parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=704,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def embed(model: LlamaForCausalLM, tokens: Tensor, soft: Tensor, bags: Tensor, noise: float = 0.0) -> Tensor:
    """Input embeddings [batch, length, hidden], soft positions filled with the sum of their bag's embeddings."""
    table = model.get_input_embeddings()
    embeddings = table(tokens)
    at = soft >= 0
    if at.any():
        bag = bags[soft[at]].long()  # [soft positions, BAG]
        summed = (table(bag.clamp(min=0)) * (bag >= 0)[..., None]).sum(1)
        if noise:
            scale = noise * table.weight.detach().std() * torch.rand(len(summed), 1, device=summed.device)
            summed = summed * torch.empty_like(scale).uniform_(0.7, 1.4) + scale * torch.randn_like(summed)
        embeddings = embeddings.masked_scatter(at[..., None], summed.to(embeddings.dtype))
    return embeddings


def next_token_loss(model: LlamaForCausalLM, embeddings: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted next-token loss. Padding stands on the right of a causal model, so no attention mask is needed."""
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def batches(corpus: Corpus, batch_tokens: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of conversations of similar length, each of about ``batch_tokens`` tokens."""
    lengths = corpus.lengths.cpu()
    while True:
        order = (lengths + torch.rand(len(lengths), generator=generator) * 8).argsort()
        rows, groups = order.tolist(), []
        while rows:
            size = max(1, batch_tokens // int(lengths[rows[-1]]))
            groups.append(rows[-size:])
            del rows[-size:]
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield torch.tensor(groups[index], device=corpus.lengths.device)


def train(
    model: LlamaForCausalLM,
    corpus: Corpus,
    dev: Corpus,
    out: Path,
    minutes: float,
    batch_tokens: int,
    learning_rate: float,
    seed: int,
    loss_of: Callable[..., Tensor] = next_token_loss,
) -> list[dict]:
    """Trains for so many minutes (cosine over the time itself), going on from ``checkpoint.pt``; returns the curve."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    checkpoint, curve, step, spent = out / "checkpoint.pt", [], 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve, step, spent = state["curve"], state["step"], state["spent"]
        logger.info("going on from step %d, %.1f minutes in", step, spent / 60)
    generator = torch.Generator().manual_seed(seed + step)
    start, logged, saved = time.monotonic() - spent, spent, spent
    for rows in batches(corpus, batch_tokens, generator):
        spent = time.monotonic() - start
        progress = spent / (60 * minutes)
        if progress >= 1:
            break
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
        tokens, weights, soft = corpus.batch(rows)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            embeddings = embed(model, tokens, soft, corpus.bags, SOFT_NOISE)
            loss = loss_of(model, embeddings, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if spent - logged > 10:
            logged = spent
            curve.append(
                {
                    "step": step,
                    "minutes": round(spent / 60, 2),
                    "loss": round(loss.item(), 4),
                    "dev_loss": dev_loss(model, dev),
                }
            )
            logger.info("step %(step)d  %(minutes).2f min  loss %(loss).4f  dev %(dev_loss).4f", curve[-1])
        if spent - saved > 120:
            saved = spent
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "curve": curve,
                "step": step,
                "spent": spent,
            }
            torch.save(state, checkpoint)
    curve.append({"step": step, "minutes": round(spent / 60, 2), "dev_loss": dev_loss(model, dev)})
    return curve


@torch.no_grad()
def dev_loss(model: LlamaForCausalLM, dev: Corpus, size: int = 128) -> float:
    """Loss on the assistant's words in the first conversations of the development file."""
    rows = torch.arange(min(size, len(dev.lengths)), device=dev.lengths.device)
    tokens, weights, soft = dev.batch(rows)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        embeddings = embed(model, tokens, soft, dev.bags)
        return round(next_token_loss(model, embeddings, tokens, weights * (weights == 1)).item(), 4)


# -- measuring --------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[Example], max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers to encoded prompts, soft positions included."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (longest - len(p.tokens)) + p.tokens for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts])
    soft, bags = torch.full_like(tokens, -1), []
    for row, prompt in enumerate(prompts):
        for column, bag in enumerate(prompt.soft, longest - len(prompt.tokens)):
            if bag >= 0:
                soft[row, column] = len(bags)
                bags.append(prompt.bags[bag] + [-1] * (BAG - len(prompt.bags[bag])))
    device = model.device
    bags = torch.tensor(bags or [[-1] * BAG], device=device)
    embeddings = embed(model, tokens.to(device), soft.to(device), bags)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = model.generate(
            inputs_embeds=embeddings, attention_mask=mask.to(device), max_new_tokens=max_new_tokens, do_sample=False
        )
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def right(intent: str, expected: str, given: str) -> bool:
    """Whether an answer says the right thing: the same captions in the same order; the same refusal; the same fact."""
    captions = CAPTION.findall(expected)
    if captions or intent in {"smalltalk", "capability", "about_world", "outside_question", "decline"}:
        return CAPTION.findall(given) == captions
    if intent in {"outside_draw", "outside_play", "outside_film"}:
        return not CAPTION.findall(given) and given.startswith(("I can't", "I don't know"))
    return given == expected


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, file: Path, count: int, batch: int = 256
) -> dict[str, dict[str, float]]:
    """Share of right answers to the last turn of development conversations, by intent.

    ``/soft`` marks those where a medium was read from a single embedding instead of words.
    """
    encoder, rng = Encoder(tokenizer), random.Random(0)
    cases = []
    with file.open(encoding="utf-8") as lines:
        for line in islice(lines, count):
            *context, (_, expected) = read_messages(line)
            intent = json.loads(line)["intents"][-1]
            cases.append((intent, expected, encoder(context, False, rng)))
            if any(SHOWN.search(text) for _, text in context):
                cases.append((f"{intent}/soft", expected, encoder(context, True, rng)))
    cases.sort(key=lambda case: len(case[2].tokens))
    results: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        for (intent, expected, _), given in zip(part, answer(model, tokenizer, [c[2] for c in part]), strict=True):
            results[intent].append(right(intent.removesuffix("/soft"), expected, given))
            if not results[intent][-1]:
                logger.debug("%s: expected %r, given %r", intent, expected, given)
    return {intent: {"right": round(sum(r) / len(r), 4), "of": len(r)} for intent, r in sorted(results.items())}


# -- command ----------------------------------------------------------------------------------------------------


def tokenizer_texts(file: Path, concepts: Iterable[str], limit: int) -> Iterator[str]:
    """What the tokenizer learns from: conversations, their frame, and each name often enough to be whole tokens."""
    frame = f"{SYSTEM_PROMPT} USER: x ASSISTANT: y"
    yield from (frame,) * 1_000
    for name in concepts:
        yield from (f" {name}",) * 50
    with file.open(encoding="utf-8") as lines:
        for line in islice(lines, limit):
            yield from (text for _, text in read_messages(line))


def main() -> None:
    """Tokenizer, training, figures, files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("runs/nano/data"))
    parser.add_argument("--world", type=Path, default=Path("runs/nano/world"))
    parser.add_argument("--out", type=Path, default=Path("runs/nano/language_model"))
    parser.add_argument("--minutes", type=float, default=60, help="of training, the time of earlier starts counted in")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=None, help="tokens in a batch (default: 49152, on a CPU 2048)")
    parser.add_argument("--compile", action="store_true", help="compile the model first: minutes, then a third faster")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--limit", type=int, help="conversations to learn from (default: all)")
    parser.add_argument("--measure", type=int, default=2000, help="development conversations to answer at the end")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    found = torch.accelerator.current_accelerator(check_available=True)
    device = args.device if args.device != "auto" else found.type if found else "cpu"
    batch_tokens = args.batch_tokens or (2048 if device == "cpu" else 49152)
    args.out.mkdir(parents=True, exist_ok=True)

    if not (args.out / "tokenizer.json").exists():
        rows = json.loads((args.world / "world.json").read_text(encoding="utf-8"))["concepts"]
        if (args.world / "sounds.json").exists():
            rows += json.loads((args.world / "sounds.json").read_text(encoding="utf-8"))
        names = dict.fromkeys(row["name"] for row in rows)
        train_tokenizer(tokenizer_texts(args.data / "text.jsonl", names, 100_000)).save_pretrained(args.out)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    corpus = encode_corpus(args.out, args.data / "text.jsonl", args.limit, args.workers, args.seed).to(device)
    dev = encode_corpus(args.out, args.data / "text_dev.jsonl", 512, 1, args.seed).to(device)
    model = new_model(tokenizer).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info(
        "%d conversations, %.1f M tokens; %.2f M parameters",
        len(corpus.lengths),
        len(corpus.tokens) / 1e6,
        parameters / 1e6,
    )

    loss_of = torch.compile(next_token_loss, dynamic=True) if args.compile else next_token_loss
    with training_attention(model.device):
        curve = train(model, corpus, dev, args.out, args.minutes, batch_tokens, args.learning_rate, args.seed, loss_of)
    model.eval().bfloat16().save_pretrained(args.out, max_shard_size="15MB")
    figures = measure(model, tokenizer, args.data / "text_dev.jsonl", args.measure)
    log = {
        "parameters": parameters,
        "conversations": len(corpus.lengths),
        "tokens": len(corpus.tokens),
        "device": device,
    }
    log |= {"batch_tokens": batch_tokens, "curve": curve, "dev": figures}
    (args.out / loop.LOG_FILE).write_text(json.dumps(log, indent=1), encoding="utf-8")
    for intent, figure in figures.items():
        logger.info("%-22s %5.1f%% of %d", intent, 100 * figure["right"], figure["of"])


if __name__ == "__main__":
    main()
