"""Rebuilds `assets/tiny`, the small LongCat-Video checkpoint, from nothing but synthetic clips.

    python assets/make_tiny.py --work runs/tiny --out runs/dense    # trains all parts on a CUDA device, then exports
    python assets/make_tiny.py --work runs/tiny --stage sparse --base runs/dense --out assets/tiny
    python assets/make_tiny.py --work runs/tiny --seconds 560       # either stage stops in time; run again to go on

The second stage teaches the transformer of the first to do with few key blocks. The work folder keeps the weights and
the optimiser after every stretch; seeds derive from the step, so a run in stretches sees the same data as a run in one.
`assets/measure_tiny.py` prints how good the result is.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from video_bsa import BlockGrid

from studio.core.config import ModelConfig
from studio.core.data.shapes import BASE_MOTIONS, COLORS, EFFECT, SHAPES, draw_clips, random_scenes
from studio.core.geometry import Grid
from studio.core.model import dit_block
from studio.core.model.attention import AttentionChoice
from studio.core.model.dit import PUBLISHED_BSA, LongCatVideoTransformer3DModel
from studio.core.model.flow import add_noise, shift_sigma, velocity_target
from studio.core.model.load import load_bundle

SEED = 2026
MOTIONS = (*BASE_MOTIONS, EFFECT)
"""What the autoencoder sees and the tokenizer has words for; the transformer learns `BASE_MOTIONS` alone."""
NUM_FRAMES = 17
SIZES = ((128, 128), (128, 192), (192, 128))
"""(height, width) in pixels, on the 64 px grid."""
SHIFT = 3.0
"""Flow shift of the tiny checkpoint: 320 tokens want less noise than the published 37,440."""
TEXT_WIDTH = 128
TEXT_LENGTH = 32

VAE = {
    "base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 3, 4], "num_res_blocks": 1, "attn_scales": [],
    "temperal_downsample": [False, True, True],
}  # fmt: skip
DIT = {
    "hidden_size": 256, "depth": 8, "num_heads": 4, "caption_channels": TEXT_WIDTH, "mlp_ratio": 4,
    "adaln_tembed_dim": 128, "text_tokens_zero_pad": True, "bsa_params": PUBLISHED_BSA,
}  # fmt: skip

VAE_STEPS, VAE_RATE = 5058, 1.2e-3
DIT_STEPS, DIT_RATE, DIT_BATCH = 12_600, 1e-3, 256
POOL = (40960, 6144, 6144)
"""Latents cached for each of `SIZES`."""

SPARSE_STEPS, SPARSE_RATE, SPARSE_BATCH = 4000, 3e-4, 128
SPARSE_POOL = (12288, 2048, 2048)
SPARSITIES = (0.0, 0.9375, 0.75, 0.9375, 0.9375)
"""Of the steps of the sparse stage, in turn. 0 skips nothing: the checkpoint stays good with dense attention."""


# ---- the VAE over whole clips


def resample_whole_clip(self: WanResample, x: torch.Tensor, *_: object) -> torch.Tensor:
    """What `WanResample` does frame chunk by frame chunk, on all frames at once: the first frame keeps its place in
    time, the others are halved or doubled. [B, C, T, H, W] in and out."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        doubled = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
        x = torch.cat((x[:, :, :1], doubled.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)), dim=2)
    batch, _, frames = x.shape[:3]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    if self.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat((x[:, :, :1], self.time_conv(x)), dim=2)
    return x


class WholeClips:
    """Inside `with WholeClips():` Wan autoencoders take clips in one piece; equal results, far fewer launches."""

    def __enter__(self) -> None:
        self.chunked = WanResample.forward
        WanResample.forward = resample_whole_clip

    def __exit__(self, *_: object) -> None:
        WanResample.forward = self.chunked


def encode_moments(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, log-variance) of the posterior; `video` [B, 3, T, H, W] in [-1, 1]."""
    mean, log_variance = vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode_whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W], not clamped."""
    return vae.decoder(vae.post_quant_conv(latents))


# ---- data


