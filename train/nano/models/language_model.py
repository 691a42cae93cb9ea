"""Makes the nano language model: a tokenizer and a small Llama trained on the words-only dialogues.

``python -m nextgpt.train.nano.models.language_model --data runs/nano/data --out runs/nano/language_model --minutes 4``
reads ``text.jsonl`` (see ``dialogues/composer.py``), trains a byte-level BPE tokenizer and the model from scratch, and
measures both on ``text_dev.jsonl``. It goes on from its last checkpoint when started again.

In pretraining the model also learns what the later stages need: to *read one embedding in place of a medium* (the sum of
the embeddings of its caption's words, with noise and with other things' words mixed in, as a linear projection of a medium's
features will be), and to *hold the caption at the place of a medium that it makes*: the hidden states of a run (see
``dialogues/corpus.py``) are trained in parallel to give the caption's words, each through a linear reading that is not kept.
"""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from nextgpt.processing_nextgpt import VICUNA_CHAT_TEMPLATE
from nextgpt.train.nano.dialogues.corpus import (
    BAG,
    KINDS,
    MASKS,
    READINGS,
    RUN_LENGTHS,
    Batch,
    Corpus,
    Encoder,
    Example,
    encode_corpus,
    tokenizer_texts,
    train_tokenizer,
)
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world.things import WORDS

logger = logging.getLogger(__name__)

LEARNING_RATE = 2e-3
SOFT_NOISE = 1.5  # at most, in units of the embedding table's own standard deviation
MASK_NOISE = 0.2  # likewise, on the positions of a run
INTERFERING, INTERFERENCE = 6, 0.35  # other words mixed into a soft position; how much of each at most
UNKNOWN = 1.2  # how much of each where nothing of the world is shown
RUN_WEIGHT = 8.0  # of the loss on all words of a run together; a word of the answer counts 1
TEXT_FILE, DEV_FILE = "text.jsonl", "text_dev.jsonl"


# -- the model --------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The nano Llama, about 9.4 M parameters with 6,144 tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=320,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        intermediate_size=864,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def model_before(folder: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A saved model in float32, with rows at random for the tokens that are new in its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def hidden_states(network: LlamaModel, hidden: Tensor) -> Tensor:
    """What `network` makes of embeddings [batch, length, hidden], padded on the right: its own pass with less copying.

    Two products a layer less, no cache; under autocast the sums between layers are bfloat16 too.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    length, size = hidden.shape[1], network.layers[0].self_attn.head_dim
    cos, sin = network.rotary_emb(hidden, torch.arange(length, device=hidden.device)[None])
    cos, sin = cos[0, :, None, None, :], sin[0, :, None, None, :]
    sin = torch.cat([-sin[..., : size // 2], sin[..., size // 2 :]], dim=-1)  # [length, 1, 1, head size]
    future = torch.full((length, length), -torch.inf, dtype=hidden.dtype, device=hidden.device).triu(1)
    for layer in network.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = RMSNorm.apply(hidden, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        heads = F.linear(normed, weight).unflatten(-1, (3, -1, size))  # [batch, length, 3, heads, head size]
        turned, value = heads.split((2, 1), dim=2)
        turned = turned * cos + turned.roll(size // 2, -1) * sin
        query, key = turned.transpose(1, 3).unbind(2)  # [batch, heads, length, head size]
        mixed = _attend(query, key, value.squeeze(2).transpose(1, 2), future)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        normed = RMSNorm.apply(hidden, layer.post_attention_layernorm.weight, layer.input_layernorm.variance_epsilon)
        hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return RMSNorm.apply(hidden, network.norm.weight, network.norm.variance_epsilon)


def _attend(query: Tensor, key: Tensor, value: Tensor, future: Tensor) -> Tensor:
    """Causal attention [batch, heads, length, head size]; on a CPU by three plain products, twice as fast as torch's own."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    batch, heads, length, size = query.shape
    query, key, value = (each.reshape(batch * heads, length, size) for each in (query, key, value))
    scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=size**-0.5)
    return torch.bmm(scores.softmax(-1, dtype=value.dtype), value).view(batch, heads, length, size)


