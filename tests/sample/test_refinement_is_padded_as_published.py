import numpy as np
import pytest
import torch

from studio.core.sample.refine import enlarge, plan_padding


@pytest.mark.parametrize(
    ("num_frames", "num_cond", "front", "cond", "noise", "padded"),
    [
        (186, 0, 0, 0, 48, 192),
        (186, 1, 12, 4, 48, 205),
        (186, 26, 3, 8, 40, 189),
        (93, 1, 12, 4, 24, 109),
    ],
)
def test_clean_and_noisy_latents_fill_whole_attention_blocks(num_frames, num_cond, front, cond, noise, padded):
    """The numbers of 93 frames in, twice the rate out: text, image, continuation; and an image at the same rate."""
    padding = plan_padding(num_frames, num_cond)
    assert (padding.front, padding.cond_latents, padding.noise_latents) == (front, cond, noise)
    assert padding.front + num_frames + padding.back == padded


def test_frames_are_enlarged_in_space_and_then_in_time():
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[1] = 255
    video = enlarge(frames, 4, 6, 4, torch.device("cpu"))
    assert video.shape == (1, 3, 4, 4, 6)
    torch.testing.assert_close(video[0, 0, :, 0, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    frames[0, :, 1] = 255
    video = enlarge(frames, 2, 3, 1, torch.device("cpu"))
    torch.testing.assert_close(video[0, 0, 0, 0], torch.tensor([-1.0, 0.0, 1.0]))
