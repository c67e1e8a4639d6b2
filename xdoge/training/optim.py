"""Learning-rate schedule, optimiser, device and precision of a training, and checks of the launcher's settings."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any, Protocol

import torch

from xdoge.distributed import Processes
from xdoge.errors import XDogeError
from xdoge.training.proxy_settings import ProxySettings

BETAS = (0.9, 0.95)
"""β of AdamW, as for GPT-3 and Llama (Brown et al. 2020, appendix B; Touvron et al. 2023, section 2.3)."""


class Schedule(Protocol):
    """Settings on which the learning rate depends."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> float: ...
    @property
    def final_learning_rate(self) -> float: ...


def learning_rate_ratio(step: int, settings: Schedule) -> float:
    """Return the learning rate of a step, relative to the peak: linear warm-up, then cosine decay.

    Args:
        step: number of the step, from 1.
        settings: number of steps, share of the warm-up, and final learning rate relative to the peak.
    """
    warm = settings.warmup * settings.steps
    if step <= warm:
        return step / max(1.0, warm)
    progress = max(0.0, step - 1 - warm) / max(1.0, settings.steps - 1 - warm)
    final = settings.final_learning_rate
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def make_optimiser(model: torch.nn.Module, settings: ProxySettings) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only, not on norm gains and biases."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS)


def pick_device(name: str) -> torch.device:
    """Return the device that a setting names. "auto" means the GPU if there is one, else the CPU.

    Raises:
        XDogeError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise XDogeError(f"device {name!r} is unknown; write auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise XDogeError(f"device {name!r} is not on this machine; write auto or cpu.")
    return device


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 or, for float32, None. "auto" means bfloat16 if the device is a GPU that supports it."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if precision == "bfloat16" else None


def check_launch(processes: Processes, settings: ProxySettings) -> None:
    """Raise an error if the launcher's settings do not suit a fit.

    Raises:
        XDogeError: the batch is too small for the processes, or the device is that of a single process. Or accelerate
            is configured to shard the proxy, or with another precision.
    """
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise XDogeError(
                f"accelerate is set to {name}, but a fit keeps the whole proxy on every GPU: it computes "
                "gradients per source from whole layers. Start it with torchrun, or with a config of "
                "accelerate without it."
            )
    if processes.world_size == 1:
        return
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = pick_autocast(settings.precision, torch.device(processes.device))
    if precision not in ("no", "bf16" if ours else "no"):
        raise XDogeError(
            f"accelerate is set to mixed_precision {precision}, but precision {settings.precision} is "
            f"{'bfloat16' if ours else 'float32'} here; use the same for both."
        )
    if settings.device == "cuda" and not processes.device.startswith("cuda"):
        raise XDogeError("device 'cuda' is not on this machine; write auto or cpu.")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise XDogeError(
            f"device {settings.device} is a single device, but there are {processes.world_size} "
            "processes; write cuda, auto or cpu."
        )
    if settings.batch_size < processes.world_size:
        raise XDogeError(
            f"batch_size {settings.batch_size} is too small: some of {processes.world_size} processes "
            "would have no sequence."
        )


def autocasting(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Return torch's autocast context for `dtype`, or a context that does nothing if `dtype` is None."""
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
