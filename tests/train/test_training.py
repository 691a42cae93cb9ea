"""The three training stages, on a tiny model with real frozen parts: what they change, keep, refuse and resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from nextgpt.decoders import StableDiffusionDecoder
from nextgpt.encoders import ImageBind
from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatCollator, ChatDataset, OutputMedia, Reader, TrainingFeatures
from nextgpt.train.data.features import FeatureCache, FeatureSource, FeatureTable, fill
from nextgpt.train.preferences.learning.settings import GRPOConfig, ILQLConfig, PreferenceConfig
from nextgpt.train.stages import STAGES, run_stage
from nextgpt.train.start import load_for_training
from nextgpt.train.trainer import StageTrainer
from tiny_training import REPOSITORY, checkpoint_tensors, config_for, drawing, log_of, naming, write_lines


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_changes_its_own_parts_alone_and_saves_only_those(stage, world, tmp_path, monkeypatch) -> None:
    config = config_for(world, stage, tmp_path / "out", learning_rate=3e-2)
    torch.manual_seed(42)  # as `run_stage` does, so that both start from the same random parts
    before = load_for_training(config)[0].state_dict()
    after = {}

    def save_state(trainer: StageTrainer) -> None:
        after.update(trainer.model.state_dict())
        Trainer.save_state(trainer)

    monkeypatch.setattr(StageTrainer, "save_state", save_state)
    folder = run_stage(stage, config)

    log = log_of(folder)
    parts = {"align_encoders": ["text"]}.get(stage, ["text", "conditioning/image"])
    for name in ["loss", *(f"loss/{part}" for part in parts)]:
        assert log[-1][name] < 0.97 * log[0][name], f"{name} did not fall: {[entry[name] for entry in log]}"

    assert log[0]["loss"] == pytest.approx(sum(log[0][f"loss/{part}"] for part in parts), rel=1e-4)

    assert {name for name in before if not name.startswith("encoder.")} == after.keys()
    groups = [group.replace("adapter", "lora_") for group in STAGES[stage].trains]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if not any(group in name for group in groups)]
    assert all(any(group in name for name in changed) for group in groups)

    reloaded = NextGPTForConditionalGeneration.from_pretrained(folder).state_dict()
    assert before.keys() == reloaded.keys()
    assert all(torch.equal(tensor, reloaded[name]) for name, tensor in after.items())
    for place in (folder, folder / "checkpoint-12"):
        frozen = [name for name in checkpoint_tensors(place) if name.startswith(("encoder", "language_model"))]
        assert not frozen
        assert not list(place.rglob("*.bin"))
        assert NextGPTProcessor.from_pretrained(place).vocabulary.num_signals == 4


def test_a_run_can_leave_some_of_a_stages_parts_as_they_are(world, tmp_path) -> None:
    before = run_stage("instruct", config_for(world, "instruct", tmp_path / "1", max_steps=1))
    changes = {"model": str(before), "max_steps": 2, "trains": ["lora", "input_projection"]}
    after = checkpoint_tensors(run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **changes)))
    changed = {name for name, tensor in checkpoint_tensors(before).items() if not torch.equal(tensor, after[name])}
    assert {"lora" if "lora" in name else name.split(".")[0] for name in changed} == {"lora", "input_projection"}
    for wrong in (["adapter"], ["lora"], [], "input_projection"):  # the first stage trains no adapter
        with pytest.raises(UserInputError, match="trains is .*expected a list of some of input_projection, which align_enc"):
            run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "3", trains=wrong))


def test_a_run_can_widen_the_adapter_which_then_starts_as_it_was(world, tmp_path) -> None:
    first = run_stage("instruct", config_for(world, "instruct", tmp_path / "1", max_steps=2))
    wider = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}
    model, _ = load_for_training(config_for(world, "instruct", tmp_path / "2", model=str(first), lora=wider))
    narrow, wide = NextGPTForConditionalGeneration.from_pretrained(first).eval(), model.eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        assert torch.allclose(narrow(ids).logits, wide(ids).logits, atol=1e-5)
    changes = {"model": str(first), "lora": wider, "max_steps": 2}
    second = run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **changes))
    reloaded = NextGPTForConditionalGeneration.from_pretrained(second).state_dict()
    assert any("up_proj.lora_B" in name and tensor.any() for name, tensor in reloaded.items())
    for name, given in (("lora", {}), ("adapter", {"peft_type": "LORA"})):
        with pytest.raises(UserInputError, match="adapter: unknown key 'target_module' of LORA; did you mean 'target_modul"):
            config_for(world, "instruct", tmp_path / "3", **{name: given | {"target_module": ["up_proj"]}})


def test_a_run_can_give_an_untrained_model_another_adapter_and_go_on_from_it(world, tmp_path) -> None:
    first = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", max_steps=1))
    wider, _ = load_for_training(config_for(world, "instruct", tmp_path / "r", model=str(first), adapter={"r": 7}))
    assert {min(each.shape) for each in wider.adapter.state().values()} == {7}, "another rank of the same type"
    changes = {"trains": ["adapter"], "learning_rates": {"adapter": 3e-2}, "learning_rate": 0.0}
    asked = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}
    config = config_for(world, "instruct", tmp_path / "2", model=str(first), adapter=asked, max_steps=3, **changes)
    second = run_stage("instruct", config)
    assert log_of(second)[-1]["loss/text"] < log_of(second)[0]["loss/text"]
    assert "and prefix tuning (3 virtual tokens)" in (second / "README.md").read_text()
    start = load_file(second / "prefix_tuning" / "adapter_model.safetensors")["prompt_embeddings"]
    changes |= {"model": str(second), "max_steps": 1}
    third = run_stage("instruct", config_for(world, "instruct", tmp_path / "3", **changes))
    moved = load_file(third / "prefix_tuning" / "adapter_model.safetensors")["prompt_embeddings"] - start
    assert moved.abs().max().item() == pytest.approx(3e-2, rel=0.1)  # Adam's first step is the rate
    assert NextGPTForConditionalGeneration.from_pretrained(third).config.trained_groups == ["adapter", "input_projection"]
    with pytest.raises(UserInputError, match="adapter has peft_type IA3, and .*/3 a trained prefix tuning adapter, which"):
        load_for_training(config_for(world, "instruct", tmp_path / "4", model=str(third), adapter={"peft_type": "IA3"}))


def test_an_adapter_that_would_be_trained_in_half_precision_is_refused(world, tmp_path) -> None:
    changes = {"adapter": {"peft_type": "LN_TUNING"}, "dtype": "bfloat16", "max_steps": 1}
    with pytest.raises(UserInputError, match="dtype is bfloat16, in which the LN tuning adapter .*give dtype=float32"):
        run_stage("instruct", config_for(world, "instruct", tmp_path / "1", **changes))
    run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **changes | {"dtype": "float32"}))


def test_a_part_can_have_a_learning_rate_of_its_own(world, tmp_path) -> None:
    before = run_stage("instruct", config_for(world, "instruct", tmp_path / "1", max_steps=1))
    changes = {"model": str(before), "max_steps": 1, "learning_rate": 1e-6, "weight_decay": 0.0}
    changes["learning_rates"] = {"input_projection": 1e-2}
    after = checkpoint_tensors(run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **changes)))
    moved = {name: (after[name] - tensor).abs().max().item() for name, tensor in checkpoint_tensors(before).items()}
    assert moved.pop("input_projection.weight") == pytest.approx(1e-2, rel=0.1)  # Adam's first step is the rate
    assert moved.pop("input_projection.bias") == pytest.approx(1e-2, rel=0.1)
    assert 0 < max(moved.values()) < 1e-4
    with pytest.raises(UserInputError, match="learning_rates: unknown key 'input'; did you mean 'input_projection'"):
        config_for(world, "instruct", tmp_path / "3", learning_rates={"input": 1})


def test_a_stage_starts_from_the_one_before(world, tmp_path) -> None:
    first = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", max_steps=2))
    second = run_stage("align_decoders", config_for(world, "align_decoders", tmp_path / "2", model=str(first), max_steps=2))
    kept, moved = checkpoint_tensors(first), checkpoint_tensors(second)
    assert torch.equal(kept["input_projection.weight"], moved["input_projection.weight"])
    assert not torch.equal(kept["signal_rows.input"], moved["signal_rows.input"])
    assert "\n# model, encoders aligned on align_encoders\n" in (first / "README.md").read_text()
    assert "\n# model, decoders aligned on align_decoders\n" in (second / "README.md").read_text(), "not named for a folder"


def test_frozen_features_are_computed_once(world, tmp_path, monkeypatch) -> None:
    first = run_stage("instruct", config_for(world, "instruct", tmp_path / "1", max_steps=2))

    def refuse(*arguments):
        raise AssertionError("a frozen part ran, though its features are cached")

    monkeypatch.setattr(ImageBind, "encode", refuse)
    monkeypatch.setattr(StableDiffusionDecoder, "encode", refuse)
    second = run_stage("instruct", config_for(world, "instruct", tmp_path / "2", max_steps=2))
    assert log_of(first)[0]["loss"] == log_of(second)[0]["loss"]


class Letters:
    """Stands for a data set whose captions are letters, one a conversation."""

    def __init__(self, letters: str):
        self.letters = letters

    def __len__(self) -> int:
        return len(self.letters)

    def media(self, index: int) -> tuple[list, list]:
        return [], [OutputMedia("image", self.letters[index], None)]


def letter_source(folder: Path, compute) -> FeatureSource:
    def keys(letters):
        return {letter: letter.lower().encode().ljust(32) for letter in letters}

    table = FeatureTable(FeatureCache(folder, "letters", {"content": "1"}), keys)
    return FeatureSource("captions", "image", table, compute)


def test_an_interrupted_cache_keeps_what_it_has_and_equal_content_is_computed_once(tmp_path) -> None:
    asked = []

    def compute(items: list[str]) -> dict:
        asked.extend(items)
        if "d" in items and len(asked) == 4:
            raise KeyboardInterrupt
        return {item: torch.tensor([float(ord(item.lower()))]) for item in items}

    with pytest.raises(KeyboardInterrupt):
        fill(letter_source(tmp_path, compute), Letters("abBcd"), batch_size=1)
    source = letter_source(tmp_path, compute)
    fill(source, Letters("abBcd"), batch_size=1)
    assert len(asked) == 5 and asked[-1] == "d"
    assert [chr(int(row)) for row in source.table.rows(list("abBcd"))] == list("abbcd")

    (source.table.cache.folder / "index.sqlite").unlink()  # it is made anew
    assert [chr(int(row)) for row in letter_source(tmp_path, compute).table.rows(list("dB"))] == list("db")

    (source.table.cache.folder / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserInputError, match=r"safetensors: a broken shard .* delete it"):
        letter_source(tmp_path, compute)


def test_processes_divide_the_items_of_a_cache(tmp_path) -> None:
    asked: list[str] = []

    def compute(items: list[str]) -> dict:
        asked.extend(items)
        return {item: torch.zeros(1) for item in items}

    letters = "abcdefghijklmnop"
    for part in (0, 1, 2):
        fill(letter_source(tmp_path, compute), Letters(letters), batch_size=4, share=(part, 3))
    assert sorted(asked) == list(letters)


def test_cached_features_give_the_loss_of_the_encoder_itself(world, tmp_path) -> None:
    config = config_for(world, "align_encoders", tmp_path)
    model, processor = load_for_training(config)
    conversations = [json.loads(line)["messages"] for line in (world / "align_encoders.jsonl").read_text().splitlines()]
    for conversation in conversations:
        conversation[0]["content"][0]["path"] = str(world / conversation[0]["content"][0]["path"])
    raw = processor(conversations, add_generation_prompt=False, return_labels=True, padding_side="right")
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path, max_steps=1, logging_steps=1))
    torch.manual_seed(42)
    model = load_for_training(config)[0]
    assert log_of(folder)[0]["loss"] == pytest.approx(model(**raw).loss.item(), rel=1e-4)


def test_the_denoising_loss_trains_through_the_frozen_unet(world, tmp_path) -> None:
    config = config_for(world, "instruct", tmp_path, max_steps=2, denoising=True)
    log = log_of(run_stage("instruct", config))
    assert log[0]["loss/denoising/image"] > 0


def test_bf16_gradient_accumulation_and_length_groups_run(world, tmp_path) -> None:
    options = {"bf16": True, "gradient_accumulation_steps": 2, "train_sampling_strategy": "group_by_length"}
    log = log_of(run_stage("instruct", config_for(world, "instruct", tmp_path, max_steps=2, **options)))
    assert log[0]["loss"] > 0


def test_labels_stand_on_the_assistants_words_only(world, processor) -> None:
    dataset = ChatDataset([world / "instruct.jsonl"], Reader(processor))
    for index, expected in enumerate(("A red one.</s>", "Here: [IMG0][IMG1][IMG2][IMG3]</s>")):
        labels = dataset[index]["labels"]
        assert processor.tokenizer.decode(labels[labels != -100]).strip() == expected


class StemLengths:
    """Features that tell items apart: the length of a file's stem, or of a caption."""

    def rows(self, items: list) -> list[torch.Tensor]:
        return [torch.tensor([len(getattr(item, "stem", item))]) for item in items]


