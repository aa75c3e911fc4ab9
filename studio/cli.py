"""The command line: each command is one core call, and printing around it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from studio.cli_runs import add_runs_command
from studio.cli_sample import add_sample_command
from studio.core.errors import StudioError
from studio.core.model.stop_wish import are_passed_on, is_wished
from studio.core.runlog import RunFolder, RunState, newest_unfinished, run_at
from studio.core.simpletuner import read_project
from studio.view.terminal import (
    TrainBar,
    print_hint,
    print_preflight,
    print_problems,
    print_report,
    print_sum,
)

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.core.model.processes import Processes
    from studio.core.simpletuner import Project
    from studio.core.types import DatasetReport

NEW_RUN = "a new run"
"""What several processes are told, where it is not the folder of a run to go on with."""
USER_ERROR = 1
"""Exit code when something has to be mended first."""
STOPPING = "Stopping after this step"
TRAIN = (
    "Trains a LoRA. Ctrl-C or SIGTERM stops after the step in hand and saves a checkpoint and the LoRA; a second one "
    "ends at once, and --resume goes on from the newest checkpoint."
)
TRAIN_CODES = (
    "Exit codes: 0, all steps are done, or the run was stopped and saved; 1, something must be mended first, or the "
    "run failed; 2, wrong options; 130 and 143, ended at once by a second Ctrl-C or SIGTERM."
)


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code. Errors are one line with the remedy in it, never a traceback."""
    options = _parser().parse_args(arguments or ["ui"])
    options.given = list(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return options.run(options)
    except StudioError as error:
        print(error, file=sys.stderr)
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
    check.add_argument("--html", type=Path, metavar="FILE", help="write the report as one HTML page, a new file")
    check.set_defaults(run=_check)

    mend = commands.add_parser("mend", help="write a mended copy of a dataset; without a mend, list what is offered")
    mend.add_argument("path", type=Path, help="a folder, a multidatabackend.json or a config.json")
    mend.add_argument("--start-frames", action="store_true", help="the first frame of clips that have no start frame")
    mend.add_argument(
        "--replace-start-frames", action="store_true",
        help="the first frame of clips whose start frame is blank, of another shape or another picture",
    )  # fmt: skip
    mend.add_argument("--split-scenes", action="store_true", help="a clip for each scene")
    mend.add_argument(
        "--frame-rate", type=float, nargs="?", const=True, metavar="FPS",
        help="one constant frame rate (default: 15, the model's)",
    )  # fmt: skip
    mend.add_argument("--trim", action="store_true", help="only the frames that are trained, 4k+1 of them")
    mend.add_argument("--crop", action="store_true", help="the size that is trained; what hangs over is cut off")
    mend.add_argument("--pad", action="store_true", help="the size that is trained; black bars keep all")
    mend.add_argument("--captions", metavar="TEMPLATE", help='captions where there are none, such as "{name}"')
    mend.add_argument("--config-only", action="store_true", help="only the configuration of a plain folder")
    mend.add_argument("--into", type=Path, metavar="DIR", help="the new folder")
    mend.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    mend.set_defaults(run=_mend)

    train = commands.add_parser("train", help="train a LoRA", description=TRAIN, epilog=TRAIN_CODES)
    train.add_argument(
        "--config", type=Path, required=True,
        help="a config.json, a dataset folder, or the folder of a run to begin or go on with",
    )  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this dataset")
    train.add_argument("--gpus", type=_count, metavar="N", help="so many processes, one a GPU (default: 1)")
    train.add_argument("--shard", action="store_true", help="with --gpus: each holds a part of the base (FSDP2)")
    train.set_defaults(run=_train)

    fit = commands.add_parser("fit", help="measure what a step of training takes, and whether it fits this device")
    fit.add_argument("project", type=Path, help="a config.json, or a dataset folder")
    fit.add_argument("--gpus", type=_count, metavar="N", default=1, help="as one of so many GPUs (DDP; default: 1)")
    fit.set_defaults(run=_fit)

    add_sample_command(commands)

    bench = commands.add_parser("bench", help="times and proofs: at full size on this CUDA device, or anywhere")
    bench.add_argument(
        "parts", nargs="*", metavar="PART",
        help="speed, memory, fit (all three when none is named), gpus, check, kills, learn, watchers, restarts",
    )  # fmt: skip
    bench.add_argument("--times", type=_count, help="kills (default: 200) or restarts (default: 20)")
    bench.add_argument("--seeds", type=_count, default=3, help="of learn, for each effect (default: 3)")
    bench.add_argument("--jobs", type=_count, default=1, help="of learn: so many processes at a time (default: 1)")
    bench.add_argument("--clients", type=_count, default=100, help="of watchers (default: 100)")
    bench.add_argument("--minutes", type=float, default=10, help="of watchers (default: 10)")
    bench.set_defaults(run=_bench)

    add_runs_command(commands)

    ui = commands.add_parser("ui", help="open the app in the browser (default)")
    ui.add_argument("--project", type=Path, help="open this dataset")
    ui.add_argument("--port", type=int, default=7860)
    ui.add_argument("--host", default="127.0.0.1", help="the address to listen at; one that others reach needs --auth")
    ui.add_argument("--auth", metavar="NAME:PASSWORD", help="what a browser or a program must give to get in")
    ui.add_argument("--no-browser", action="store_true")
    ui.set_defaults(run=_ui)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from studio.demo import run_demo

    _quiet_libraries()
    return 0 if run_demo(options.out, should_stop=_interrupted()) else USER_ERROR


def _check(options: argparse.Namespace) -> int:
    from studio.core.data.report import report_to_json
    from studio.view.words import words

    if options.html and os.path.lexists(options.html):
        raise _exists(options.html)
    project, report = _checked(options.path)
    if options.html:
        from studio.view.report_page import report_html

        _write_page(options.html, report_html(options.path, report, project, words("en")))
        if not options.json:
            print_sum(report)
            print(f"The report is in {options.html}")
    if options.json:
        print(json.dumps(report_to_json(report, project), indent=2))
    elif not options.html:
        print_report(report)
    return 0 if report.is_ok else USER_ERROR


def _checked(path: Path) -> tuple[Project, DatasetReport]:
    """The project at a path and its check, which people see go on and Ctrl-C stops."""
    from studio.core.data.check import check_project
    from studio.view.terminal import CountBar

    bar = CountBar("checking", "clip", only_for_people=True)
    try:
        return check_project(path, progress=bar.show, should_stop=_interrupted("Stopping the check"))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        bar.close()


def _write_page(path: Path, page: str) -> None:
    """Writes a new file. Raises StudioError."""
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise StudioError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error


def _exists(path: Path) -> StudioError:
    return StudioError(f"{path} exists already.", "Give another name; nothing is overwritten.")


def _mend(options: argparse.Namespace) -> int:
    from studio.core.data.bucket import MODEL_FPS
    from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
    from studio.view.terminal import CountBar, print_offer, print_plan

    given = {
        MendKind.START_FRAMES: options.start_frames,
        MendKind.REPLACE_START_FRAMES: options.replace_start_frames,
        MendKind.SPLIT_SCENES: options.split_scenes,
        MendKind.FRAME_RATE: options.frame_rate is not None,
        MendKind.TRIM: options.trim,
        MendKind.CROP: options.crop,
        MendKind.PAD: options.pad,
        MendKind.CAPTIONS: options.captions is not None,
        MendKind.CONFIG: options.config_only,
    }
    choice = MendChoice(
        kinds=frozenset(kind for kind, is_given in given.items() if is_given),
        caption_template=options.captions or "",
        frame_rate=options.frame_rate if isinstance(options.frame_rate, float) else MODEL_FPS,
    )
    if options.config_only and len(choice.kinds) > 1:
        raise StudioError("--config-only goes alone.", "Leave it out: every mended dataset gets its configuration.")
    if choice.kinds and options.into is None and not options.dry_run:
        raise StudioError("There is no --into.", "Name the new folder, or give --dry-run.")
    project, report = _checked(options.path)
    if not choice.kinds:
        offered = offered_mends(project, report)
        print_offer(offered)
        return 0 if offered or report.is_ok else USER_ERROR
    plan = plan_mends(project, report, choice)
    if options.dry_run or options.into is None:
        print_plan(plan)
        return 0
    bar = CountBar("mending", "clip", only_for_people=True)
    try:
        folder = write_mends(
            plan, options.into, progress=bar.show, should_stop=_interrupted("Stopping, and nothing is kept")
        )
    finally:
        bar.close()
    for pair, reason in plan.left_out:
        print(f"{pair.name} is left out: {reason}", file=sys.stderr)
    print(f"The mended dataset is in {folder}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from studio.core.model.processes import is_one_of_many, joined
    from studio.core.model.starting import start_on_gpus

    _quiet_libraries()
    gpus: int = options.gpus or 1
    if options.shard and gpus == 1:
        raise StudioError("--shard goes with --gpus 2 or more.", "Say over how many GPUs the base is to lie.")
    begun = run_at(options.config)
    is_worker, device = is_one_of_many(), "auto"
    if is_worker or gpus > 1:
        device = (begun.config() if begun else read_project(options.config).run).model.device
    if gpus > 1 and not is_worker:
        answer = partial(_say, STOPPING)
        return start_on_gpus(options.given, gpus, is_sharded=options.shard, device=device, answer=answer)
    with joined(device) as processes:
        return _train_with(options, begun, processes) if processes.is_main else _train_beside(options, processes)


def _train_with(options: argparse.Namespace, begun: RunFolder | None, processes: Processes) -> int:
    """The one process, or the first of several, which tells the others what there is to train."""
    from studio.core.train.preflight import preflight

    if begun is not None:
        if begun.state() is RunState.FINISHED:
            raise StudioError(f"The run {begun.name} is finished.", "Give the config.json of a new run.")
        processes.tell(str(begun.path))
        return follow(begun, processes=processes)
    project, report = _checked(options.config)
    if not report.is_ok:
        print_report(report)
        processes.tell("")
        return USER_ERROR
    print_problems(report)
    if options.resume:
        unfinished = newest_unfinished(project.run.output_dir, project.run.data)
        processes.tell(str(unfinished.path))
        return follow(unfinished, processes=processes)
    run = replace(project.run, num_processes=processes.count, is_sharded=processes.is_sharded)
    plan = preflight(run, report)
    print_preflight(plan)
    processes.tell(NEW_RUN if plan.is_ok else "")
    return follow(run, report, processes) if plan.is_ok else USER_ERROR


def _train_beside(options: argparse.Namespace, processes: Processes) -> int:
    """Another process, which says nothing and stops when the first one does."""
    from studio.core.data.check import check_project
    from studio.core.model.load import load_bundle
    from studio.core.train.job import run_inline

    told = processes.tell("")
    if not told:
        return USER_ERROR
    resume, report = RunFolder(Path(told)) if told != NEW_RUN else None, None
    if resume is None:
        project, report = check_project(options.config)
        config = replace(project.run, num_processes=processes.count, is_sharded=processes.is_sharded)
    else:
        config = resume.config()
    leave_signals_to_the_first((signal.SIGINT, signal.SIGTERM))
    load = partial(load_bundle, config.model, processes)
    run_inline(config, load, report=report, resume=resume, processes=processes)
    return 0


def follow(what: RunConfig | RunFolder, report: DatasetReport | None = None, processes: Processes | None = None) -> int:
    """Trains a new run, or goes on with one, and shows how it goes; Ctrl-C or SIGTERM stops it after its step. Returns
    the exit code; `report` spares a second check, `processes` train it together.

    Raises StudioError when nothing begins.
    """
    from studio.core.model.load import load_bundle
    from studio.core.model.processes import ALONE
    from studio.core.train.hub import last_upload
    from studio.core.train.job import run_inline

    resume = what if isinstance(what, RunFolder) else None
    config = what.config() if isinstance(what, RunFolder) else what
    bar = TrainBar()
    should_stop = _interrupted(signals=(signal.SIGINT, signal.SIGTERM), may_be_killed=True)
    try:
        folder = run_inline(
            config, partial(load_bundle, config.model, processes or ALONE), on_event=bar.show,
            should_stop=should_stop, report=report, resume=resume, processes=processes or ALONE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print_hint(folder)
    if config.sharing.push_to_hub and (upload := last_upload(folder)) and upload.url:
        print(f"The LoRA is at {upload.url}")
    print(f"The run is in {folder.path}")
    return 0 if folder.state() in (RunState.FINISHED, RunState.STOPPED) else USER_ERROR


def _fit(options: argparse.Namespace) -> int:
    from studio.core.model.load import load_bundle
    from studio.core.train.fit import fit_of
    from studio.view.terminal import CountBar, print_fit

    _quiet_libraries()
    project, report = _checked(options.project)
    if not report.is_ok:
        print_report(report)
        return USER_ERROR
    bundle = load_bundle(project.run.model)
    for notice in bundle.notices:
        print(notice, file=sys.stderr)
    bar = CountBar("measuring", "size")
    config = replace(project.run, num_processes=options.gpus)
    fit = fit_of(config, bundle, report, on_progress=bar.show)
    bar.close()
    print_fit(fit)
    return 0 if fit.fits else USER_ERROR


def _bench(options: argparse.Namespace) -> int:
    from studio.bench import FULL_SIZE, PARTS, REPORTED, BenchSettings, run_bench
    from studio.core.errors import ConfigError

    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"The benchmark has no part {unknown[0]}.", f"Name some of {', '.join(PARTS)}, or none.")
    settings = BenchSettings(
        times=options.times, seeds=options.seeds, jobs=options.jobs, clients=options.clients, minutes=options.minutes
    )
    signals = (signal.SIGINT, signal.SIGTERM) if set(options.parts) & set(REPORTED) else ()
    should_stop = _interrupted("Stopping; what is known by now follows", signals)
    run_bench(options.parts or FULL_SIZE, settings, should_stop=should_stop)
    return 0


def _ui(options: argparse.Namespace) -> int:
    try:
        from studio.ui.app import launch
        from studio.ui.settings import AppSettings
    except ImportError as error:
        raise StudioError(f"The app needs the package {error.name}.", 'Install it: pip install -e ".[ui]".') from error
    if options.project is not None:
        read_project(options.project)
    name, colon, password = (options.auth or ":").partition(":")
    if options.auth is not None and not (name and colon and password):
        raise StudioError("--auth is not a name and a password.", "Write NAME:PASSWORD.")
    launch(
        AppSettings(project=options.project), host=options.host, port=options.port,
        auth=(name, password) if options.auth else None, open_browser=not options.no_browser,
    )  # fmt: skip
    return 0


def _count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


def _interrupted(
    answer: str = STOPPING,
    signals: Sequence[signal.Signals] = (signal.SIGINT,),
    *,
    may_be_killed: bool = False,
) -> Callable[[], bool]:
    """A question that Ctrl-C, or another of `signals`, answers with yes, as does one to whoever started this process
    beside others: work stops, as `answer` tells the user. The next one quits: work that `may_be_killed` by the signal
    itself, in the middle of a step, and without a KeyboardInterrupt, which gets lost where the C code of a library
    makes another error of it.
    """
    stop = threading.Event()

    def ask_to_stop(*_: object) -> None:
        for number in signals:
            is_raised = number == signal.SIGINT and not may_be_killed
            signal.signal(number, signal.default_int_handler if is_raised else signal.SIG_DFL)
        if not are_passed_on():
            _say(answer)
        stop.set()

    for number in signals:
        signal.signal(number, ask_to_stop)
    return lambda: stop.is_set() or is_wished()


def _say(answer: str) -> None:
    """What someone reads who pressed Ctrl-C."""
    print(f"\n{answer}; press Ctrl-C again to quit at once.", file=sys.stderr)


def leave_signals_to_the_first(signals: Sequence[signal.Signals] = (signal.SIGINT,)) -> Callable[[], bool]:
    """What `_interrupted` is for another process than the first: it goes on until that one says stop."""
    for number in signals:
        signal.signal(number, lambda *_: None)
    return lambda: False


def _quiet_libraries() -> None:
    """Loading bars of the libraries would drown our own lines."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
