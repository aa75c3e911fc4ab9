"""The learning rate as a function of the step alone, so that a resumed run needs no state of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from studio.core.config import OptimConfig


def learning_rate(optim: OptimConfig, num_steps: int) -> Callable[[int], float]:
    """Rate of a step, which counts from 1: a linear warm-up, then diffusers' schedule, falling to `lr_end`."""
    factor = get_scheduler(
        optim.lr_scheduler,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=optim.lr_warmup_steps,
        num_training_steps=num_steps + 1,
        num_cycles=optim.lr_num_cycles,
        power=optim.lr_power,
    ).lr_lambdas[0]
    falls = not is_constant(optim)

    def rate(step: int) -> float:
        floor = optim.lr_end if falls and step > optim.lr_warmup_steps else 0.0
        return floor + (optim.learning_rate - floor) * factor(step)

    return rate


def is_constant(optim: OptimConfig) -> bool:
    """True when no rate depends on how long the run is."""
    return optim.lr_scheduler.startswith("constant")