def test_a_batch_holds_features_in_the_order_of_their_tokens(world, tmp_path, processor) -> None:
    red, blue = ({"type": "image", "path": str(world / "pictures" / f"{each}.png")} for each in ("red", "blue"))
    two = {"messages": [{"role": "user", "content": [blue, red]}, {"role": "assistant", "content": "Two."}]}
    file = write_lines(tmp_path / "data.jsonl", [two, drawing("red"), naming("red") | two, drawing("blue")])
    dataset = ChatDataset([file], Reader(processor))
    features = TrainingFeatures(inputs={"image": StemLengths()}, targets={"image": StemLengths()})
    batch = ChatCollator(0, features)([dataset[i] for i in range(4)])
    assert batch["media_features"].tolist() == [[4], [3], [4], [3]]
    assert batch["conditioning_targets"]["image"].tolist() == [[len("a red square")], [len("a blue square")]]
    assert batch["attention_mask"].sum(1).tolist() == [len(dataset[i]["input_ids"]) for i in range(4)]
    assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "padding stands on the right"


@pytest.mark.slow
def test_several_processes_tokenize_as_one_does(world, tmp_path, processor) -> None:
    alone, shared = (ChatDataset([world / "instruct.jsonl"], Reader(processor), workers=n) for n in (0, 1))
    for expected, found in ((alone[i], shared[i]) for i in range(len(alone))):
        assert torch.equal(expected.pop("input_ids"), found.pop("input_ids"))
        assert torch.equal(expected.pop("labels"), found.pop("labels"))
        assert expected == found
    file = write_lines(tmp_path / "data.jsonl", [drawing("red"), naming("purple")])
    with pytest.raises(UserInputError, match=r"data.jsonl:2: .*no such file"):
        ChatDataset([file], Reader(processor), workers=1)


