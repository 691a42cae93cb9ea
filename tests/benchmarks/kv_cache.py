"""What the chat gains by keeping the KV cache between turns: time to the first token, turn 20 over turn 1.

`python tests/benchmarks/kv_cache.py` prints it with reuse on and off. Twenty text turns of equal length;
the language model has random weights and is wide enough for the reading of the prompt to dominate. The figure is valid
only if switching reuse off makes turn 20 at least three times slower.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from nextgpt import NextGPTConfig, NextGPTPipeline  # noqa: E402
from nextgpt.decoders import load_decoder  # noqa: E402
from nextgpt.demo.answers import AnswerQueue  # noqa: E402
from nextgpt.demo.conversations import Store  # noqa: E402
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration  # noqa: E402
from nextgpt.processing_nextgpt import NextGPTProcessor  # noqa: E402
from tiny_models import SIZES, tiny_config, tiny_tokenizer  # noqa: E402

TURNS = 20
QUESTION = "What do you see? I see a cat and a dog on a blue background, and a bird. Is it large?"
OPTIONS = {"max_new_tokens": 4, "require": {}}  # words alone


def wide_pipeline(folder: Path, hidden_size: int, layers: int) -> NextGPTPipeline:
    """The tiny assistant of the tests, with a wider language model."""
    config = tiny_config(folder)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 8192}
    torch.manual_seed(0)
    wide = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tiny_tokenizer()), **(SIZES | sizes)))
    wide.save_pretrained(folder / "language_model")
    config = NextGPTConfig(**config.to_dict())  # reads the new sizes
    decoders = {"image": load_decoder("stable-diffusion", str(folder / "image_decoder"))}
    model, processor = NextGPTForConditionalGeneration.from_parts(config), NextGPTProcessor.from_config(config)
    return NextGPTPipeline(model, processor, decoders)


def measure(pipeline: NextGPTPipeline) -> tuple[float, float, float]:
    """One conversation of the chat: seconds to the first token at turn 1, at turn 20, and at turn 20 with nothing kept."""
    store = Store(pipeline.new_session)
    answers, conversation = AnswerQueue(pipeline, store), store.create()

    def seconds() -> float:
        while conversation.busy:
            time.sleep(0.01)
        return conversation.turns[-1].timings.first_token

    kept = []
    for _ in range(TURNS):
        answers.ask(conversation, QUESTION, [], OPTIONS)
        kept.append(seconds())
    conversation.session = None
    answers.ask_again(conversation, TURNS - 1, OPTIONS)
    afresh = seconds()
    store.close()
    return kept[0], kept[-1], afresh


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5, help="conversations, of which the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = wide_pipeline(Path(folder), args.hidden_size, args.layers)
        measure(pipeline)  # warms up
        runs = [measure(pipeline) for _ in range(args.repeat)]
    first, kept, afresh = (statistics.median(times) for times in zip(*runs, strict=True))
    print(f"time to the first token     turn 1   turn {TURNS}   ratio")
    for name, last in (("reuse on", kept), ("reuse off", afresh)):
        print(f"{name:<24} {first:>7.3f} s {last:>7.3f} s {last / first:>7.2f}")
    print(f"without reuse, turn {TURNS} takes {afresh / kept:.1f} times as long (the figure is valid from 3)")


if __name__ == "__main__":
    main()