def draw(step: int, count: int, frames: int, size: tuple[int, int], device: str) -> torch.Tensor:
    """World clips in [-1, 1], [B, 3, T, H, W]; `step` seeds them."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    scenes = random_scenes(count, height=size[0], width=size[1], generator=generator, motions=MOTIONS)
    return draw_clips(scenes.to(device), NUM_FRAMES)[:, :, :frames] * 2 - 1


def draw_leaves(step: int, count: int, frames: int, size: int, device: str) -> torch.Tensor:
    """Dead leaves: overlapping discs of every size and colour under a slow pan, so that the VAE also holds what the
    world does not draw, such as a photograph. [B, 3, T, size, size] in [-1, 1]."""
    generator = torch.Generator(device).manual_seed(SEED * 7_000_003 + step)
    leaves = 60
    rand = torch.rand(count, leaves, 6, generator=generator, device=device)
    pan = (torch.rand(count, 2, 1, 1, 1, generator=generator, device=device) - 0.5) * 0.3
    t = torch.linspace(0, 1, frames, device=device)[:, None, None]
    axis = torch.linspace(0, 1, size, device=device)
    y, x = axis[:, None] + pan[:, 0] * t, axis[None, :] + pan[:, 1] * t
    video = torch.rand(count, 3, 1, 1, 1, generator=generator, device=device).expand(-1, -1, frames, size, size)
    for leaf in range(leaves):
        cx, cy, r = (rand[:, leaf, i, None, None, None] for i in range(3))
        distance = ((x - cx * 1.2 + 0.1) ** 2 + (y - cy * 1.2 + 0.1) ** 2).sqrt() - (0.03 + 0.3 * r**3)
        inside = (0.5 - distance * size).clamp(0, 1).unsqueeze(1)
        video = video * (1 - inside) + rand[:, leaf, 3:, None, None, None] * inside
    return video * 2 - 1


# ---- stages


def warmup_cosine(step: int, steps: int, warmup: int = 200) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Stretch:
    """Weights, their moving average, optimiser and step of one stage, kept in files between stretches."""

    def __init__(self, name: str, modules: dict[str, nn.Module], rate: float, work: Path) -> None:
        self.path = work / f"{name}.safetensors"
        self.rate = rate
        self.params = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.params.values(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self.params.items()}
        self.step = 0
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        state = load_file(self.path)
        self.step = int(state["step"])
        for name, param in self.params.items():
            param.data.copy_(state[f"weight.{name}"])
            self.average[name].copy_(state[f"average.{name}"])
            if f"exp_avg.{name}" in state:
                self.optimizer.state[param] = {
                    "step": torch.tensor(float(self.step), device=param.device),
                    "exp_avg": state[f"exp_avg.{name}"].to(param.device),
                    "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(param.device),
                }

    def save(self) -> None:
        """Writes everything that the next stretch needs."""
        state = {"step": torch.tensor(self.step)}
        for name, param in self.params.items():
            state[f"weight.{name}"] = param.detach().contiguous()
            state[f"average.{name}"] = self.average[name].contiguous()
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}.{name}"] = self.optimizer.state[param][key].contiguous()
        save_file(state, self.path)

    def use_average(self) -> None:
        """Puts the moving average into the modules."""
        for name, param in self.params.items():
            param.data.copy_(self.average[name])

    def run(self, steps: int, loss_of: Callable[[int], torch.Tensor], deadline: float) -> bool:
        """Optimises until `steps` or the deadline; True when the stage is done."""
        started, first = time.time(), self.step
        while self.step < steps and time.time() < deadline:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * warmup_cosine(self.step, steps)
            loss = loss_of(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.params.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.params.values()), 1 - decay)
            if self.step % 200 == 0:
                rate = (self.step - first) / (time.time() - started)
                print(
                    f"{self.path.stem} {self.step}/{steps} loss {loss.item():.5f}, {rate:.1f} steps/s",
                    flush=True,
                )
        self.save()
        return self.step >= steps


def train_vae(vae: AutoencoderKLWan, work: Path, deadline: float, steps: int, device: str) -> bool:
    """L1 and squared error, with a trace of KL; three kinds of batch in turn: short crops, stills, whole clips."""
    stretch = Stretch("vae", {"vae": vae}, VAE_RATE, work)
    leaves_every = 4

    def loss_of(step: int) -> torch.Tensor:
        kind = step % 3
        count, frames, size = ((64, 9, 64), (96, 1, 128), (12, 17, 128))[kind]
        if step % leaves_every == 0:
            video = draw_leaves(step, count // 2, frames, size, device)
        else:
            video = draw(step, count, frames, (128, 128), device)
            corner = torch.randint(0, 128 - size + 1, (2,), generator=torch.Generator().manual_seed(step))
            video = video[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        with torch.autocast(device, torch.bfloat16):
            mean, log_variance = encode_moments(vae, video)
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            restored = decode_whole(vae, latents).float()
        error = restored - video
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + 4 * error.square().mean() + 2e-5 * kl

    with WholeClips():
        done = stretch.run(steps, loss_of, deadline)
    stretch.use_average()
    return done


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKLWan, path: Path, counts: Sequence[int], device: str
) -> tuple[list[torch.Tensor], list[list[str]]]:
    """(latents bf16 [N, 16, T, H, W] not yet normalised, captions) for each of `SIZES`; kept in the file `path`."""
    pools, captions = [], []
    for which, (count, (height, width)) in enumerate(zip(counts, SIZES, strict=True)):
        generator = torch.Generator().manual_seed(SEED + 10 + which)
        scenes = random_scenes(count, height=height, width=width, generator=generator)
        captions.append(scenes.captions())
        if path.exists():
            continue
        encoded = []
        with WholeClips():
            for start in range(0, count, 128):
                rows = torch.arange(start, min(start + 128, count))
                part = type(scenes)(
                    **{n: getattr(scenes, n)[rows] for n in scenes.__slots__ if n not in ("height", "width")},
                    height=height, width=width,
                )  # fmt: skip
                encoded.append(encode_moments(vae, draw_clips(part.to(device), NUM_FRAMES) * 2 - 1)[0].bfloat16())
        pools.append(torch.cat(encoded).contiguous())
    if path.exists():
        kept = load_file(path, device=device)
        return [kept[str(i)] for i in range(len(SIZES))], captions
    save_file({str(i): pool for i, pool in enumerate(pools)}, path)
    return pools, captions


def set_latent_statistics(vae: AutoencoderKLWan, latents: torch.Tensor) -> None:
    """Writes the mean and standard deviation of each latent channel into the VAE's config."""
    values = latents.float().transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in values.mean(1).tolist()],
        latents_std=[round(v, 4) for v in values.std(1).tolist()],
    )