BROKEN = {
    "not valid JSON": '{"messages": [',
    "has no role": '{"messages": [{"content": "hi"}]}',
    "no such file": json.dumps(naming("purple")),
    "has no caption": '{"messages": [{"role": "user", "content": "draw"}, '
    '{"role": "assistant", "content": [{"type": "image"}]}]}',
    "nothing to learn": '{"messages": [{"role": "user", "content": "hi"}]}',
    "tokens": '{"messages": [{"role": "user", "content": "' + "hi " * 600 + '"}, {"role": "assistant", "content": "."}]}',
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_line_is_named_by_file_and_number(problem, world, tmp_path, processor) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps(drawing('red'))}\n\n{BROKEN[problem]}\n")
    with pytest.raises(UserInputError, match=f"data.jsonl:3: .*{problem}"):
        ChatDataset([file], Reader(processor, max_length=512))


def test_a_conversation_that_teaches_a_stage_nothing_is_refused(world, tmp_path) -> None:
    with pytest.raises(UserInputError, match=r"align_decoders.jsonl:1: no media from the user"):
        run_stage("align_encoders", config_for(world, "align_decoders", tmp_path))


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("learning_rat=1", "learning_rate"), ("ouput_dir=x", "output_dir"), ("loss_weights={texts: 1}", "text")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(given, nearest) -> None:
    file = REPOSITORY / "train" / "configs" / "nano" / "instruct.yaml"
    with pytest.raises(UserInputError, match=f"unknown key .*did you mean '{nearest}'"):
        TrainingConfig.from_file(file, [given])


