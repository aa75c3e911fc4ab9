"""The command line: check, train, fit, sample, demo, bench, ui. Each is one core call and the printing around it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from studio.core.errors import OutOfMemory, StudioError
from studio.core.simpletuner import read_project
from studio.view.terminal import SampleBar, TrainBar, print_problems, print_report

USER_ERROR = 1
"""Exit code when something has to be mended first."""
OPTIONS = {
    "base_model_precision": "--precision {}",
    "musubi_blocks_to_swap": "--swap {}",
    "vae_enable_tiling": "--vae-tiling",
}
"""Keys of config.json as the options of `sample`, which reads no such file."""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code. Errors are one line with the remedy in it, never a traceback."""
    options = _parser().parse_args(arguments or ["ui"])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return options.run(options)
    except StudioError as error:
        print(f"{error.message} {error.remedy}".rstrip(), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studio", description="LongCat Studio")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="check, train and render the demo on the tiny checkpoint")
    demo.add_argument("--out", type=Path, help="new folder for the results (default: a new one under outputs)")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="check a dataset; exit code 1 when something must be mended")
    check.add_argument("path", type=Path, help="a folder, a multidatabackend.json or a config.json")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument(
        "--extract-start-frames", type=Path, metavar="DIR",
        help="write the first frame of each clip that has no start frame into this folder, overwriting nothing",
    )  # fmt: skip
    check.set_defaults(run=_check)

    train = commands.add_parser("train", help="train a LoRA")
    train.add_argument("--config", type=Path, required=True, help="a config.json, or a dataset folder")
    train.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this dataset")
    train.set_defaults(run=_train)

    fit = commands.add_parser("fit", help="measure what a step of training takes, and whether it fits this device")
    fit.add_argument("project", type=Path, help="a config.json, or a dataset folder")
    fit.set_defaults(run=_fit)

    sample = commands.add_parser("sample", help="animate a start frame")
    sample.add_argument("--image", type=Path, required=True, help="the start frame")
    sample.add_argument("--prompt", required=True)
    sample.add_argument("--out", type=Path, required=True, help="the mp4 to write; must not exist yet")
    sample.add_argument("--lora", type=Path, help="a .safetensors LoRA")
    sample.add_argument("--lora-strength", type=float, default=1.0)
    sample.add_argument("--model", default="tiny", help="tiny, final, a checkpoint folder or a hub id")
    sample.add_argument("--negative-prompt", default="")
    sample.add_argument("--size", help="HEIGHTxWIDTH in pixels")
    sample.add_argument("--frames", type=int, help="4k+1")
    sample.add_argument("--steps", type=int)
    sample.add_argument("--guidance", type=float)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--attention", choices=("auto", "dense", "sparse"), default="auto")
    sample.add_argument(
        "--precision", choices=("no_change", "int8-quanto", "fp8-torchao"), default="no_change",
        help="of the transformer's large linears",
    )  # fmt: skip
    sample.add_argument("--swap", type=int, default=0, metavar="N", help="blocks that wait in main memory")
    sample.add_argument("--vae-tiling", action="store_true", help="decode in tiles: less memory")
    sample.set_defaults(run=_sample)

    bench = commands.add_parser("bench", help="time the full-size transformer on this CUDA device")
    bench.add_argument("parts", nargs="*", metavar="PART", help="speed, memory or fit; all when none is named")
    bench.set_defaults(run=_bench)

    ui = commands.add_parser("ui", help="open the app in the browser (default)")
    ui.add_argument("--project", type=Path, help="open this dataset")
    ui.add_argument("--port", type=int, default=7860)
    ui.add_argument("--no-browser", action="store_true")
    ui.set_defaults(run=_ui)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from studio.demo import run_demo

    _quiet_libraries()
    return 0 if run_demo(options.out, should_stop=_interrupted()) else USER_ERROR


def _check(options: argparse.Namespace) -> int:
    from studio.core.data.check import Probes, check_project
    from studio.core.data.decode import extract_start_frames
    from studio.core.data.report import report_to_json

    probes = Probes()
    _, report = check_project(options.path, probes=probes)
    if options.extract_start_frames:
        written = extract_start_frames(report, options.extract_start_frames)
        print(f"{len(written)} start frames written to {options.extract_start_frames}", file=sys.stderr)
        _, report = check_project(options.path, probes=probes)
    if options.json:
        print(json.dumps(report_to_json(report), indent=2))
    else:
        print_report(report)
    return 0 if report.is_ok else USER_ERROR


