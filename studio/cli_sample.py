"""The command `sample`: what the room Sample does, in a terminal. One core call, and printing around it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from studio.core.errors import ConfigError, OutOfMemory, StudioError
from studio.view.terminal import SampleBar, write

if TYPE_CHECKING:
    from studio.core.config import ModelConfig
    from studio.core.events import SampleEvent
    from studio.core.model.processes import Processes
    from studio.core.sample.request import Refinement, SampleRequest

Done = TypeVar("Done")

ABOUT = """\
Renders a video from a start frame, from the end of a clip, or from a prompt alone, and
writes it with its settings inside. What is left out is the checkpoint's own. Ctrl-C
cancels after the step in hand, and then nothing is written.
"""
EXAMPLES = """\
examples:
  sample --image start.png --prompt "a red circle hops" --out hops.mp4
  sample --image start.png --prompt "a red circle hops" --lora lora.safetensors --compare-lora --out hops.mp4
  sample --clip walk.mp4 --prompt "it goes on" --out on.mp4
  sample --prompt "a tree in spring" --segments 3 --next-prompt "in summer" --next-prompt "in autumn" --out year.mp4
  sample --model final --image start.png --prompt "..." --schedule distilled --refine space-time --out fast.mp4
"""
OPTIONS = {
    "base_model_precision": "--precision {}",
    "musubi_blocks_to_swap": "--swap {}",
    "vae_enable_tiling": "--vae-tiling",
}
"""Keys of config.json as the options of `sample`, which reads no such file."""
REFINEMENTS: dict[str, Refinement] = {"no": "none", "space": "space", "space-time": "space and time"}


def add_sample_command(commands: Any) -> None:
    """Adds `sample` to the subparsers of the command line."""
    parser = commands.add_parser(
        "sample", help="a video from a start frame, from a clip, or from a prompt alone", description=ABOUT,
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=_sample)

    what = parser.add_argument_group("what")
    what.add_argument("--prompt", required=True, metavar="TEXT", help="what is to be seen")
    what.add_argument("--out", type=Path, metavar="FILE", required=True, help="the mp4 to write; must not exist yet")
    what.add_argument(
        "--image", type=Path, metavar="FILE", help="the start frame; scaled to cover the size, and cropped"
    )
    what.add_argument("--clip", type=Path, metavar="FILE", help="a video to go on from; its last seconds are taken")
    negative = what.add_mutually_exclusive_group()
    negative.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what is not to be seen (default: nothing)"
    )
    negative.add_argument("--published-negative-prompt", action="store_true", help="that of the published demos")
    what.add_argument("--seed", type=int, default=0, help="the same seed gives the same video (default: 0)")
    what.add_argument("--size", metavar="HEIGHTxWIDTH", help="pixels (default: the bucket nearest to the picture)")
    what.add_argument("--frames", type=int, metavar="N", help="of a segment: 4k+1")

    how = parser.add_argument_group("how")
    how.add_argument("--model", default="tiny", help="tiny, final, a checkpoint folder or a hub id (default: tiny)")
    how.add_argument(
        "--lora", type=Path, metavar="FILE", action="append", default=[], help="a .safetensors LoRA; may come again"
    )
    how.add_argument(
        "--lora-strength", type=float, action="append", metavar="S",
        help="once for each --lora, in their order (default: 1)",
    )  # fmt: skip
    how.add_argument("--gpus", type=int, metavar="N", help="so many GPUs share the work (default: 1)")
    how.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    how.add_argument("--guidance", type=float, metavar="G", help="how closely the prompt is followed; 1: no guidance")
    how.add_argument(
        "--schedule", choices=("standard", "detailed", "distilled"),
        help="distilled: 16 steps with the published LoRA (default: detailed after a clip, else standard)",
    )  # fmt: skip
    how.add_argument("--attention", choices=("auto", "dense", "sparse"), default="auto", help="default: auto")
    how.add_argument(
        "--sparsity", type=float, metavar="S",
        help="share of the key blocks that sparse attention skips, such as 0.75 (default: the checkpoint's)",
    )  # fmt: skip
    how.add_argument(
        "--refine", choices=tuple(REFINEMENTS), default="no",
        help="to 720p with the published LoRA; space-time: at 30 frames per second too (default: no)",
    )  # fmt: skip

    long = parser.add_argument_group("long videos")
    long.add_argument(
        "--segments", type=int, default=1, metavar="N", help="each goes on from the one before (default: 1)"
    )
    long.add_argument(
        "--next-prompt", action="append", default=[], metavar="TEXT", help="of the next segment; may come again"
    )
    long.add_argument(
        "--overlap", type=int, default=13, metavar="N", help="frames that a segment has of the one before (default: 13)"
    )

    compare = parser.add_argument_group("to compare, a video each, of one seed, named after --out")
    compare.add_argument("--compare-lora", action="store_true", help="without the LoRAs and with them")
    compare.add_argument("--strengths", type=float, nargs="+", metavar="S", help="the first LoRA at each strength")
    compare.add_argument("--compare-attention", action="store_true", help="dense and sparse, and the error")
    compare.add_argument(
        "--page", type=Path, metavar="FILE", help="an HTML page with all of them in it, in players under one clock"
    )

    memory = parser.add_argument_group("little memory")
    memory.add_argument(
        "--precision", choices=("no_change", "int8-quanto", "fp8-torchao"), default="no_change",
        help="of the transformer's large linears",
    )  # fmt: skip
    memory.add_argument("--swap", type=int, default=0, metavar="N", help="blocks that wait in main memory")
    memory.add_argument("--vae-tiling", action="store_true", help="decode in tiles")


def _sample(options: argparse.Namespace) -> int:
    from studio.cli import STOPPING, _quiet_libraries, _say
    from studio.core.model.processes import is_one_of_many, joined
    from studio.core.model.starting import start_on_gpus

    _quiet_libraries()
    if options.gpus is not None and options.gpus < 1:
        raise ConfigError(f"--gpus is {options.gpus}.", "Give a number of GPUs, 1 or more.")
    if options.gpus and options.gpus > 1 and not is_one_of_many():
        return start_on_gpus(options.given, options.gpus, answer=partial(_say, STOPPING))
    try:
        with joined() as processes, processes.telling(_tell):
            processes.outlast_sigterm()
            return _sample_with(options, processes)
    except OutOfMemory as error:
        raise _in_options(error) from None


def _tell(error: StudioError) -> None:
    """Why this process is about to be ended, while its main thread hangs."""
    sys.stderr.write(f"{_in_options(error)}\n")


def _in_options(error: StudioError) -> StudioError:
    """With a remedy that names options of `sample`, where it names keys of config.json."""
    return OutOfMemory(error.message, with_options(error.remedy)) if isinstance(error, OutOfMemory) else error


def _sample_with(options: argparse.Namespace, processes: Processes) -> int:
    """On this process alone, or as one of several, of which the first one writes and speaks."""
    from studio.cli import _interrupted, leave_signals_to_the_first
    from studio.core.sample.compare import relative_error, render_variants
    from studio.core.sample.parallel import load_together, sample_together
    from studio.core.sample.sampler import write_rendered

    model, request = _model(options), _request(options)
    variants = _variants(options, request)
    outs = [options.out.with_stem(f"{options.out.stem}-{label.replace(' ', '-')}") for label, _ in variants]
    for out in outs or [options.out]:
        _check_out(out)
    if options.page:
        _check_page(options.page, len(variants))
    bundle = load_together(model, processes)
    for notice in bundle.notices if processes.is_main else ():
        sys.stderr.write(f"{notice}\n")
    is_interrupted = _interrupted() if processes.is_main else leave_signals_to_the_first()

    def should_stop() -> bool:
        return processes.agree(is_interrupted())

    if not variants:
        bar = SampleBar(is_silent=not processes.is_main)
        for event in sample_together(request, bundle, options.out, should_stop=is_interrupted):
            bar.show(event)
    found = []
    for out, variant in zip(outs, variants, strict=True):
        bar = SampleBar(variant[0], is_silent=not processes.is_main)
        (done,) = _followed(render_variants([variant], bundle, should_stop=should_stop), bar) or (None,)
        if done is None:
            break
        found.append(done)
        if not processes.is_main:
            continue
        for event in write_rendered(done.request, bundle, done.rendered, out, done.seconds):
            bar.show(event)
    if not processes.is_main:
        return 0
    if options.compare_attention and len(found) == len(variants):
        write(f"The latents under sparse attention are off by {relative_error(*found):.4f} of the dense ones.")
    if options.page and len(found) == len(variants):
        _write_page(options.page, outs)
    return 0 if all(out.exists() for out in outs or [options.out]) else 1


def _model(options: argparse.Namespace) -> ModelConfig:
    """Raises ConfigError."""
    from studio.core.config import ModelConfig

    if options.swap < 0:
        raise ConfigError(f"--swap is {options.swap}.", "Give a number of blocks, 0 or more.")
    return ModelConfig(
        source=options.model, attention=options.attention, base_precision=options.precision,
        blocks_to_swap=options.swap, vae_tiling=options.vae_tiling,
    )  # fmt: skip


def _request(options: argparse.Namespace) -> SampleRequest:
    """What the options ask for. Raises StudioError."""
    from studio.core.data.decode import read_image
    from studio.core.model.lora import LoraFile
    from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest
    from studio.core.sample.video import read_clip

    height, width = _size(options.size)
    strengths = options.lora_strength or [1.0] * len(options.lora)
    if len(strengths) != len(options.lora):
        raise ConfigError(
            f"There are {len(options.lora)} --lora and {len(strengths)} --lora-strength.", "Give one for each, or none."
        )
    clip, fps = (None, None) if options.clip is None else read_clip(options.clip)
    return SampleRequest(
        prompt=options.prompt,
        negative_prompt=PUBLISHED_NEGATIVE_PROMPT if options.published_negative_prompt else options.negative_prompt,
        start_frame=None if options.image is None else read_image(options.image),
        clip=clip,
        clip_fps=fps,
        height=height,
        width=width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        schedule=options.schedule,
        seed=options.seed,
        loras=tuple(LoraFile(path=path, strength=s) for path, s in zip(options.lora, strengths, strict=True)),
        num_segments=options.segments,
        later_prompts=tuple(options.next_prompt),
        num_overlap_frames=options.overlap,
        refinement=REFINEMENTS[options.refine],
        # Named, it goes for the refinement too.
        attention=None if options.attention == "auto" else options.attention,
        sparsity=options.sparsity,
    )


def _variants(options: argparse.Namespace, request: SampleRequest) -> list[tuple[str, SampleRequest]]:
    """The videos to compare, labelled; none for a single video. Raises ConfigError."""
    from studio.core.sample.compare import attention_variants, lora_variants, strength_variants

    given = {
        "--compare-lora": options.compare_lora,
        "--strengths": options.strengths,
        "--compare-attention": options.compare_attention,
    }
    asked = [name for name, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} do not go together.", "Give one of them.")
    if options.strengths:
        variants = strength_variants(request, options.strengths)
    elif options.compare_attention:
        variants = attention_variants(request)
    else:
        variants = lora_variants(request) if options.compare_lora else []
    return [(label, replace(one, label=label)) for label, one in variants]


def _check_out(out: Path) -> None:
    """Before the work begins. Raises StudioError."""
    from studio.core.sample.video import make_folder

    if out.suffix.lower() != ".mp4":
        raise ConfigError(f"{out} does not end with .mp4.", f"Name it {out.stem or 'video'}.mp4.")
    if out.exists():
        raise ConfigError(f"{out} exists already.", "Give another name; nothing is overwritten.")
    make_folder(out.parent)


def _check_page(page: Path, count: int) -> None:
    """Before the work begins. Raises StudioError."""
    from studio.core.sample.judge import MOST
    from studio.core.sample.video import make_folder

    if not 2 <= count <= MOST:
        raise ConfigError(f"--page shows 2 to {MOST} videos, and these are {count or 1}.", "Compare something.")
    if page.suffix.lower() != ".html":
        raise ConfigError(f"{page} does not end with .html.", f"Name it {page.stem or 'page'}.html.")
    if page.exists():
        raise ConfigError(f"{page} exists already.", "Give another name; nothing is overwritten.")
    make_folder(page.parent)


def _write_page(page: Path, videos: Sequence[Path]) -> None:
    """Raises StudioError."""
    from studio.core.sample.gallery import read_gallery_video
    from studio.core.sample.judge import compare_videos
    from studio.view.comparison_page import comparison_html
    from studio.view.words import words

    html = comparison_html(compare_videos([read_gallery_video(video) for video in videos]), words("en"))
    try:
        with page.open("x", encoding="utf-8") as file:
            file.write(html)
    except OSError as error:
        raise ConfigError(f"{page} cannot be written: {error.strerror}.", "Choose another place.") from error
    write(f"The comparison is in {page}")


def _followed(steps: Generator[SampleEvent, None, Done], bar: SampleBar) -> Done:
    """What the steps come to, shown as they go."""
    while True:
        try:
            bar.show(next(steps))
        except StopIteration as end:
            return end.value


def with_options(remedy: str) -> str:
    """A remedy of the core in the options of `sample`, where it names keys of config.json."""
    changes: Sequence[tuple[str, str]] = re.findall(r"(\w+) to ([\w-]+)", remedy)
    given = [OPTIONS[key].format(value) for key, value in changes if key in OPTIONS]
    return f"Give {' '.join(given)}." if given else remedy


def _size(text: str | None) -> tuple[int | None, int | None]:
    """(height, width) of `480x832`. Raises ConfigError."""
    if text is None:
        return None, None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"The size {text} cannot be read.", "Write height x width, such as 480x832.")
    return int(height), int(width)
