"""Which device and which precision, one table, explicit; and how much memory was taken."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController
from torch.nn.attention import SDPBackend, sdpa_kernel

from nextgpt.errors import UserInputError

# Inference dtype by device type; every other accelerator computes in bf16. CPUs without bf16 units are many, and fp32
# is right on all of them.
INFERENCE_DTYPES = {"cpu": torch.float32, "mps": torch.float16}
SMALL = 50_000_000  # parameters; networks of fewer are computed by one thread


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`"auto"` → the accelerator that torch finds (CUDA, MPS, XPU …), else the CPU.

    Raises:
        UserInputError: torch cannot use the device that was asked for.
    """
    if str(device) != "auto":
        try:
            device = torch.device(device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserInputError(f"device {str(device)!r} cannot be used here: take auto or cpu") from error
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`"auto"` → the table's entry for the device; a name such as `"bfloat16"` → its dtype.

    Raises:
        UserInputError: no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        known = INFERENCE_DTYPES.get(device.type)
        return known or (torch.bfloat16 if multiplies_faster_in_half(device) else torch.float16)
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserInputError(f"dtype {dtype!r} is unknown: use auto, float32, bfloat16 or float16")
    return found


def training_attention(device: torch.device) -> AbstractContextManager:
    """The attention to train with: on CPUs the plain one, for the backward of torch's fused one takes half of a step.

    Measured with torch 2.14 in bf16 on two cores with AVX512-BF16: a step of a small Llama takes 0.85 s instead of
    1.24 s (16 × 256 tokens), one of the nano encoder half the time.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def multiplies_faster_in_half(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32; of CPUs those with AMX alone.

    Measured with torch 2.14, one thread, `[8192, 320] @ [320, 864]`: 149 GFLOP/s in float32 and 88 in bfloat16 on a Xeon
    with AVX512-BF16 and without AMX; with AMX bfloat16 is 4 to 8 times as fast as float32.
    """
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported()
    knows = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return knows is None or knows(including_emulation=False)


def compute_alone(parameters: int) -> None:
    """Lets this thread, of a program of several, compute without helpers if what it computes with is small.

    On a small network's products helpers save less than waiting for them costs, above all where other threads have helpers
    too and all of them are more than there are processors. Measured with nano in torch 2.14 on two cores: a short answer
    takes 90 ms instead of 150, a picture 100 instead of 145, a clip 1.8 s instead of 2.5. Other threads keep theirs.

    Args:
        parameters: of the networks.
    """
    if parameters < SMALL:
        torch.get_num_threads()  # torch sets a thread's number itself, once, when it is first asked for
        ThreadpoolController().limit(limits=1, user_api="openmp")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the CPU."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return isinstance(error, MemoryError | torch.OutOfMemoryError)
    from accelerate.utils.memory import should_reduce_batch_size  # knows what other accelerators say

    return should_reduce_batch_size(error)


def peak_memory() -> int:
    """Bytes of main memory that this process has held at most.

    On Linux `getrusage` would count what the parent held when it forked, too.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        [line] = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
