"""The clock, the log and the checkpoints that the makers of the parts share."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.hardware import multiplies_faster_in_half, resolve_device, training_attention
from nextgpt.train.data.files import whole_file
from nextgpt.train.nano.defaults import DEFAULTS, ROOT
from nextgpt.train.nano.world.pictures import World

logger = logging.getLogger(__name__)

WARM_UP = 0.03  # of the time
HIDDEN_RATE = 1e-2  # of Muon, from nothing
LOG_SECONDS = 5
SAVE_SECONDS = 60
CURVE_ROWS = 100
WORK_SUFFIX = ".work"  # `<out>.work` keeps what does not ship: the log, the checkpoint, contact sheets
LOG_FILE = "training_log.json"  # beside what a maker saves: its figures and its curve


class Loop:
    """One training run: iterating it goes on until the minutes are spent, over all starts together.

    On a processor the minutes are those that it computed, by each thread: a run beside other work learns as much as one
    alone, and takes longer. The learning rate of every parameter group rises at first and then falls linearly to zero with
    the time that is left.

    Args:
        out: folder of the part that is made.
        minutes: how long to train.
        optimizer: its learning rates are the highest ones.
        kept: name → what a checkpoint holds besides the optimizer; anything with `state_dict` and `load_state_dict`.
            What an earlier checkpoint lacks begins anew.
        start_from: another run's checkpoint, of a smaller world or another optimizer, say: where there is none of this run,
            the tensors of its modules that are as large as here are taken over.
    """

    def __init__(
        self,
        out: Path,
        minutes: float,
        optimizer: torch.optim.Optimizer | Together,
        kept: dict[str, Any],
        start_from: Path | None = None,
    ):
        self.work = _work(out)
        self.checkpoint = self.work / "checkpoint.pt"
        self.minutes, self.optimizer, self.start_from = minutes, optimizer, start_from
        device = _device_of(optimizer)
        self.clock = _processor_time if device.type == "cpu" else time.monotonic
        self.kept = {"optimizer": optimizer, **kept}
        self.highest = [group["lr"] for group in optimizer.param_groups]
        self.step, self.samples, self.before = 0, 0, 0.0
        self.curve: list[dict] = []
        self._losses: dict[str, list[Tensor]] = defaultdict(list)
        if self.checkpoint.exists():
            self._load()
        elif start_from is not None:
            self._take_over(start_from)

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return self.before + self.clock() - self.started

    def __iter__(self) -> Iterator[int]:
        device = _device_of(self.optimizer)
        with training_attention(device):
            yield from self._steps()

    def _steps(self) -> Iterator[int]:
        self.started, self._logged, self._saved = self.clock(), time.monotonic(), time.monotonic()
        self._logged_samples = self.samples
        while (left := 1 - self.seconds / (60 * self.minutes)) > 0:
            warm = min(1.0, (1 - left) / WARM_UP + 0.01)
            for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
                group["lr"] = highest * warm * left
            yield self.step
            self.step += 1
            if time.monotonic() - self._logged > LOG_SECONDS:
                self._log()
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self._save()
        self._log()
        self._save()

    def record(self, samples: int, **losses: Tensor) -> None:
        """Counts a step's samples and remembers its losses for the next line of the log."""
        self.samples += samples
        for name, loss in losses.items():
            self._losses[name].append(loss.detach())

    def _log(self) -> None:
        if not self._losses:
            return
        row = {name: round(torch.stack(values).mean().item(), 5) for name, values in self._losses.items()}
        now = time.monotonic()
        speed = (self.samples - self._logged_samples) / (now - self._logged)
        row = {"seconds": round(self.seconds), "step": self.step, **row, "samples_per_second": round(speed)}
        self._logged, self._logged_samples = now, self.samples
        self._losses.clear()
        self.curve.append(row)
        logger.info("  ".join(f"{name} {value}" for name, value in row.items()))

    def _save(self) -> None:
        state = {name: thing.state_dict() for name, thing in self.kept.items()}
        counts = {"step": self.step, "samples": self.samples, "seconds": self.seconds, "curve": self.curve}
        with whole_file(self.checkpoint) as beside:
            torch.save({"state": state, "counts": counts}, beside)
        self._saved = time.monotonic()

    def _load(self) -> None:
        found = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        state = found["state"]
        for name in sorted(self.kept.keys() - state.keys()):
            logger.info("%s is not in %s: it begins anew", name, self.checkpoint)
        for name in self.kept.keys() & state.keys():
            try:
                self.kept[name].load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise SystemExit(
                    f"{self.checkpoint} does not fit this version of the maker ({name}: {reason}): move it away and go on"
                    " from its tensors with --start-from, or remove it"
                ) from None
        counts = found["counts"]
        self.step, self.samples, self.before = counts["step"], counts["samples"], counts["seconds"]
        self.curve = counts["curve"]
        torch.manual_seed(self.step)
        logger.info("goes on from %s at step %d", self.checkpoint, self.step)

    def _take_over(self, checkpoint: Path) -> None:
        found = torch.load(checkpoint, weights_only=True, map_location="cpu")["state"]
        for name in (self.kept.keys() & found.keys()) - {"optimizer"}:
            own = self.kept[name].state_dict()
            fitting = {key: value for key, value in found[name].items() if key in own and value.shape == own[key].shape}
            self.kept[name].load_state_dict(own | fitting)
            logger.info("%s: %d of %d tensors are taken over from %s", name, len(fitting), len(own), checkpoint)

    def write_figures(self, out: Path, **figures: Any) -> None:
        """Writes `training_log.json`: the figures, and at most `CURVE_ROWS` rows of the curve."""
        curve = thinned(self.curve, CURVE_ROWS)
        log = {"figures": figures, "minutes": round(self.minutes, 2), "steps": self.step, "samples": self.samples}
        log |= {"started_from": str(self.start_from)} if self.start_from else {}
        log |= {"finished": time.strftime("%Y-%m-%d %H:%M:%S"), "torch": torch.__version__, "curve": curve}
        (out / LOG_FILE).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        logger.info("%s", figures)


