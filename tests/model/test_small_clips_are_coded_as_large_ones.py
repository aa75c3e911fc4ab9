import torch

from studio.core.model.vae import decode_latents, encode_video


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
