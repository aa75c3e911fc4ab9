"""The nouns of the studio: clip, start frame, bucket, pair, issue, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Severity(StrEnum):
    """How much an issue matters."""

    ERROR = "error"
    """Blocks training."""
    WARNING = "warning"
    """Does not block, but changes what will be trained."""
    NOTICE = "notice"
    """Something that was normalised or assumed."""


class IssueCode(StrEnum):
    """Stable names of what can be wrong with a dataset or a configuration."""

    # pairing
    START_FRAME_MISSING = "start_frame_missing"
    START_FRAME_ORPHAN = "start_frame_orphan"
    STEM_DUPLICATE = "stem_duplicate"
    NAME_MATCHED_LOOSELY = "name_matched_loosely"
    CAPTION_MISSING = "caption_missing"
    CAPTION_UNREADABLE = "caption_unreadable"
    # content
    START_FRAME_DIFFERS = "start_frame_differs"
    START_FRAME_BLANK = "start_frame_blank"
    CLIP_STATIC = "clip_static"
    SCENE_CUT = "scene_cut"
    NEAR_DUPLICATE = "near_duplicate"
    CLIP_ROTATED = "clip_rotated"
    FRAME_RATE_VARIES = "frame_rate_varies"
    # files
    FOLDER_MISSING = "folder_missing"
    NO_CLIPS = "no_clips"
    FILE_SKIPPED = "file_skipped"
    CLIP_UNREADABLE = "clip_unreadable"
    CLIP_DAMAGED = "clip_damaged"
    IMAGE_UNREADABLE = "image_unreadable"
    # sizes
    CLIP_TOO_SHORT = "clip_too_short"
    FRAMES_OFF_STRIDE = "frames_off_stride"
    FRAMES_TRIMMED = "frames_trimmed"
    FRAME_RATE_OTHER = "frame_rate_other"
    SIZE_NOT_LEGAL = "size_not_legal"
    SIZE_OFF_GRID = "size_off_grid"
    ASPECT_MISMATCH = "aspect_mismatch"
    BUCKET_TOO_SMALL = "bucket_too_small"
    CLIP_LEFT_OUT = "clip_left_out"
    # configuration
    KEY_UNKNOWN = "key_unknown"
    KEY_NOT_USED = "key_not_used"
    KEY_NORMALISED = "key_normalised"
    VALUE_INVALID = "value_invalid"
    DATASET_UNKNOWN = "dataset_unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """One problem, named so that its owner can find and mend it."""

    code: IssueCode
    severity: Severity
    subject: str
    """The file (relative to its dataset) or the configuration key."""
    message: str
    """What is wrong, with the numbers."""
    remedy: str = ""
    """What to type or click; empty for notices that need nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A training video as probed: everything counted, nothing kept decoded."""

    path: Path
    num_frames: int
    """Decoded frames, not the container's claim."""
    fps: float
    """Average frames per second."""
    height: int
    """Pixels, after rotation."""
    width: int
    reader: str
    """`decord` or `pyav`: which one reads the frames."""
    reader_reason: str
    """Why that reader."""
    codec: str
    """FFmpeg's name of the coding, such as `h264`."""
    rotation: int
    """Degrees that the container asks players to turn the frames by, anticlockwise: 0, 90, 180 or 270."""
    slowest_fps: float
    """Of the longest time between two frames."""
    fastest_fps: float
    """Of the shortest time between two frames; like `slowest_fps` where the rate does not vary."""
    cuts: tuple[int, ...]
    """Indices of frames with which another scene begins."""
    motion: float
    """Largest change of a spot (one of 64x64) against the first frame, in lightness or colour, levels of 0..255."""
    signature: str
    """Six pictures of 3x8x8 bytes, spread over the clip, in hexadecimal: near-duplicates differ little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartFrame:
    """The image that conditions image-to-video."""

    path: Path
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StartFrameMatch:
    """How a start frame compares with the frames of its clip, both at the clip's size."""

    psnr: float
    """Decibels against the first frame; 100 for the same picture."""
    ssim: float
    """Structural similarity to the first frame, up to 1."""
    best_frame: int
    """Index of the frame that it fits best; 0 is the first."""
    best_psnr: float
    """Decibels against that frame."""
    contrast: float
    """Between the spots (64x64) of the start frame, in the colour that differs most, levels of 0..255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Size that pairs are trained at together; hashable, so it is its own key."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}f {self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One training example, or what there is of one."""

    dataset_id: str
    name: str
    """Relative path of the clip without extension, POSIX separators: the key that matched."""
    clip: Clip | None
    """None when the file cannot be read; the issue says why."""
    clip_path: Path
    start_frame: StartFrame | None
    match: StartFrameMatch | None = None
    """None where there is no start frame, or no clip, to compare."""
    captions: tuple[str, ...]
    bucket: Bucket | None
    fps: float | None = None
    """Frames per second that the clip is converted to; None: its frames as they are."""
    frame_indices: tuple[int, ...] = ()
    """With `fps`: which frames of the clip are trained, in order; frames may be skipped or come again."""
    issues: tuple[Issue, ...]
    """Problems of this pair alone."""

    @property
    def is_ready(self) -> bool:
        """True when nothing blocks training on it."""
        return self.bucket is not None and all(i.severity is not Severity.ERROR for i in self.issues)

    @property
    def is_left_out(self) -> bool:
        """True when the configuration leaves it out on purpose: it is not trained on, and nothing is to mend."""
        return any(i.code is IssueCode.CLIP_LEFT_OUT for i in self.issues)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetReport:
    """What a check found: every pair with its verdict, and the problems that belong to no pair."""

    pairs: tuple[Pair, ...]
    issues: tuple[Issue, ...]
    """Problems of the folders, of files without a clip, and of the configuration."""

    @property
    def all_issues(self) -> tuple[Issue, ...]:
        """Issues of the dataset and of every pair, in that order."""
        return self.issues + tuple(issue for pair in self.pairs for issue in pair.issues)

    @property
    def errors(self) -> tuple[Issue, ...]:
        """Those that block training."""
        return tuple(i for i in self.all_issues if i.severity is Severity.ERROR)

    @property
    def is_ok(self) -> bool:
        """True when training may start."""
        return not self.errors

    @property
    def by_bucket(self) -> Mapping[Bucket, tuple[Pair, ...]]:
        """Ready pairs by bucket, widest bucket first."""
        buckets = sorted(
            {pair.bucket for pair in self.pairs if pair.is_ready and pair.bucket},
            key=lambda b: (-b.width / b.height, b.width, b.num_frames),
        )
        return {b: tuple(p for p in self.pairs if p.is_ready and p.bucket == b) for b in buckets}
