"""Runs that train the output projections alone: the LLM reads each conversation once, and what is learned is the same."""

import pytest
import torch

from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train import stages
from nextgpt.train.stages import run_stage
from nextgpt.train.trainer import StageTrainer
from tiny_training import checkpoint_tensors, config_for, log_of

ALONE = {"trains": ["output_projections"], "learning_rate": 1e-3}


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many conversations each pass through the LLM took."""
    counts, run = [], NextGPTForConditionalGeneration._run

    def counted(self, embeddings, *args, **kwargs):
        counts.append(len(embeddings))
        return run(self, embeddings, *args, **kwargs)

    monkeypatch.setattr(NextGPTForConditionalGeneration, "_run", counted)
    return counts


@pytest.mark.parametrize("stage", ["align_decoders", "instruct"])  # of the latter half of the conversations make nothing
@pytest.mark.parametrize("denoising", [False, True])
def test_it_learns_what_a_run_that_reads_everything_again_learns(stage, denoising, world, tmp_path, monkeypatch) -> None:
    changes = ALONE | {"denoising": denoising, "per_device_train_batch_size": 3, "max_steps": 4}
    once = run_stage(stage, config_for(world, stage, tmp_path / "once", **changes))
    monkeypatch.setattr(stages, "ProjectionTrainer", StageTrainer)
    again = run_stage(stage, config_for(world, stage, tmp_path / "again", **changes))
    for ours, plain in zip(log_of(once), log_of(again), strict=True):
        assert "loss/text" in plain and "loss/text" not in ours
        assert ours["loss/conditioning/image"] == pytest.approx(plain["loss/conditioning/image"], rel=1e-3)
    if not denoising:  # whose noise is drawn anew each time
        learned, expected = checkpoint_tensors(once), checkpoint_tensors(again)
        assert all(torch.allclose(learned[name], tensor, atol=1e-3) for name, tensor in expected.items())


def test_each_conversation_goes_through_the_llm_once(world, tmp_path, passes) -> None:
    run_stage("instruct", config_for(world, "instruct", tmp_path, **ALONE, max_steps=12))
    assert sum(passes) == 8, "four that name and four that draw, in six epochs"


def test_a_batch_without_media_teaches_nothing_and_stops_nothing(world, tmp_path) -> None:
    changes = ALONE | {"data": [str(world / "align_encoders.jsonl")], "max_steps": 2}
    after = checkpoint_tensors(run_stage("instruct", config_for(world, "instruct", tmp_path, **changes)))
    assert all(tensor.isfinite().all() for tensor in after.values())