def _train(options: argparse.Namespace) -> int:
    from studio.core.data.check import check_project
    from studio.core.model.load import load_bundle
    from studio.core.runlog import RunState, newest_unfinished
    from studio.core.train.job import run_inline

    _quiet_libraries()
    project, report = check_project(options.config)
    if not report.is_ok:
        print_report(report)
        return USER_ERROR
    print_problems(report)
    resume = newest_unfinished(project.run.output_dir, project.run.data) if options.resume else None
    config = resume.config() if resume else project.run
    bar = TrainBar()
    folder = run_inline(
        config, partial(load_bundle, config.model), on_event=bar.show, should_stop=_interrupted(),
        report=None if resume else report, resume=resume,
    )  # fmt: skip
    print(f"The run is in {folder.path}")
    return 0 if folder.state() in (RunState.FINISHED, RunState.STOPPED) else USER_ERROR


def _fit(options: argparse.Namespace) -> int:
    from studio.core.data.check import check_project
    from studio.core.model.load import load_bundle
    from studio.core.train.fit import fit_of
    from studio.view.terminal import FitBar, print_fit

    _quiet_libraries()
    project, report = check_project(options.project)
    if not report.is_ok:
        print_report(report)
        return USER_ERROR
    bundle = load_bundle(project.run.model)
    for notice in bundle.notices:
        print(notice, file=sys.stderr)
    bar = FitBar()
    fit = fit_of(project.run, bundle, report, on_progress=bar.show)
    bar.close()
    print_fit(fit)
    return 0 if fit.fits else USER_ERROR


def _sample(options: argparse.Namespace) -> int:
    from studio.core.config import ModelConfig
    from studio.core.data.decode import read_image
    from studio.core.errors import ConfigError
    from studio.core.model.load import load_bundle
    from studio.core.model.lora import LoraFile
    from studio.core.sample.sampler import SampleRequest, sample

    _quiet_libraries()
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already.", "Give another name; nothing is overwritten.")
    height, width = _size(options.size)
    request = SampleRequest(
        prompt=options.prompt, negative_prompt=options.negative_prompt, start_frame=read_image(options.image),
        height=height, width=width, num_frames=options.frames, num_inference_steps=options.steps,
        guidance_scale=options.guidance, seed=options.seed,
        loras=(LoraFile(path=options.lora, strength=options.lora_strength),) if options.lora else (),
    )  # fmt: skip
    if options.swap < 0:
        raise ConfigError(f"--swap is {options.swap}.", "Give a number of blocks, 0 or more.")
    model = ModelConfig(
        source=options.model, attention=options.attention, base_precision=options.precision,
        blocks_to_swap=options.swap, vae_tiling=options.vae_tiling,
    )  # fmt: skip
    try:
        bundle = load_bundle(model)
        for notice in bundle.notices:
            print(notice, file=sys.stderr)
        bar = SampleBar()
        for event in sample(request, bundle, options.out, should_stop=_interrupted()):
            bar.show(event)
    except OutOfMemory as error:
        raise OutOfMemory(error.message, with_options(error.remedy)) from None
    return 0 if options.out.exists() else USER_ERROR


def with_options(remedy: str) -> str:
    """A remedy of the core in the options of `sample`, where it names keys of config.json."""
    changes = re.findall(r"(\w+) to ([\w-]+)", remedy)
    given = [OPTIONS[key].format(value) for key, value in changes if key in OPTIONS]
    return f"Give {' '.join(given)}." if given else remedy


def _bench(options: argparse.Namespace) -> int:
    from studio.bench import PARTS, run_bench
    from studio.core.errors import ConfigError

    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"The benchmark has no part {unknown[0]}.", f"Name some of {', '.join(PARTS)}, or none.")
    run_bench(options.parts or PARTS)
    return 0


def _ui(options: argparse.Namespace) -> int:
    try:
        from studio.ui.app import launch
        from studio.ui.settings import AppSettings
    except ImportError as error:
        raise StudioError(f"The app needs the package {error.name}.", 'Install it: pip install -e ".[ui]".') from error
    if options.project is not None:
        read_project(options.project)
    launch(AppSettings(project=options.project), port=options.port, open_browser=not options.no_browser)
    return 0


def _size(text: str | None) -> tuple[int | None, int | None]:
    """(height, width) of `480x832`."""
    from studio.core.errors import ConfigError

    if text is None:
        return None, None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ConfigError(f"The size {text} cannot be read.", "Write height x width, such as 480x832.")
    return int(height), int(width)


def _interrupted() -> Callable[[], bool]:
    """A question that Ctrl-C answers with yes: work stops after its current step, and saves. A second one quits."""
    stop = threading.Event()

    def ask_to_stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step; press Ctrl-C again to quit at once.", file=sys.stderr)
        stop.set()

    signal.signal(signal.SIGINT, ask_to_stop)
    return stop.is_set


def _quiet_libraries() -> None:
    """Loading bars of the libraries would drown our own lines."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
