"""What a run tells the world, as data: one line of JSON an event."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.core.remedy import Setting

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted:
    """The model is loaded and the run knows what it will do."""

    num_steps: int
    num_pairs: int
    device: str
    dtype: str
    attention: str
    """`dense`, `sparse`, or `mixed` where clips of one size get the one and of another the other."""
    attention_reason: str
    """Why that attention runs."""
    attention_sparsity: float | None = None
    """Share of key blocks skipped; None where all is dense."""
    attention_block: tuple[int, ...] | None = None
    """Tokens of an attention block, (t, h, w); None where all is dense."""
    notices: tuple[str, ...] = ()
    """What differs from what the configuration asked of the model, and what else is good to know, in sentences."""
    from_step: int = 0
    """The step of the checkpoint that the run goes on from; 0: from the start."""
    num_held_out: int = 0
    """Clips that the held-out loss is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResumed:
    """Someone goes on with the run; the model is being loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheProgress:
    """Latents and text embeddings are being computed."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitProgress:
    """What the steps will take is being measured, size by size."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitPredicted:
    """What the steps will take, measured on a few blocks of the transformer."""

    worst: str
    """The bucket that takes most."""
    batch_size: int
    """Of the worst bucket, as are the bytes."""
    peak_bytes: int
    capacity_bytes: int
    """Of the device, or the share that this process may take."""
    seconds_per_step: float | None
    """Median over the batches; None when not even a few blocks ran."""
    fits: bool
    change: str | None
    """The cheapest change that makes it fit, a sentence; None when it fits, or when nothing would help."""
    keeps_attention: bool
    """Gradient checkpointing keeps what attention gave."""
    settings: tuple[Setting, ...] = ()
    """The change as (file, key, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimiser step."""

    step: int
    """Counted from 1."""
    num_steps: int
    loss: float
    """Mean over the clips."""
    learning_rate: float
    grad_norm: float
    """Before it was clipped."""
    seconds: float
    clips: tuple[str, ...] = ()
    """`<dataset id>/<name>` of each clip of the step."""
    clip_losses: tuple[float, ...] = ()
    peak_bytes: int | None = None
    """The most memory that the step took; None where the device does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """The loss on clips that are not trained on, always at the same noise and the same noise levels."""

    step: int
    """0: before the first."""
    loss: float
    bands: tuple[float, ...]
    """By noise level: equal parts of 0 to 1, the least noise first; `loss` is their mean."""
    base_loss: float
    """Without the LoRA."""
    base_bands: tuple[float, ...]
    num_clips: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSaved:
    """A validation video was written."""

    step: int
    path: str
    """Relative to the run folder."""
    prompt: str
    base: str = ""
    """The same sample without the LoRA, relative to the run folder."""
    start_psnr: float | None = None
    """Decibels of the first frame against the start frame; None in any figure of an old run."""
    motion: float | None = None
    """Largest mean difference between the first frame and another one, grey levels of 0..255."""
    is_frozen: bool = False
    """Hardly anything moves."""
    drift: float | None = None
    """Mean difference from `base`, grey levels of 0..255; 0: the LoRA changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSaved:
    """The LoRA and the optimiser were written."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPaused:
    """The run waits, with the weights in memory and the device free, until it is asked to continue."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContinued:
    """The pause is over."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    """All steps are done."""

    step: int
    seconds: float
    lora: str
    """The LoRA file, relative to the run folder."""
    peak_bytes: int | None = None
    """The most memory that a step took; None where the device does not say."""
    seconds_per_step: float | None = None
    """Median of the steps of this attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStopped:
    """The user asked it to stop; the LoRA as it stood was saved."""

    step: int
    lora: str
    peak_bytes: int | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFailed:
    """Something went wrong; what was trained before is kept."""

    step: int
    message: str
    remedy: str
    checkpoint: str = ""
    """The last good checkpoint, relative to the run folder; empty: there is none."""
    settings: tuple[Setting, ...] = ()
    """What would mend it, as (file, key, value); empty where that is a matter of words alone."""


TrainEvent = (
    RunResumed
    | RunStarted
    | CacheProgress
    | FitProgress
    | FitPredicted
    | StepDone
    | HeldOutLoss
    | SampleSaved
    | CheckpointSaved
    | RunPaused
    | RunContinued
    | RunFinished
    | RunStopped
    | RunFailed
)

_EVENT_TYPES = {cls.__name__: cls for cls in TrainEvent.__args__}


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseStep:
    """One denoising step of a sample."""

    step: int
    """Counted from 1, through all segments and the refinement."""
    num_steps: int
    """Of the whole sample."""
    seconds: float
    """Seconds this step took."""
    segment: int = 1
    num_segments: int = 1
    is_refining: bool = False
    """A step of the refinement, not of the base pass."""
    preview: np.ndarray | None = None
    """uint8 [T, H, W, 3], a pixel for each latent: what the model takes the video for; None: not asked for now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDone:
    """A sample was written."""

    path: Path
    seconds: float
    """From the start frame to the mp4, model loading left out."""
    attention: str
    """`dense` or `sparse`, of this very video."""
    attention_reason: str
    attention_sparsity: float | None = None
    attention_block: tuple[int, ...] | None = None
    is_batched: bool = True
    """False when the two prompts of guidance ran one after the other, for want of memory."""
    start_psnr: float | None = None
    """Decibels of the first frame against the start frame; None without one."""
    motion: float | None = None
    """Largest mean difference between the first frame and another one, levels of 0..255."""
    is_frozen: bool = False
    """Hardly anything moves."""
    flicker: float | None = None
    """Mean jump of the brightness of the whole frame, levels."""
    color_drift: float | None = None
    """Between the mean colours of the first and the last quarter, levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStarted:
    """A sample begins: every default is filled in."""

    height: int
    width: int
    num_frames: int
    """Of a segment."""
    num_segments: int
    num_steps: int
    """Of the whole sample."""
    guidance_scale: float
    schedule: str
    """Of the first segment."""
    crop: tuple[float, float, float, float] | None
    """(left, top, right, bottom) of the start frame or clip, in its pixels, that is left; None without one."""
    refined_size: tuple[int, int] | None = None
    """(height, width) that the refinement goes to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePhase:
    """What is being done from now on."""

    name: Literal["encode", "denoise", "decode", "enlarge", "refine", "write"]
    segment: int
    num_segments: int


SampleEvent = SampleStarted | SamplePhase | DenoiseStep | SampleDone


def encode_event(event: TrainEvent, *, time: float) -> str:
    """One line of JSON, without the newline; `time` is Unix time in seconds."""
    return json.dumps({"event": type(event).__name__, "time": round(time, 3), **asdict(event)})


def decode_event(line: str) -> tuple[float, TrainEvent]:
    """(time, event) of a line that `encode_event` made."""
    fields: dict[str, Any] = {name: _frozen(value) for name, value in json.loads(line).items()}
    return fields.pop("time"), _EVENT_TYPES[fields.pop("event")](**fields)


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
