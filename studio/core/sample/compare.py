"""Videos of the same seed side by side: under several LoRA strengths, or dense against sparse.

Frames are uint8 [T, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from studio.core.errors import ConfigError
from studio.core.events import SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.sample.figures import psnr
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import Rendered, frames_of

HEAT = np.array([(0, 0, 0), (90, 0, 110), (220, 50, 40), (255, 180, 0), (255, 255, 255)], np.float32)
"""Colours of no difference to `HEAT_MOST`, evenly."""
HEAT_MOST = 64.0
"""Levels of 0..255 from which the heat map is white."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One of the videos."""

    label: str
    request: SampleRequest
    rendered: Rendered
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionComparison:
    """The same seed with dense and with sparse attention."""

    dense: Variant
    sparse: Variant
    error: float
    """Norm of the difference of the latents over the norm of the dense ones."""
    psnr: tuple[float, ...]
    """Decibels of each frame."""


def lora_variants(request: SampleRequest) -> list[tuple[str, SampleRequest]]:
    """The request without its LoRAs and with them, labelled. Raises ConfigError: it has none."""
    if not request.loras:
        raise ConfigError("There is no LoRA to compare with.", "Choose a LoRA.")
    return [("without LoRA", replace(request, loras=())), ("with LoRA", request)]


def strength_variants(request: SampleRequest, strengths: Sequence[float]) -> list[tuple[str, SampleRequest]]:
    """The request under each strength of its first LoRA, labelled. Raises ConfigError: it has none."""
    if not request.loras:
        raise ConfigError("There is no LoRA whose strength could be varied.", "Choose a LoRA.")
    first, *others = request.loras
    return [
        (f"{strength:g}", replace(request, loras=(replace(first, strength=strength), *others)))
        for strength in strengths
    ]


def attention_variants(request: SampleRequest) -> list[tuple[str, SampleRequest]]:
    """The request with dense and with sparse attention, not refined, labelled."""
    return [
        ("dense", replace(request, attention="dense", sparsity=None, refinement="none")),
        ("sparse", replace(request, attention="sparse", refinement="none")),
    ]


def sparsity_variants(request: SampleRequest, sparsities: Sequence[float]) -> list[tuple[str, SampleRequest]]:
    """The request with dense attention, then sparse at each sparsity, not refined, labelled."""
    dense, sparse = attention_variants(request)
    return [dense, *((f"{sparsity:g}", replace(sparse[1], sparsity=sparsity)) for sparsity in sparsities)]


def relative_error(exact: Variant, found: Variant) -> float:
    """Norm of the difference of the latents of the last segment over the norm of the exact ones."""
    a, b = exact.rendered.latents, found.rendered.latents
    assert a is not None
    assert b is not None
    return float((b - a).norm() / a.norm())


def render_variants(
    variants: Sequence[tuple[str, SampleRequest]],
    bundle: ModelBundle,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[SampleEvent, None, tuple[Variant, ...]]:
    """Yields the events of one sample after the other and returns those that were finished. Raises as `sample`."""
    done: list[Variant] = []
    for label, request in variants:
        started = perf_counter()
        with bundle.lock:
            rendered = yield from frames_of(request, bundle, should_stop=should_stop)
        if rendered is None:
            break
        done.append(Variant(label=label, request=request, rendered=rendered, seconds=perf_counter() - started))
    return tuple(done)


def compare_attention(
    request: SampleRequest, bundle: ModelBundle, *, should_stop: Callable[[], bool] = lambda: False
) -> Generator[SampleEvent, None, AttentionComparison | None]:
    """Yields the events of both samples and returns the comparison; None when it was stopped. Raises as `sample`."""
    variants = attention_variants(request)
    done = yield from render_variants(variants, bundle, should_stop=should_stop)
    if len(done) < len(variants):
        return None
    dense, sparse = done
    return AttentionComparison(
        dense=dense,
        sparse=sparse,
        error=relative_error(dense, sparse),
        psnr=psnr_by_frame(sparse.rendered.frames, dense.rendered.frames),
    )


def psnr_by_frame(a: np.ndarray, b: np.ndarray) -> tuple[float, ...]:
    """Decibels of each frame that both have. Raises ConfigError: they differ in size."""
    a, b = _both(a, b)
    return tuple(psnr(one, other) for one, other in zip(a, b, strict=True))


def heat_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3]: where the frames that both have differ, black for nowhere. Raises ConfigError."""
    a, b = _both(a, b)
    return np.stack([_heat(one, other) for one, other in zip(a, b, strict=True)])


def _heat(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16)).mean(axis=-1)
    at = np.clip(difference / HEAT_MOST, 0, 1) * (len(HEAT) - 1)
    below = np.minimum(at.astype(int), len(HEAT) - 2)
    share = (at - below)[..., None]
    return (HEAT[below] * (1 - share) + HEAT[below + 1] * share).round().astype(np.uint8)


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames that both have."""
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(
            f"Videos of {a.shape[1]}x{a.shape[2]} and {b.shape[1]}x{b.shape[2]} (height x width) cannot be compared "
            "pixel by pixel.",
            "Render both at one size.",
        )
    count = min(len(a), len(b))
    return a[:count], b[:count]