class NoisyLatents:
    """Batches for image-to-video flow matching out of cached latents; the step seeds them."""

    def __init__(
        self, pools: list[torch.Tensor], captions: list[list[str]], vae: AutoencoderKLWan, batch: int, device: str
    ) -> None:
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
        self.std = torch.tensor(vae.config.latents_std, device=device).view(shape)
        self.pools, self.batch, self.device = pools, batch, device
        self.phrases = sorted({caption for part in captions for caption in part})
        number = {caption: i for i, caption in enumerate(self.phrases)}
        self.indices = [torch.tensor([number[c] for c in part], device=device) for part in captions]

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(clean, noise, noisy with the first latent clean, timesteps [B, T], phrase numbers [B]). A tenth of the
        numbers is `len(phrases)`, the empty text, for guidance."""
        generator = torch.Generator(self.device).manual_seed(SEED * 3_000_017 + step)
        which = (0, 0, 0, 1, 0, 0, 0, 2)[step % 8]
        pool = self.pools[which]
        rows = torch.randint(len(pool), (self.batch,), device=self.device, generator=generator)
        clean = (pool[rows].float() - self.mean) / self.std
        noise = torch.randn(clean.shape, device=self.device, generator=generator)
        sigma = shift_sigma(torch.rand(self.batch, device=self.device, generator=generator), SHIFT)
        is_dropped = torch.rand(self.batch, device=self.device, generator=generator) < 0.1
        text = torch.where(is_dropped, len(self.phrases), self.indices[which][rows])
        noisy = add_noise(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        noisy[:, :, 0] = clean[:, :, 0]
        timestep = (sigma * 1000)[:, None].repeat(1, clean.shape[2])
        timestep[:, 0] = 0
        return clean, noise, noisy, timestep, text


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over every caption of the world, so that any text has tokens."""
    captions = [f"a {c} {s} {m}" for c in COLORS for s in SHAPES for m in MOTIONS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=TEXT_LENGTH
    )


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A UMT5 encoder as wide as the transformer's captions."""
    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=32, num_heads=4, d_ff=256, num_layers=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return UMT5EncoderModel(config)


