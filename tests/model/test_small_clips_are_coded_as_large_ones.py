import pytest
import torch
import torch.nn.functional as F
from torch import nn

from studio.core.model.vae import _SmallClipsByOneDNN, decode_latents, encode_video


@torch.inference_mode()
def test_the_autoencoder_alone_gives_the_same(tiny_bundle):
    vae = tiny_bundle.vae
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = vae.encode(video).latent_dist
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    latents = encode_video(vae, video, torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents, (posterior.mean + posterior.std * noise - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        decode_latents(vae, latents), vae.decode(latents * std + mean).sample, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "convolve",
    [
        nn.Conv3d(4, 2, 3, padding=1, stride=(1, 2, 2)),
        nn.Conv3d(4, 2, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(4, 2, 3, padding="same", dilation=2, groups=2, bias=False),
        nn.Conv3d(4, 2, 3, dtype=torch.bfloat16),
        lambda x: F.conv3d(x, torch.ones(2, 4, 1, 1, 1), bias=torch.ones(2)),
        lambda x: F.conv3d(x[0], torch.ones(2, 4, 1, 1, 1), None, 1, 0, 1, 1),
    ],
)
def test_a_convolution_of_any_form_gives_the_same(convolve):
    x = torch.rand(1, 4, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    x = x.to(convolve.weight.dtype if isinstance(convolve, nn.Module) else x.dtype)
    with _SmallClipsByOneDNN():
        found = convolve(x)
    torch.testing.assert_close(found, convolve(x), rtol=1e-5, atol=1e-5)
