"""SIGKILL at any moment, while a checkpoint is written too, costs steps and nothing else."""

import sys

import pytest

from studio.bench.kills import compare_kills


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_run_killed_twenty_times_ends_equal_bit_for_bit_to_one_that_is_not(tmp_path):
    report = compare_kills(20, tmp_path)
    assert report.num_kills == 20
    assert report.num_replayed > 0, "kills that cost no step prove nothing"
    assert report.num_half_written > 0, "nor do kills that never hit a checkpoint"
    assert report.are_losses_equal
    assert report.is_lora_equal
    assert report.is_optimiser_equal
    assert report.is_average_equal