def train_dit(
    dit: LongCatVideoTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    vae: AutoencoderKLWan,
    work: Path,
    deadline: float,
    steps: int,
    device: str,
) -> bool:
    """Image-to-video flow matching: the first latent clean, its timestep 0, and out of the loss."""
    pools, captions = cache_latents(vae, work / "pool.safetensors", POOL, device)
    set_latent_statistics(vae, pools[0][:8192])
    latents = NoisyLatents(pools, captions, vae, DIT_BATCH, device)
    tokens = tokenizer([*latents.phrases, ""], padding="max_length", return_tensors="pt").to(device)
    stretch = Stretch("dit", {"dit": dit, "text_encoder": text_encoder}, DIT_RATE, work)
    for block in dit.blocks:
        block.compile(dynamic=False)

    def loss_of(step: int) -> torch.Tensor:
        clean, noise, noisy, timestep, text = latents.draw(step)
        with torch.autocast(device, torch.bfloat16):
            states = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            embeds, mask = states[text].unsqueeze(1), tokens.attention_mask[text]
            velocity = dit(noisy, timestep, embeds, mask, num_cond_latents=1)
        return F.mse_loss(velocity[:, :, 1:].float(), velocity_target(clean, noise)[:, :, 1:])

    done = stretch.run(steps, loss_of, deadline)
    stretch.use_average()
    return done


# ---- few key blocks


def attend_masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    grid_q: Grid,
    grid_k: Grid,
    choice: AttentionChoice,
    **_: object,
) -> torch.Tensor:
    """What `attend` computes, by dense attention under a mask: quicker on the few tokens of this checkpoint."""
    if not choice.is_sparse(grid_q, grid_k):
        return F.scaled_dot_product_attention(q, k, v)
    of_q, of_k = (
        BlockGrid((grid.t, grid.h, grid.w), choice.block).block_of_token(q.device).long() for grid in (grid_q, grid_k)
    )
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        scores = block_means(q, of_q) @ block_means(k, of_k).transpose(-1, -2)
        kept = scores.topk(max(1, int((1 - choice.sparsity) * scores.shape[-1]))).indices
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, kept, True)[:, :, of_q][..., of_k]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def block_means(x: torch.Tensor, of_token: torch.Tensor) -> torch.Tensor:
    """Mean of each block's tokens, fp32 [B, N, M, D]."""
    members = F.one_hot(of_token).T.float()
    return members / members.sum(1, keepdim=True) @ x.float()


class MaskedBlocks:
    """Inside `with MaskedBlocks():` the transformer attends with `attend_masked`."""

    def __enter__(self) -> None:
        self.attend = dit_block.attend
        dit_block.attend = attend_masked

    def __exit__(self, *_: object) -> None:
        dit_block.attend = self.attend


def train_sparse(
    base: Path, out: Path, work: Path, deadline: float, steps: int, batch: int, counts: Sequence[int], device: str
) -> Iterator[str]:
    """Goes on from the checkpoint in `base` until its transformer predicts with few key blocks what it predicted
    densely; yields a line at the end.

    The target is the dense prediction of the transformer as it was, which has less noise than the velocity. Everything
    else of the checkpoint stays.

    Source: LongCat-Video technical report: block-sparse attention is switched on after convergence, for some hundred
    iterations.
    """
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    bundle = load_bundle(ModelConfig(source=str(base), device=device, dtype="fp32", attention="dense"))
    pools, captions = cache_latents(bundle.vae, work / "pool_sparse.safetensors", counts, device)
    latents = NoisyLatents(pools, captions, bundle.vae, batch, device)
    texts = bundle.prompt_encoder.encode([*latents.phrases, ""])
    teacher, dit = copy.deepcopy(bundle.dit), bundle.dit.requires_grad_(True)
    stretch = Stretch("sparse", {"dit": dit}, SPARSE_RATE, work)

    def loss_of(step: int) -> torch.Tensor:
        _, _, noisy, timestep, text = latents.draw(step)
        inputs = noisy, timestep, texts.embeds[text], texts.mask[text]
        dit.set_attention(AttentionChoice(setting="sparse", sparsity=SPARSITIES[step % len(SPARSITIES)]))
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                target = teacher(*inputs, num_cond_latents=1)
            velocity = dit(*inputs, num_cond_latents=1)
        return F.mse_loss(velocity[:, :, 1:].float(), target[:, :, 1:].float())

    with MaskedBlocks():
        is_done = stretch.run(steps, loss_of, deadline)
    stretch.use_average()
    if out.resolve() != base.resolve():
        shutil.copytree(base, out, dirs_exist_ok=True)
    save_dit(dit, out)
    yield ("the sparse stage is done" if is_done else "the sparse stage has steps left: run the same command again")