@pytest.mark.parametrize("given", ["feature_batch_size=0", "max_length=0", "tokenizing_workers=-1", "sample_count=1.5"])
def test_a_number_that_cannot_be_is_refused_by_its_name(given) -> None:
    file = REPOSITORY / "train" / "configs" / "nano" / "instruct.yaml"
    with pytest.raises(UserInputError, match=f"{given.partition('=')[0]} is .*expected a whole number of at least"):
        TrainingConfig.from_file(file, [given])


def test_the_packaged_configurations_are_valid_and_overrides_win() -> None:
    files = sorted((REPOSITORY / "train" / "configs").glob("*/*.yaml"))
    files = [file for file in files if file.stem != "adapters"]  # see tests/train/compare
    settings = dict.fromkeys([*STAGES, "output_projections"], TrainingConfig) | {
        "prefer": PreferenceConfig,
        "rl": GRPOConfig,
        "ilql": ILQLConfig,
    }
    assert {file.stem for file in files} == set(settings)
    for file in files:
        config = settings[file.stem].from_file(file, ["learning_rate=3e-5", "bf16=false"])
        arguments = config.training_arguments()
        beta = 0.99 if file.parent.name == "own" else 0.95
        assert (arguments.learning_rate, arguments.adam_beta2) == (3e-5, beta)