class RMSNorm(torch.autograd.Function):
    """`F.rms_norm` with a derivative of its own: that of torch copies the activations in float32 many times over."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., hidden] → the same, of size `weight` in the mean square."""
        scale = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (scale.square() / hidden.shape[-1] + epsilon).rsqrt().to(hidden.dtype)
        weight = weight.to(hidden.dtype)
        context.save_for_backward(hidden, weight, scale)
        return hidden * scale * weight

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of the input and of the weight."""
        hidden, weight, scale = context.saved_tensors
        normed = hidden * scale
        of_weight = (gradient * normed).flatten(0, -2).sum(0, dtype=torch.float32)
        inner = gradient * weight
        share = torch.linalg.vecdot(inner, normed)[..., None] / hidden.shape[-1]
        return torch.addcmul(inner, normed, share, value=-1) * scale, of_weight, None


class WordLosses(torch.autograd.Function):
    """Cross-entropy of the words that states `[states, hidden]` predict through a table `[tokens, hidden]`.

    The probabilities stand in the states' own precision, once, instead of four times in float32.
    """

    @staticmethod
    def forward(context: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """Losses for `targets`, int64 `[states]`; float32 `[states]`."""
        table = table.to(states.dtype)
        shares = (states @ table.T).softmax(-1)
        context.save_for_backward(states, table, targets, shares)
        return -shares.gather(1, targets[:, None])[:, 0].float().clamp(min=1e-20).log()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of the states and of the table."""
        states, table, targets, shares = context.saved_tensors
        of_logits = shares.scatter_add(1, targets[:, None], -torch.ones_like(targets, dtype=shares.dtype)[:, None])
        of_logits *= gradient.to(shares.dtype)[:, None]
        return of_logits @ table, (of_logits.T @ states).float(), None