# ---- export


def save_dit(dit: LongCatVideoTransformer3DModel, out: Path) -> None:
    """Writes the transformer in fp16, in shards."""
    dit.half().save_pretrained(out / "dit", max_shard_size="9MB")


def export(
    out: Path,
    dit: LongCatVideoTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    vae: AutoencoderKLWan,
) -> None:
    """Writes the published folder layout, weights in fp16, the transformer in shards."""
    save_dit(dit, out)
    vae.half().save_pretrained(out / "vae")
    text_encoder.half().save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
    name = {"model_name": "LongCat-Video-tiny"}
    defaults = {
        "height": 128,
        "width": 128,
        "num_frames": NUM_FRAMES,
        "num_inference_steps": 12,
        "guidance_scale": 2.0,
    }
    (out / "config.json").write_text(json.dumps(name) + "\n")
    (out / "model_index.json").write_text(json.dumps({**name, "sampling": defaults}, indent=2) + "\n")


def stages(work: Path, deadline: float, vae_steps: int, dit_steps: int, out: Path, device: str) -> Iterator[str]:
    """Runs what is left to do; yields a line after each stage."""
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    vae = AutoencoderKLWan(**VAE).to(device)
    if not train_vae(vae, work, deadline, vae_steps, device):
        yield "the VAE has steps left: run the same command again"
        return
    yield "the VAE is trained"
    tokenizer = make_tokenizer()
    text_encoder = make_text_encoder(len(tokenizer)).to(device)
    dit = LongCatVideoTransformer3DModel(**DIT).to(device)
    initialise(dit)
    is_done = train_dit(dit, text_encoder, tokenizer, vae, work, deadline, dit_steps, device)
    export(out, dit, text_encoder, tokenizer, vae)
    yield ("the transformer is trained" if is_done else "the transformer has steps left: run the same command again")


def initialise(dit: LongCatVideoTransformer3DModel) -> None:
    """Zero gates and zero output, so that every block begins as the identity (DiT, arXiv 2212.09748)."""
    for block in dit.blocks:
        nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(block.adaLN_modulation[1].bias)
        nn.init.zeros_(block.cross_attn.proj.weight)
    nn.init.zeros_(dit.final_layer.adaLN_modulation[1].weight)
    nn.init.zeros_(dit.final_layer.adaLN_modulation[1].bias)
    nn.init.zeros_(dit.final_layer.linear.weight)
    nn.init.zeros_(dit.final_layer.linear.bias)


def main() -> None:
    """Reads the command line and runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny", help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, required=True, help="folder for weights between stretches")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop in time, to go on later")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--dit-steps", type=int, default=DIT_STEPS)
    parser.add_argument("--stage", choices=("dense", "sparse"), default="dense")
    parser.add_argument("--base", type=Path, help="the checkpoint that the sparse stage goes on from")
    parser.add_argument("--sparse-steps", type=int, default=SPARSE_STEPS)
    parser.add_argument("--sparse-batch", type=int, default=SPARSE_BATCH)
    parser.add_argument("--sparse-pool", type=int, nargs=3, default=SPARSE_POOL, help="latents of each size")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + arguments.seconds
    if arguments.stage == "dense":
        lines = stages(
            arguments.work, deadline, arguments.vae_steps, arguments.dit_steps, arguments.out, arguments.device
        )
    elif arguments.base is None:
        parser.error("--stage sparse needs --base")
    else:
        lines = train_sparse(
            arguments.base, arguments.out, arguments.work, deadline,
            arguments.sparse_steps, arguments.sparse_batch, arguments.sparse_pool, arguments.device,
        )  # fmt: skip
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
