"""The settings of learning from preferences and from rewards: those of the stages, and a few of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import ClassVar

from nextgpt.train.config import BadSetting, TrainingConfig

OBJECTIVES = ("dpo", "kto")


@dataclass
class RewardedConfig(TrainingConfig):
    """What learning from preferences and from rewards share; all else is as for the stages.

    Args:
        beta: how closely the reference is kept to.
    """

    beta: float = 0.1
    sample_steps: int = 0
    numbers: ClassVar[tuple[str, ...]] = ("beta",)  # settings that are numbers of 0 or more
    learns_media: ClassVar[bool] = False  # what they show

    def __post_init__(self):
        super().__post_init__()
        for name in self.numbers:
            self._read_number(name)
        if self.loss_weights:
            raise BadSetting("loss_weights", self.loss_weights, "none: these are the weights of the three stages' losses")
        if self.sample_steps:
            raise BadSetting("sample_steps", self.sample_steps, "0: try the finished model with nextgpt chat")
        self._refuse_unused(["sample_count"], "this run writes no sample answers")
        if self.denoising and not self.learns_media:
            raise BadSetting("denoising", self.denoising, "false: what media show is learned by nextgpt train prefer")
        if self.on_bad_item != "fail":
            raise BadSetting("on_bad_item", self.on_bad_item, "fail: leave the lines out that cannot be used")

    def _refuse_unused(self, names: Iterable[str], reason: str) -> None:
        """Refuses settings that do nothing here; those left at their default are none."""
        defaults = {each.name: each.default for each in fields(self)}
        for name in names:
            if (value := getattr(self, name)) != defaults[name]:
                raise BadSetting(name, value, f"{defaults[name]!r}, for {reason}: leave it out")

    def _read_number(self, name: str) -> None:
        value = getattr(self, name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if isinstance(value, bool) or not 0 <= number < float("inf"):
            raise BadSetting(name, value, "a number of 0 or more")
        setattr(self, name, number)


@dataclass
class PreferenceConfig(RewardedConfig):
    """Settings of `nextgpt train prefer`; `data` names files of pairs (see `nextgpt.train.preferences.pairs`).

    Args:
        objective: `dpo` or `kto`, for words and kinds.
        heldout: files of pairs that are measured on: none of their prompts may come in `data`.
        denoising: what media show is learned too, by Diffusion-DPO.
        media_beta: its beta, for errors that are means over the latents.
        media_weight: its weight in the loss, where that of the words is 1.
        sft_weight: of the next-token loss of the chosen answers, which keeps them likely (Pang et al. 2024).
        desirable_weight, undesirable_weight: of chosen and rejected answers; for `kto`.
    """

    objective: str = "dpo"
    heldout: list[str] = field(default_factory=list)
    denoising: bool = True
    media_beta: float = 2000.0
    media_weight: float = 1.0
    sft_weight: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    learns_media: ClassVar[bool] = True
    numbers: ClassVar[tuple[str, ...]] = (
        "beta",
        "media_beta",
        "media_weight",
        "sft_weight",
        "desirable_weight",
        "undesirable_weight",
    )
    of_the_objective: ClassVar[tuple[str, ...]] = ("objective", *numbers)

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise BadSetting("objective", self.objective, f"one of {', '.join(OBJECTIVES)}")
        if self.objective != "kto":
            self._refuse_unused(["desirable_weight", "undesirable_weight"], "only objective=kto weighs answers")
        if not self.denoising:
            self._refuse_unused(["media_beta", "media_weight"], "denoising=false leaves media out")
            if "output_projections" in (self.trains or ()):
                without = "parts without output_projections, for denoising=false leaves out what they learn from"
                raise BadSetting("trains", self.trains, without)
        self.heldout = [self.heldout] if isinstance(self.heldout, str) else self.heldout
        size = self.arguments.get("per_device_train_batch_size", 8)
        if self.objective == "kto" and size < 2:
            raise BadSetting("per_device_train_batch_size", size, "2 or more: kto compares an answer with those to others")


@dataclass
class GRPOConfig(RewardedConfig):
    """Settings of `nextgpt train rl --objective grpo`; `data` names files of questions, with columns for the reward.

    Args:
        objective: `grpo`.
        reward: names of rewards, or one: `hedging`, `media_fit`, `reward:FOLDER`, `module:function`.
        reward_weights: one number for each; by default 1.
        beta: weight of the divergence from the checkpoint that the run began from; 0: it is not computed.
        num_generations: answers to a prompt, which are compared with each other. `per_device_train_batch_size` counts
            prompts.
        max_new_tokens, temperature: of the answers.
        media: modality → options of its decoder, as `{image: {num_inference_steps: 4}}`.
        loss_type: `dapo`: every token counts alike; `grpo`: every answer.
    """

    objective: str = "grpo"
    reward: list[str] = field(default_factory=list)
    reward_weights: list[float] | None = None
    beta: float = 0.0
    num_generations: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    media: dict[str, dict] = field(default_factory=dict)
    loss_type: str = "dapo"
    numbers: ClassVar[tuple[str, ...]] = ("beta", "temperature")
    of_the_objective: ClassVar[tuple[str, ...]] = (
        *("objective", "reward", "reward_weights", "beta", "num_generations"),
        *("max_new_tokens", "temperature", "media", "loss_type"),
    )

    def __post_init__(self):
        super().__post_init__()
        self.reward = [self.reward] if isinstance(self.reward, str) else self.reward
        if not isinstance(self.reward, list) or not self.reward or not all(isinstance(name, str) for name in self.reward):
            raise BadSetting("reward", self.reward, "the name of a reward, or several, as hedging or my_module:my_function")
        weights = self.reward_weights
        is_whole = isinstance(weights, list) and all(type(each) in (int, float) for each in weights)
        if weights is not None and (not is_whole or len(weights) != len(self.reward)):
            raise BadSetting("reward_weights", weights, f"a number for each of the {len(self.reward)} rewards")
        for name, least in (("num_generations", 2), ("max_new_tokens", 1)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise BadSetting(name, getattr(self, name), f"a whole number of at least {least}")
        if not self.temperature:
            raise BadSetting("temperature", self.temperature, "a number above 0: answers that are all alike teach nothing")
        if self.objective != "grpo":
            raise BadSetting("objective", self.objective, "grpo")
        if self.loss_type not in ("dapo", "grpo"):
            raise BadSetting("loss_type", self.loss_type, "dapo or grpo")
        if not isinstance(self.media, dict):
            raise BadSetting("media", self.media, "options of decoders, as {image: {num_inference_steps: 4}}")


@dataclass
class ILQLConfig(RewardedConfig):
    """Settings of `nextgpt train rl --objective ilql`; `data` names files of conversations with a reward for each answer.

    Args:
        objective: `ilql`.
        beta: weight of a token's advantage in decoding; kept in the checkpoint.
        expectile: how far V leans to the better of what was done; 0.5 is the mean.
        discount: of what comes a token later.
        cql_weight: of the loss that keeps Q low for tokens that nobody said (conservative Q-learning).
        policy_weight: of the next-token loss.
        target_update_rate: of the target networks' soft update at each step; 1: they are the Q heads.
    """

    objective: str = "ilql"
    beta: float = 1.0
    expectile: float = 0.7
    discount: float = 0.99
    cql_weight: float = 0.01
    policy_weight: float = 1.0
    target_update_rate: float = 0.05
    numbers: ClassVar[tuple[str, ...]] = (
        *("beta", "expectile", "discount", "cql_weight", "policy_weight", "target_update_rate"),
    )
    of_the_objective: ClassVar[tuple[str, ...]] = ("objective", *numbers)

    def __post_init__(self):
        super().__post_init__()
        if self.objective != "ilql":
            raise BadSetting("objective", self.objective, "ilql")
        for name in ("expectile", "discount", "target_update_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise BadSetting(name, getattr(self, name), "a number above 0, at most 1")