def same_words(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """For each token the number of its word: " cat", "Cat" and " CAT" are one. int64 [tokens]"""
    groups: dict[str, int] = {}
    control = set(tokenizer.all_special_tokens) | {*KINDS.values(), *MASKS}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = [name if name in control else name.replace("Ġ", " ").strip().lower() or name for name in names]
    return torch.tensor([groups.setdefault(word, len(groups)) for word in words])


class Pretraining(nn.Module):
    """A language model, and what it is trained with.

    Args:
        model: is trained; its embedding table holds what sets a token apart from the others of its word until `finish`.
        tokenizer: says which tokens are one word.
        bag_words: tokens [words] that may be mixed into what is read.
        new: the model knows no word yet.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, bag_words: Tensor, new: bool = True):
        super().__init__()
        self.model = model
        self.register_buffer("word", same_words(tokenizer), persistent=False)
        self.register_buffer("bag_words", bag_words, persistent=False)
        lengths = torch.ones(len(tokenizer))
        lengths[tokenizer.convert_tokens_to_ids(list(KINDS.values()))] = torch.tensor([*RUN_LENGTHS.values()]).float()
        self.register_buffer("run_lengths", lengths, persistent=False)
        size = model.config.hidden_size
        self.words = nn.Embedding(int(self.word.max()) + 1, size)
        self.readings = nn.Linear(size, READINGS * size, bias=False)
        if new:
            nn.init.normal_(self.words.weight, std=0.02)
            nn.init.normal_(model.get_input_embeddings().weight, std=0.005)
        else:
            nn.init.zeros_(self.words.weight)

    @property
    def table(self) -> Tensor:
        """Embeddings [tokens, hidden], of the input and of the output."""
        return self.words.weight[self.word] + self.model.get_input_embeddings().weight

    @torch.no_grad()
    def finish(self) -> LlamaForCausalLM:
        """The model with its whole embedding table."""
        self.model.get_input_embeddings().weight.copy_(self.table)
        self.words.weight.zero_()
        return self.model

    def embed(self, table: Tensor, batch: Batch, bags: Tensor, noisy: bool) -> Tensor:
        """Input embeddings [batch, length, hidden], with noise where media are."""
        embeddings, spread = F.embedding(batch.tokens, table), table.detach().std()
        if noisy:
            runs = (batch.targets[..., 0] >= 0)[..., None]
            embeddings = embeddings + runs * (MASK_NOISE * spread * torch.randn_like(embeddings))
        at = batch.soft >= 0
        if not at.any():
            return embeddings
        bag = bags[batch.soft[at]].long()
        summed = bag_sums(table, bag)
        if noisy or (bag[:, 0] < 0).any():
            summed = self._augmented(table, summed, unknown=bag[:, 0] < 0, spread=spread, noisy=noisy)
        return embeddings.masked_scatter(at[..., None], summed.to(embeddings.dtype))

    def _augmented(self, table: Tensor, summed: Tensor, unknown: Tensor, spread: Tensor, noisy: bool) -> Tensor:
        """With Gaussian noise and a little of other words; much of them where nothing of the world is shown."""
        count, device = len(summed), summed.device
        others = self.bag_words[torch.randint(len(self.bag_words), (count, INTERFERING), device=device)]
        most = torch.where(unknown, UNKNOWN, INTERFERENCE * noisy * torch.rand(count, device=device))[:, None]
        shares = most * (2 * torch.rand(count, INTERFERING, device=device) - 1)
        mixed = torch.einsum("nk,nkd->nd", shares, F.embedding(others, table).float())
        if noisy:
            summed = summed * torch.empty(count, 1, device=device).uniform_(0.7, 1.4)
            mixed = mixed + SOFT_NOISE * spread * torch.rand(count, 1, device=device) * torch.randn_like(summed)
        return summed + mixed

    def forward(self, batch: Batch, bags: Tensor, noisy: bool = True) -> dict[str, Tensor]:
        """The losses: `words`, of the next word, and `runs`, of the words that runs hold."""
        table = self.table
        hidden = hidden_states(self.model.model, self.embed(table, batch, bags, noisy))
        # Only where something is to be learned: half of the positions, and the head is a fifth of the model.
        learned = batch.weights[:, 1:] > 0
        weights = batch.weights[:, 1:][learned]
        losses = WordLosses.apply(hidden[:, :-1][learned], table, batch.tokens[:, 1:][learned])
        found = {"words": (losses * weights).sum() / weights.sum()}
        at = batch.targets[..., 0] >= 0
        if at.any():
            read = self.readings(hidden[at]).unflatten(-1, (READINGS, -1))  # [positions, readings, hidden]
            losses = WordLosses.apply(read.flatten(0, 1), table, batch.targets[at].flatten())
            share = 1 / (READINGS * self._lengths_of_runs(batch)[at])[:, None]
            found["runs"] = (losses.view(-1, READINGS) * share).sum() * RUN_WEIGHT / weights.sum()
        return found

    def _lengths_of_runs(self, batch: Batch) -> Tensor:
        """[batch, length]: of a run's positions its length."""
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        starts = torch.where(self.run_lengths[batch.tokens] > 1, places, 0).cummax(1).values
        return self.run_lengths[batch.tokens.gather(1, starts)]


def bag_sums(table: Tensor, bag: Tensor) -> Tensor:
    """Sums of the embeddings of bags of tokens, int64 `[bags, BAG]`, -1 where unused; float32 `[bags, hidden]`."""
    return (F.embedding(bag.clamp(min=0), table) * (bag >= 0)[..., None]).float().sum(1)


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


@torch.no_grad()
def dev_losses(training: Pretraining, dev: Corpus, size: int = 128) -> dict[str, Tensor]:
    """Losses in the first conversations of the development file."""
    batch = dev.batch(torch.arange(min(size, len(dev.lengths)), device=dev.lengths.device))
    with loop.autocast(dev.lengths.device):
        found = training(batch._replace(weights=batch.weights * (batch.weights == 1)), dev.bags, noisy=False)
    return {f"dev_{name}": loss for name, loss in found.items()}


# -- answers ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Example],
    max_new_tokens: int = 96,
    readings: nn.Linear | None = None,
) -> list[str]:
    """Greedy answers to encoded prompts, soft positions included.

    Args:
        readings: what turns the hidden states of a run into words; a run then stands in the text as a medium in words does.
    """
    device, encoder = model.device, Encoder(tokenizer)
    table = model.get_input_embeddings().weight
    longest = max(len(prompt.tokens) for prompt in prompts)
    tokens = torch.tensor([[tokenizer.pad_token_id] * (longest - len(p.tokens)) + p.tokens for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=device)
    embeddings = F.embedding(tokens, table)
    for row, prompt in enumerate(prompts):
        for column, bag in enumerate(prompt.soft, longest - len(prompt.tokens)):
            if bag >= 0:
                words = torch.tensor([prompt.bags[bag] + [-1] * (BAG - len(prompt.bags[bag]))], device=device)
                embeddings[row, column] = bag_sums(table, words)[0].to(table.dtype)
    kinds = {token: modality for modality, token in encoder.kinds.items()} if encoder.has_runs else {}
    writers = [_Writer(tokenizer, kinds, encoder.masks) for _ in prompts]
    cache = None
    for _ in range(max_new_tokens):
        positions = mask.cumsum(1)[:, -embeddings.shape[1] :] - 1
        output = model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache, hidden = output.past_key_values, output.last_hidden_state[:, -1]
        chosen = F.linear(hidden, table).argmax(1).tolist()
        read = None
        if readings is not None and any(writer.left for writer in writers):
            read = F.linear(readings(hidden).unflatten(-1, (READINGS, -1)), table).argmax(-1).tolist()
        inputs = [
            writer.write(token, read and read[row]) for row, (writer, token) in enumerate(zip(writers, chosen, strict=True))
        ]
        if all(writer.done for writer in writers):
            break
        embeddings = F.embedding(torch.tensor(inputs, device=device)[:, None], table)
        mask = F.pad(mask, (0, 1), value=1)
    return [writer.text.strip() for writer in writers]


class _Writer:
    """One answer, token by token; in a run the masks are given, whatever the model would say."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, kinds: dict[int, str], masks: list[int]):
        self.tokenizer, self.kinds, self.masks = tokenizer, kinds, masks
        self.done, self.text, self.left, self.kind = False, "", 0, ""
        self.ids: list[int] = []
        self.words: list[int] = []

    def write(self, token: int, read: list[int] | None) -> int:
        """Takes the token that the model chose and what it holds; returns what it is given next."""
        if self.left:  # the last input stood in a run
            self.words += read or []
            self.left -= 1
            if self.left:
                return self.masks[RUN_LENGTHS[self.kind] - self.left - 1]
            self.text += f" ({WORDS[self.kind]}: {self._caption()})"
        if self.done or token == self.tokenizer.eos_token_id:
            self._close()
            self.done = True
            return self.tokenizer.pad_token_id
        if token in self.kinds:
            self._close()
            self.kind, self.left, self.words = self.kinds[token], RUN_LENGTHS[self.kinds[token]], []
            return token
        self.ids.append(token)
        return token

    def _close(self) -> None:
        self.text += self.tokenizer.decode(self.ids, skip_special_tokens=True)
        self.ids = []

    def _caption(self) -> str:
        kept = [token for token in dict.fromkeys(self.words) if token != self.tokenizer.pad_token_id]
        return self.tokenizer.decode(kept).strip()


# -- command ----------------------------------------------------------------------------------------------------


def prepare_tokenizer(data: Path, world: Path, out: Path, before: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer in `out`; where there is none, that of the model `before`, or one made from the conversations."""
    if not (out / "tokenizer.json").exists() and before is not None:
        tokenizer = AutoTokenizer.from_pretrained(before)
        tokenizer.add_tokens([*KINDS.values(), *MASKS], special_tokens=True)
        tokenizer.chat_template = VICUNA_CHAT_TEMPLATE
        tokenizer.save_pretrained(out)
    if not (out / "tokenizer.json").exists():
        rows = json.loads((world / "world.json").read_text(encoding="utf-8"))["concepts"]
        if (world / "sounds.json").exists():
            rows += json.loads((world / "sounds.json").read_text(encoding="utf-8"))
        names = dict.fromkeys(word for row in rows for word in (row["name"], *row["synonyms"]))
        train_tokenizer(tokenizer_texts(data / TEXT_FILE, names, 100_000)).save_pretrained(out)
    return AutoTokenizer.from_pretrained(out)


def main() -> None:
    """Tokenizer, training, figures, files."""
    parser = loop.arguments(__doc__.split("\n")[0], "language_model", LEARNING_RATE, loop.HIDDEN_RATE)
    parser.add_argument("--data", type=Path, default=Path("runs/nano/data"))
    parser.add_argument("--limit", type=int, help="conversations to learn from (default: all)")
    parser.add_argument("--measure", type=int, default=600, help="development conversations to answer at the end")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on-from", type=Path, help="a language model's folder, whose shape, words and weights it takes")
    args = parser.parse_args()
    _, device = loop.start(args)
    torch.manual_seed(args.seed)
    tokenizer = prepare_tokenizer(args.data, args.world, args.out, args.go_on_from)
    corpus = encode_corpus(args.out, args.data / TEXT_FILE, args.limit, args.workers, args.seed).to(device)
    dev = encode_corpus(args.out, args.data / DEV_FILE, 512, 1, args.seed).to(device)
    bag_words = corpus.bags[corpus.bags >= 0].long().unique()
    model = new_model(tokenizer) if args.go_on_from is None else model_before(args.go_on_from, tokenizer)
    training = Pretraining(model, tokenizer, bag_words, new=args.go_on_from is None).to(device)
    logger.info(
        "%d conversations, %.1f M tokens; %.2f M parameters",
        *(len(corpus.lengths), len(corpus.tokens) / 1e6, loop.parameter_count(training.model) / 1e6),
    )
    optimizer = loop.muon([training], [training.model.model.layers], args.learning_rate, 0.05, args.hidden_rate)
    training_loop = loop.Loop(args.out, args.minutes, optimizer, {"training": training}, args.start_from)
    generator = torch.Generator().manual_seed(args.seed + training_loop.step)
    lose = torch.compile(training, dynamic=True) if args.compile else training
    order, recorded = batches(corpus, args.batch, generator), 0
    for step in training_loop:
        rows = next(order)
        with loop.autocast(device):
            losses = lose(corpus.batch(rows), corpus.bags)
        loop.update(optimizer, sum(losses.values()))
        training_loop.record(int(corpus.lengths[rows].sum()), **losses)
        if step - recorded >= 100:
            recorded = step
            training_loop.record(0, **dev_losses(training, dev))
    readings, model = training.readings.eval(), training.finish().eval()
    from nextgpt.train.nano.evaluation.words import measure

    with (args.data / DEV_FILE).open(encoding="utf-8") as lines:
        figures = measure(model, tokenizer, map(json.loads, islice(lines, args.measure)), args.world, readings)
    model.bfloat16().save_pretrained(args.out, max_shard_size="15MB")
    training_loop.write_figures(args.out, parameters=loop.parameter_count(model), tokens=len(corpus.tokens), dev=figures)


if __name__ == "__main__":
    main()
