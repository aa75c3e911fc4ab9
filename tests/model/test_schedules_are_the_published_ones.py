"""Noise levels to the digits that the published page and code give (shift 12)."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from studio.core.model.flow import set_schedule

DISTILLED = [
    1000, 994.71, 988.76, 982.04, 974.36, 965.52, 955.22, 943.09, 923.08, 904.11, 880.31, 849.56, 808.29, 750.00,
    661.42, 510.64,
]  # fmt: skip
STANDARD_ENDS = [1000, 998.27, 996.47], [519.17, 443.02, 343.47, 207.77, 11.87]


def timesteps(num_steps, schedule):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)
    set_schedule(scheduler, num_steps, schedule)
    torch.testing.assert_close(scheduler.sigmas[:-1], scheduler.timesteps / 1000)
    assert scheduler.sigmas[-1] == 0
    return scheduler.timesteps.tolist()


def digits(numbers):
    return [round(number, 2) for number in numbers]


def test_fifty_standard_steps():
    found = digits(timesteps(50, "standard"))
    assert len(found) == 50
    assert (found[:3], found[-5:]) == STANDARD_ENDS


def test_sixteen_distilled_steps():
    assert digits(timesteps(16, "distilled")) == DISTILLED


def test_detailed_steps_become_even_below_500():
    found = timesteps(50, "detailed")
    assert len(found) == 56
    assert found[:46] == timesteps(50, "standard")[:46]
    assert found[46:] == [500, 450, 400, 350, 300, 250, 200, 150, 100, 50]


def test_refinement_begins_halfway():
    assert digits(timesteps(50, "refinement")) == [500, 443.02, 343.47, 207.77, 11.87]


@pytest.mark.parametrize("schedule", ["standard", "distilled", "detailed", "refinement"])
def test_a_step_of_the_scheduler_follows_the_levels_that_were_set(schedule):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)
    set_schedule(scheduler, 16, schedule)
    latents = torch.zeros(1)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(torch.ones(1), timestep, latents, return_dict=False)[0]
    assert latents.item() == pytest.approx(-scheduler.sigmas[0].item(), abs=1e-6)
