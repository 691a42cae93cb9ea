"""The losses of preferences equal trl's own on a text-only model, and those of media the published formula."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train.preferences.learning import objectives
from nextgpt.train.preferences.learning.policy import chosen_tokens, read_answers, run_starts, run_states
from tiny_models import tiny_config, tiny_model

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
ROWS = {
    "prompt": ["draw a banana", "What do you see?", "Play a trumpet"],
    "chosen": [" Here is a large banana", " I see a cat", " a trumpet!"],
    "rejected": [" a dog", " I see a cat and a dog.", " film a bird, cat"],
}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[NextGPTForConditionalGeneration, PreTrainedModel, AutoTokenizer]:
    """A model of words alone, the same LLM by itself, and its tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    config = tiny_config(folder, decoders={}, adapter=False)
    llm = AutoModelForCausalLM.from_pretrained(folder / "language_model", dtype=torch.float32)
    return NextGPTForConditionalGeneration.from_parts(config), llm, AutoTokenizer.from_pretrained(folder / "language_model")


def moved(llm: PreTrainedModel) -> PreTrainedModel:
    """The LLM after some training, as it were."""
    policy = copy.deepcopy(llm)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return policy


def log_probabilities(model: NextGPTForConditionalGeneration, llm: PreTrainedModel, ids, mask, answers) -> torch.Tensor:
    """Ours, of the tokens of the answers, by the same code that training runs."""
    model.get_base_model().load_state_dict({name: tensor.clone() for name, tensor in llm.state_dict().items()})
    return read_answers(model, ids, mask, ids.masked_fill(answers == 0, -100)).log_probabilities


