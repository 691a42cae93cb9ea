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
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nextgpt.hardware import training_attention
from nextgpt.processing_nextgpt import VICUNA_CHAT_TEMPLATE
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world.things import CAPTION, SHOWN

logger = logging.getLogger(__name__)

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# GPT-2's splitting into words with single digits, save that the world's "3d" is a word.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?3[dD]\b| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SOFT_SHARE = 0.4
SOFT_NOISE = 1.5  # at most, in units of the embedding table's own standard deviation
USER_WEIGHT = 0.15  # of the loss on the user's words; the assistant's count 1, the system prompt's 0
BAG = 16  # words' tokens that one soft position can hold


# -- tokenizer --------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE (nothing is ever unknown) with Llama's special tokens and Vicuna's chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=VICUNA_CHAT_TEMPLATE,
    )


# -- conversations as tokens ------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One conversation. All three lists are as long as the conversation; ``bags`` holds one list per soft position."""

    tokens: list[int]
    weights: list[float]
    soft: list[int]  # the bag of a soft position, -1 elsewhere
    bags: list[list[int]]


class Encoder:
    """Turns a conversation in words (role and text pairs) into tokens, as the chat template lays it out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.system = self._ids(SYSTEM_PROMPT)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def __call__(self, messages: list[tuple[str, str]], soft_media: bool, rng: random.Random) -> Example:
        """A conversation; when its last message is the user's, the prompt for the assistant's answer."""
        example = Example([], [], [], [])
        self._add(example, [self.tokenizer.bos_token_id, *self.system], 0.0)
        for index, (role, text) in enumerate(messages):
            if role == "assistant":
                self._add(example, [*self._ids(f" {text}"), self.tokenizer.eos_token_id], 1.0)
            else:
                self._add_user(example, text, "USER: " if index else " USER: ", soft_media, rng)
        return example

    def _add_user(self, example: Example, text: str, start: str, soft_media: bool, rng: random.Random) -> None:
        match = SHOWN.search(text) if soft_media else None
        if match is None:
            self._add(example, self._ids(f"{start}{text} ASSISTANT:"), USER_WEIGHT)
            return
        # How the words and the medium are joined depends on who calls later; the model sees all ways.
        before, after = text[: match.start()], text[match.end() :]
        space = rng.choice(("", " ", "\n"))
        before = f"{before}{space}" if before else ""
        self._add(example, self._ids(f"{start}{before}"), USER_WEIGHT)
        self._add(example, [self.tokenizer.pad_token_id], 0.0, bag=self.bag(match[1]))
        self._add(example, self._ids(f"{space if after else ''}{after} ASSISTANT:"), USER_WEIGHT)

    def _add(self, example: Example, ids: list[int], weight: float, bag: list[int] | None = None) -> None:
        example.tokens.extend(ids)
        example.weights.extend([weight] * len(ids))
        example.soft.extend([-1 if bag is None else len(example.bags)] * len(ids))
        if bag is not None:
            example.bags.append(bag)

    def bag(self, caption: str) -> list[int]:
        """The tokens of the words that matter: "a small cat, flat style, red background" → small cat flat red."""
        words = re.sub(r"^the sound of ", "", caption)
        words = re.sub(r"^(a|an|the) |,| style| background", "", words)
        return self._ids(f" {words}")[:BAG]


def read_messages(line: str) -> list[tuple[str, str]]:
    """One JSON line in words only → (role, text) pairs."""
    return [(m["role"], "".join(part["text"] for part in m["content"])) for m in json.loads(line)["messages"]]


class Corpus(NamedTuple):
    """All conversations, one behind the other, ready on the device."""

    tokens: Tensor  # int16 [total]
    weights: Tensor  # float16 [total]
    soft: Tensor  # int32 [total]: row of ``bags`` or -1
    bags: Tensor  # int16 [soft positions, BAG], -1 where unused
    starts: Tensor  # int64 [conversations]
    lengths: Tensor  # int64 [conversations]

    def to(self, device: torch.device) -> "Corpus":
        return Corpus(*(tensor.to(device) for tensor in self))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, weights and bag rows [batch, longest], padded on the right (weight 0, so nothing looks there)."""
        length = int(self.lengths[rows].max())
        offsets = torch.arange(length, device=rows.device)
        inside = offsets < self.lengths[rows, None]
        index = (self.starts[rows, None] + offsets).clamp(max=len(self.tokens) - 1)
        soft = self.soft[index].long().masked_fill(~inside, -1)
        return self.tokens[index].long(), self.weights[index].float() * inside, soft


def encode_lines(folder: Path, lines: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Tokenizes conversations into flat arrays (the fields of Corpus, without starts)."""
    encoder, rng = Encoder(AutoTokenizer.from_pretrained(folder)), random.Random(f"{seed}/{lines[0]}")
    examples = [encoder(read_messages(line), rng.random() < SOFT_SHARE, rng) for line in lines]
    bags = [bag + [-1] * (BAG - len(bag)) for example in examples for bag in example.bags]
    soft, count = [], 0
    for example in examples:
        soft.extend(row + count if row >= 0 else -1 for row in example.soft)
        count += len(example.bags)
    return {
        "tokens": np.array([t for e in examples for t in e.tokens], dtype=np.int16),
        "weights": np.array([w for e in examples for w in e.weights], dtype=np.float16),
        "soft": np.array(soft, dtype=np.int32),
        "bags": np.array(bags, dtype=np.int16).reshape(-1, BAG),
        "lengths": np.array([len(e.tokens) for e in examples], dtype=np.int64),
    }


def encode_corpus(folder: Path, file: Path, limit: int | None = None, workers: int = 1, seed: int = 0) -> Corpus:
    """Tokenizes a file of conversations with the tokenizer of ``folder``."""
    chunks: list[dict[str, np.ndarray]] = []
    bags = 0
    with file.open(encoding="utf-8") as lines, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        wanted = islice(lines, limit)
        pieces = iter(lambda: list(islice(wanted, 4_000)), [])
        for chunk in pool.map(partial(encode_lines, folder, seed=seed), pieces):
            chunk["soft"][chunk["soft"] >= 0] += bags
            bags += len(chunk["bags"])
            chunks.append(chunk)
    fields = {name: torch.from_numpy(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}
    return Corpus(starts=fields["lengths"].cumsum(0) - fields["lengths"], **fields)


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