def thinned(curve: list[dict], most: int) -> list[dict]:
    """At most so many rows of a curve, evenly spread."""
    return curve[:: math.ceil(len(curve) / most) or 1]


def _device_of(optimizer: torch.optim.Optimizer | Together) -> torch.device:
    return next(p.device for group in optimizer.param_groups for p in group["params"])


def _processor_time() -> float:
    """Seconds that this process has computed, by each thread."""
    return time.process_time() / torch.get_num_threads()


def arguments(
    description: str, part: str | dict[str, str], learning_rate: float, hidden_rate: float | None = None
) -> argparse.ArgumentParser:
    """The arguments that every maker has.

    Args:
        part: the folder under the root that it makes; modality → folder where the first argument is the modality.
        learning_rate: the highest, by default.
        hidden_rate: Muon's highest, of a maker that uses it.
    """
    parser = argparse.ArgumentParser(description=description)
    if isinstance(part, dict):
        parser.add_argument("modality", choices=part)
    parser.add_argument("--world", type=Path, default=ROOT / "world")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, help="of training, earlier starts counted in")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--compile", action="store_true", help="compile the network first (worth it on a GPU)")
    parser.add_argument("--concepts", type=int, help="learn so many concepts only, to try the script out")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="the highest (default: %(default)g)")
    if hidden_rate is not None:
        more = "of the hidden matrices; what is trained already wants a fifth of it"
        parser.add_argument("--hidden-rate", type=float, default=hidden_rate, help=f"{more} (default: %(default)g)")
    parser.add_argument("--start-from", type=Path, help="a checkpoint of a smaller world: what fits is taken over")
    parser.set_defaults(part=part)
    return parser