def trls(trainer_class, arguments, policy, llm, tokenizer, rows: dict) -> tuple[dict, float]:
    """A batch as a trainer of TRL makes it, and the loss that it computes of it."""
    data = Dataset.from_dict(rows)
    reference = copy.deepcopy(llm)
    trainer = trainer_class(policy, ref_model=reference, args=arguments, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    return batch, trainer.compute_loss(trainer.model, dict(batch)).item()


@pytest.mark.parametrize("own_sft", [False, True])
def test_dpo_is_that_of_trl(own, own_sft, tmp_path):
    from trl import DPOConfig, DPOTrainer

    model, llm, tokenizer = own
    kinds = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]} if own_sft else {}
    arguments = DPOConfig(output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=3, **kinds, **QUIET)
    policy = moved(llm)
    batch, expected = trls(DPOTrainer, arguments, policy, llm, tokenizer, ROWS)

    ids, mask, answers = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    reference = log_probabilities(model, llm, ids, mask, answers).sum(1).chunk(2)
    tokens = log_probabilities(model, policy, ids, mask, answers)
    chosen, rejected = tokens.sum(1).chunk(2)
    loss = objectives.dpo_loss(objectives.margins(chosen, rejected, *reference), 0.3).mean()
    if own_sft:
        loss = loss - 0.3 * chosen.sum() / (answers.chunk(2)[0][:, 1:]).sum()
    assert expected != pytest.approx(np.log(2), abs=1e-2), "the policy has not moved"
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_kto_is_that_of_trl(own, tmp_path):
    from trl import KTOConfig, KTOTrainer

    model, llm, tokenizer = own
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    arguments = KTOConfig(output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=4, **weights, **QUIET)
    rows = {
        "prompt": ROWS["prompt"] + ROWS["prompt"][:1],
        "completion": ROWS["chosen"] + ROWS["rejected"][:1],
        "label": [True, False, True, False],
    }
    policy = moved(llm)
    batch, expected = trls(KTOTrainer, arguments, policy, llm, tokenizer, rows)

    def ratios(prefix: str = "") -> torch.Tensor:
        given = [batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask")]
        then = log_probabilities(model, llm, *given).sum(1)
        return log_probabilities(model, policy, *given).sum(1) - then

    divergence = objectives.kto_divergence(ratios("KL_"))
    loss = objectives.kto_loss(ratios(), torch.as_tensor(batch["label"]).bool(), divergence, 0.3, **weights).mean()
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_grpo_is_that_of_trl(own, loss_type, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    model, llm, tokenizer = own

    def reward(prompts, completions, **columns) -> list[float]:
        return [float(len(each) % 5) for each in completions]

    arguments = GRPOConfig(
        output_dir=str(tmp_path), beta=0.2, num_generations=3, per_device_train_batch_size=3, max_completion_length=6,
        loss_type=loss_type, temperature=1.0, **QUIET,
    )  # fmt: skip
    policy = moved(llm)
    trainer = GRPOTrainer(
        policy, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_dict({"prompt": ROWS["prompt"]}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.ref_model = llm
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(llm)
    torch.manual_seed(3)
    ids = torch.randint(4, 300, (3, 8))
    answers = torch.ones(3, 5).long()
    answers[1, 3:] = 0
    mask = torch.cat([torch.ones(3, 3).long(), answers], dim=1)
    drawn = torch.cat([torch.zeros(3, 3).long(), answers], dim=1)
    rewards = torch.tensor([0.0, 1.0, 0.25])
    advantages = objectives.group_advantages(rewards, 3)
    assert advantages == pytest.approx(((rewards - rewards.mean()) / (rewards.std() + 1e-4)).tolist())

    reference = log_probabilities(model, llm, ids, mask, drawn)
    tokens = log_probabilities(model, policy, ids, mask, drawn)
    old = tokens.detach() + 0.4 * torch.randn(tokens.shape)  # far enough for the ratios to be clipped
    inputs = {
        "prompt_ids": ids[:, :3], "prompt_mask": mask[:, :3], "completion_ids": ids[:, 3:], "completion_mask": answers,
        "advantages": advantages, "old_per_token_logps": old[:, 3:], "ref_per_token_logps": reference[:, 3:],
        "num_items_in_batch": answers.sum(),
    }  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(trainer.model, inputs).item()
    loss = objectives.grpo_loss(tokens, old, advantages, drawn, clip=0.2, reference=reference, beta=0.2)
    loss = loss.sum() / drawn.sum() if loss_type == "dapo" else (loss.sum(1) / drawn.sum(1)).mean()
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_an_answer_without_a_reward_moves_nothing():
    advantages = objectives.group_advantages(torch.tensor([1.0, 0.0, torch.nan, 2.0, 2.0, 2.0]), 3)
    assert advantages[0] == -advantages[1] > 0 and not advantages[2:].any()


def test_diffusion_dpo_is_the_published_formula():
    torch.manual_seed(0)
    errors = torch.rand(4, 5)
    policy, reference = (errors[0] - errors[1]), (errors[2] - errors[3])
    published = -F.logsigmoid(-0.5 * 2000 * (policy - reference))  # SalesforceAIResearch/DiffusionDPO, train.py
    own = objectives.dpo_loss(objectives.diffusion_margins(*errors), 2000)
    assert torch.allclose(own, published)


def test_forced_tokens_and_earlier_turns_count_in_no_log_probability(tmp_path):
    model, processor = tiny_model(tmp_path)
    picture = {"type": "image"}
    messages = [
        {"role": "user", "content": "draw"},
        {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, picture]},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": [{"type": "text", "text": "Now "}, picture, {"type": "text", "text": " yes"}]},
    ]
    read = processor(messages, add_generation_prompt=False, return_labels=True)
    ids, spoken = read["input_ids"][0].numpy(), (read["labels"][0] != -100).numpy()
    counted = chosen_tokens(ids, spoken, processor.vocabulary)
    first, *forced = processor.vocabulary.runs["image"]
    assert list(ids[counted]).count(first) == 1 and not np.isin(ids[counted], forced).any()
    assert processor.tokenizer.decode([i for i in ids[counted] if i != first]).split() == ["Now", "yes</s>"]

    labels = read["input_ids"].masked_fill(~torch.from_numpy(counted)[None], -100)
    found = read_answers(model, read["input_ids"], read["attention_mask"], labels).log_probabilities[0]
    assert (found.detach().numpy() != 0).tolist() == counted.tolist()
    whole = model(read["input_ids"], read["attention_mask"]).logits[0].log_softmax(-1)
    for place in np.flatnonzero(counted):
        assert found[place].item() == pytest.approx(whole[place - 1, ids[place]].item(), abs=1e-5)
    (start,) = run_starts(labels[0], "image", processor.vocabulary)
    run = run_states(read["input_ids"][..., None], torch.tensor([[0, start]]), 1 + len(forced))
    assert run[0, :, 0].tolist() == [first, *forced] and start == np.flatnonzero(ids == first)[-1]
