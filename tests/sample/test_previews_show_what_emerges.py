import pytest
import torch

from studio.core.data.shapes import BASE_MOTIONS, draw_clips, random_scenes, to_uint8
from studio.core.events import DenoiseStep
from studio.core.model.vae import decode_latents, encode_video, frames_to_video
from studio.core.sample.figures import psnr
from studio.core.sample.preview import LatentColors, fit_latent_colors, latent_colors, mean_colors
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import frames_of


@pytest.fixture(scope="module")
def shapes():
    """uint8 [2, 17, 64, 64, 3]."""
    generator = torch.Generator().manual_seed(5)
    return to_uint8(draw_clips(random_scenes(2, height=64, width=64, generator=generator, motions=BASE_MOTIONS), 17))


def small(video):
    """uint8 [T, H, W, 3] of a decoded video [1, 3, T, H, W] at a pixel for each latent."""
    colors = mean_colors(video.float(), 4, 8)[0]
    return ((colors.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def test_a_preview_is_near_the_decoded_video_made_small(tiny_bundle, shapes):
    colors = latent_colors(tiny_bundle.vae)
    for frames in shapes:
        latents = encode_video(tiny_bundle.vae, frames_to_video(frames), torch.Generator().manual_seed(0))
        seen, decoded = colors.paint(latents[0]), small(decode_latents(tiny_bundle.vae, latents))
        assert seen.shape == decoded.shape == (5, 8, 8, 3)
        assert psnr(seen, decoded) > 22


def test_the_map_is_the_least_squares_one(tiny_bundle, shapes):
    video = frames_to_video(shapes[0])
    colors = fit_latent_colors(tiny_bundle.vae, video)
    latents = encode_video(tiny_bundle.vae, video, torch.Generator().manual_seed(0))
    seen = torch.einsum("rc,cthw->rthw", colors.weight, latents[0]) + colors.bias[:, None, None, None]
    left = mean_colors(video, 4, 8)[0] - seen
    assert left.mean(dim=(1, 2, 3)).abs().max() < 1e-4
    along = torch.einsum("rthw,cthw->rc", left, latents[0]) / latents[0][0].numel()
    assert along.abs().max() < 1e-4, "nothing is left along any channel"


def test_colors_are_painted_by_frame():
    colors = LatentColors(weight=torch.eye(3, 16), bias=torch.zeros(3))
    latents = torch.zeros(16, 2, 1, 2)
    latents[0, 1, 0, 1], latents[1, 0, 0, 0] = 1, -5
    seen = colors.paint(latents)
    assert seen.shape == (2, 1, 2, 3)
    assert seen[1, 0, 1].tolist() == [255, 128, 128]
    assert seen[0, 0, 0].tolist() == [128, 0, 128]


def test_every_so_many_steps_and_the_last_carry_a_preview_that_nears_the_video(tiny_bundle, shapes):
    request = SampleRequest(
        prompt="a red circle moves right", start_frame=shapes[0][0], height=64, width=64, num_frames=9,
        num_inference_steps=5, preview_steps=2,
    )  # fmt: skip
    steps = frames_of(request, tiny_bundle)
    previews = {}
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            rendered = end.value
            break
        if isinstance(event, DenoiseStep):
            previews[event.step] = event.preview
    assert [step for step, preview in previews.items() if preview is not None] == [2, 4, 5]
    shown = small(frames_to_video(rendered.frames))
    near = [psnr(previews[step], shown) for step in (2, 5)]
    assert previews[5].shape == (3, 8, 8, 3)
    assert near[1] >= near[0]
    assert near[1] > 18
    assert "latent_colors" in tiny_bundle.kept, "fitted once"