@pytest.mark.parametrize("has_amx", [True, False])
def test_half_precision_is_chosen_where_it_is_faster(has_amx, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    own = REPOSITORY / "train" / "configs" / "own" / "instruct.yaml"
    assert TrainingConfig.from_file(own, ["use_cpu=true"]).training_arguments().bf16 is has_amx
    assert TrainingConfig.from_file(own, ["use_cpu=true", "bf16=true"]).training_arguments().bf16
    for wrong in ("bf16=maybe", "bf16=1", "fp16=auto"):
        with pytest.raises(UserInputError, match="command line: .*16 is .*, expected true(, false)? or (auto|false)"):
            TrainingConfig.from_file(own, [wrong])


def test_an_adapter_that_is_given_anew_replaces_the_files_whichever_way_it_is_spelled() -> None:
    file = REPOSITORY / "train" / "configs" / "own" / "instruct.yaml"
    assert "up_proj" in TrainingConfig.from_file(file).adapter_changes["target_modules"]
    assert TrainingConfig.from_file(file, ["lora={r: 4}"]).adapter_changes == {"peft_type": "LORA", "r": 4}
    assert TrainingConfig.from_file(file, ["adapter={peft_type: IA3}"]).adapter_changes == {"peft_type": "IA3"}
    with pytest.raises(UserInputError, match="command line: lora is .*, expected nothing beside adapter"):
        TrainingConfig.from_file(file, ["adapter={peft_type: IA3}", "lora={r: 4}"])


PRESET = {
    **{"model": "nano", "data": ["a", "b", "c"], "output_dir": "out", "data_weights": [2, 1, 0.7], "max_steps": 1700},
    **{"warmup_steps": 100, "bf16": True, "lr_scheduler_type": "cosine_with_restarts", "learning_rate": 1e-3},
    **{"lr_scheduler_kwargs": {"num_cycles": 2}, "optim": "adafactor", "optim_args": "scale_parameter=false"},
}


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("data=[mine.jsonl, yours.jsonl]", {"data_weights"}),
        ("train_sampling_strategy=sequential", {"data_weights"}),
        ("num_train_epochs=3", {"max_steps"}),
        ("max_steps=60", {"warmup_steps"}),
        ("max_steps=2000", set()),
        ("fp16=true", {"bf16"}),
        ("fp16=false", set()),
        ("lr_scheduler_type=linear", {"lr_scheduler_kwargs"}),
        ("optim=adamw_torch", {"optim_args"}),
        ("output_dir=elsewhere", set()),
    ],
)
def test_a_setting_does_not_outlive_the_one_that_it_belongs_to(given, gone, tmp_path, caplog) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(PRESET))
    with caplog.at_level("INFO"):
        config = TrainingConfig.from_file(file, [given])
    kept = {key for key in PRESET if key in config.arguments or getattr(config, key, None) is not None}
    assert set(PRESET) - kept == gone
    for key in gone:
        assert f"{key}=" in caplog.text and str(file) in caplog.text, "what is left out is said"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data=[a]", "data_weights=[1, 2]"], r"command line: data_weights is \[1, 2\], .* each of the 1 files \(a\)"),
        (["data_weights=[1]"], r"command line: data_weights is \[1\], .* each of the 3 files \(a, b, c\)"),
        (["seed=1"], r"run.yaml: dtype is 'float8', expected one of"),
        (["denoising=nope"], r"command line: denoising is 'nope', expected true or false"),
        (["features=5"], r"command line: features is 5, expected a name or a path"),
        (["resume=3"], r"command line: resume is 3, expected auto, true, false or a checkpoint's folder"),
        (["dtype=int8"], r"command line: dtype is 'int8', expected one of"),
        (["learning_rate=fast"], r"command line: learning_rate is 'fast', expected a number"),
        (["loss_weights=3"], r"command line: loss_weights is 3, expected a number for each part"),
    ],
)
def test_a_message_says_whether_the_file_or_the_command_line_is_wrong(given, message, tmp_path) -> None:
    file = tmp_path / "run.yaml"
    wrong = {"dtype": "float8"} if given == ["seed=1"] else {}
    file.write_text(json.dumps(PRESET | wrong))
    with pytest.raises(UserInputError, match=message):
        TrainingConfig.from_file(file, given)


@pytest.mark.slow
def test_the_command_trains_and_says_what_is_wrong_in_one_line(world, tmp_path) -> None:
    file = tmp_path / "run.yaml"
    config = {"model": str(world / "model"), "data": str(world / "align_encoders.jsonl"), "use_cpu": True}
    file.write_text(json.dumps(config | {"features": str(tmp_path / "f"), "output_dir": str(tmp_path / "out")}))
    command = [sys.executable, "-m", "nextgpt.train.align_encoders", "--config", str(file)]
    done = subprocess.run([*command, "max_steps=1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("events.out.tfevents.*")), "tensorboard is the default log"
    failed = subprocess.run([*command, "data=absent.jsonl"], cwd=REPOSITORY, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "error: absent.jsonl: no such file" in failed.stderr
    assert "Traceback" not in failed.stderr