def start(args: argparse.Namespace) -> tuple[World, torch.device]:
    """Sets up logging, seed, device, batch size and output folder; opens the world."""
    part = args.part[args.modality] if isinstance(args.part, dict) else args.part
    default = DEFAULTS[part]
    args.out = args.out or ROOT / part
    args.minutes = default.minutes if args.minutes is None else args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    log = logging.FileHandler(_work(args.out) / "log.txt")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", handlers=[logging.StreamHandler(), log], force=True
    )
    device = resolve_device(args.device)
    args.batch = args.batch or (default.batch // 8 if device.type == "cpu" else default.batch)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    return World(args.world), device


def _work(out: Path) -> Path:
    work = out.with_name(out.name + WORK_SUFFIX)
    work.mkdir(parents=True, exist_ok=True)
    return work


def adamw(modules: Iterable[nn.Module], learning_rate: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW over the modules' parameters; vectors (norms and biases) do not decay."""
    return torch.optim.AdamW(parameter_groups(modules, weight_decay), lr=learning_rate, betas=(0.9, 0.99), fused=True)


def muon(
    modules: Iterable[nn.Module],
    hidden: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float = 0.01,
    hidden_rate: float = HIDDEN_RATE,
) -> Together:
    """Muon over the matrices of the hidden layers, AdamW over all else: transformers learn from a third of the samples.

    Args:
        modules: all that is trained.
        hidden: modules of them whose matrices are orthogonalised; neither embeddings nor heads.
        learning_rate, hidden_rate: of AdamW and of Muon, whose steps are as large as AdamW's would be.
    """
    matrices = [p for module in hidden for p in module.parameters() if p.ndim == 2]
    known = set(map(id, matrices))
    groups = parameter_groups(modules, weight_decay)
    groups = [group | {"params": [p for p in group["params"] if id(p) not in known]} for group in groups]
    return Together(
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True),
        torch.optim.Muon(matrices, lr=hidden_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
    )


class Together:
    """Optimizers that step together, each over its own parameters."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        """Those of all."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """As torch's."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        """One for each optimizer."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        """Of as many optimizers as here."""
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict]:
    """The modules' parameters as an optimizer's groups: those that decay, and those that do not."""
    parameters = [p for module in modules for p in module.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def update(optimizer: torch.optim.Optimizer | Together, loss: Tensor) -> None:
    """One optimizer step, the gradients' norm held at 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


class PatchProjection(nn.Module):
    """A convolution over patches that do not overlap, with its weights, as one matrix product.

    On a processor oneDNN's gradient of such a convolution takes longer than all else in a training step.
    """

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d):
        super().__init__()
        self.weight, self.bias, self.patch = convolution.weight, convolution.bias, convolution.kernel_size

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, sides...]` → `[N, D, patches a side...]`."""
        weight, sizes, sides = self.weight, self.patch, range(2, images.ndim)
        if images.ndim == 5 and images.stride(2) == 0:  # a picture that stands for all frames of a clip is read once
            images = images[:, :, :: sizes[0]]
            weight, sizes = weight.sum(2, keepdim=True), (1, *sizes[1:])
        for side, patch in zip(reversed(sides), reversed(sizes), strict=True):
            images = images.unflatten(side, (-1, patch))
        patches = images.permute(0, *range(2, images.ndim, 2), 1, *range(3, images.ndim, 2))
        return F.linear(patches.flatten(len(sides) + 1), weight.flatten(1), self.bias).movedim(-1, 1)

    @classmethod
    def replace_in(cls, network: nn.Module) -> None:
        """Puts one in place of each such convolution; the names of the weights stay."""
        for module in network.modules():
            for name, child in module.named_children():
                if (
                    isinstance(child, (nn.Conv2d, nn.Conv3d))
                    and child.kernel_size == child.stride
                    and not any(child.padding)
                ):
                    setattr(module, name, cls(child))


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in bfloat16, where that is faster."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=multiplies_faster_in_half(device))


def parameter_count(*modules: nn.Module) -> int:
    """Parameters of the modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def save_contact_sheet(rows: Iterable[Tensor], file: Path) -> None:
    """Rows of pictures, each `[N, 3, H, W]` in 0..1, as one PNG; a row may be short."""
    strips = [torch.cat(list(row), dim=2) for row in rows if len(row)]
    width = max(strip.shape[2] for strip in strips)
    sheet = torch.cat([F.pad(strip, (0, width - strip.shape[2])) for strip in strips], dim=1).clamp(0, 1)
    pixels = sheet.float().mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file)
