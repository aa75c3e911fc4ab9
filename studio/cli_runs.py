"""The command `runs`: what the room Runs does, in a terminal. Each is one core call, and printing around it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from studio.core.errors import ConfigError, StudioError
from studio.core.runlog import RunFolder, list_runs
from studio.core.simpletuner import DEFAULT_OUTPUT
from studio.core.train.runs import (
    branch_run,
    checkpoints_of,
    delete_run,
    differences,
    figures,
    find_run,
    settings_of,
    size_on_disk,
    write_csv,
)
from studio.view.run_lines import sample_line
from studio.view.run_rows import (
    checkpoint_line,
    difference_rows,
    moment,
    run_row,
    size_text,
    value_text,
)
from studio.view.terminal import write
from studio.view.words import words

SHOWN = 20
"""Runs that `list` prints without --all."""
LAYOUTS = ("diffusers", "peft", "comfyui", "published")
"""Values of `Layout`, which is not loaded before it is needed."""


def add_runs_command(commands: Any) -> None:
    """Adds `runs` and its own commands to the subparsers of the command line."""
    runs = commands.add_parser("runs", help="list, compare, hand on, continue and delete runs")
    actions = runs.add_subparsers(required=True, metavar="action")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--runs", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="their folder (default: runs)")

    def action(name: str, run: Any, about: str, *, names: int = 1) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=about, parents=[place])
        for dest in ("which", "other")[:names]:
            parser.add_argument(dest, metavar="RUN", help="name of a run, or how it begins")
        parser.set_defaults(run_action=run, run=_run)
        return parser

    action("list", _list, "the runs, newest first", names=0).add_argument("--all", action="store_true")
    action("show", _show, "figures, checkpoints, samples and settings of a run")
    action("diff", _diff, "the settings in which two runs differ", names=2)
    export = action("export", _export, "the LoRA in another layout, every key checked to land")
    export.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    export.add_argument("--into", type=Path, required=True, metavar="DIR", help="a new folder")
    card = action("card", _card, "a model card with the newest sample")
    card.add_argument("--into", type=Path, required=True, metavar="DIR", help="a new folder")
    series = action("csv", _csv, "every step as a row of a table")
    series.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    upload = action("upload", _upload, "LoRA, model card and sample to the hub, private")
    upload.add_argument("--name", help="repository (default: hub_model_id, or after the run)")
    upload.add_argument("--public", action="store_true", help="a repository that everyone can see")
    go_on = action("continue", _continue, "go on with an unfinished run, or from a checkpoint as a new one")
    go_on.add_argument("--from-step", type=int, metavar="N", help="a new run from the checkpoint of this step")
    delete = action("delete", _delete, "delete a run with all that it made; asks first")
    delete.add_argument("--yes", action="store_true", help="do not ask; RUN is then the whole name")


def _run(options: argparse.Namespace) -> int:
    return options.run_action(options)


def _found(options: argparse.Namespace) -> RunFolder:
    return find_run(options.runs, options.which)


def _list(options: argparse.Namespace) -> int:
    w, runs = words("en"), list_runs(options.runs)
    if not runs:
        write(f"{w('runs.empty')} in {options.runs}.")
        return 0
    shown = runs if options.all else runs[:SHOWN]
    rows = [run_row(figures(run), w) for run in shown]
    columns = ("steps", "loss", "held_out", "time", "size")
    head = ("", w("runs.run"), *(w(f"runs.{column}") for column in columns))
    cells = [(f"{r.icon} {r.state}", r.name, *(getattr(r, column) for column in columns)) for r in rows]
    _print_table([head, *cells])
    if len(shown) < len(runs):
        write(f"{len(runs) - len(shown)} older runs: --all shows them.")
    return 0


def _show(options: argparse.Namespace) -> int:
    w, run = words("en"), _found(options)
    row, snapshot = run_row(figures(run), w), run.snapshot()
    write(f"{row.name}  {row.icon} {row.state}, {row.began}")
    for column in ("steps", "loss", "held_out", "time", "size"):
        write(f"  {w(f'runs.{column}'):<14}{getattr(row, column)}")
    if snapshot.failure:
        write(f"  {snapshot.failure.message} {snapshot.failure.remedy}")
    for checkpoint in checkpoints_of(run):
        write(f"  {w('runs.checkpoint')}: {checkpoint_line(checkpoint, w)} {checkpoint.damage}".rstrip())
    for sample in snapshot.samples:
        write(f"  {sample.path}: {sample_line(sample, w)}")
    if snapshot.lora:
        write(f"  LoRA: {snapshot.lora}")
    for key, value in settings_of(run.config()).items():
        if value not in (None, "", []):
            write(f"  {key}: {value_text(value)}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    w = words("en")
    first, second = (find_run(options.runs, name) for name in (options.which, options.other))
    found = difference_rows(differences(first.config(), second.config()))
    if not found:
        write(w("runs.no_differences"))
        return 0
    _print_table([(w("runs.key"), first.name, second.name), *found])
    return 0


def _export(options: argparse.Namespace) -> int:
    from studio.core.train.export import Layout, export_lora

    file = export_lora(_found(options), Layout(options.layout), options.into)
    write(words("en")("runs.exported", name=file))
    return 0


def _card(options: argparse.Namespace) -> int:
    from studio.core.train.card import write_card

    for file in write_card(_found(options), options.into):
        write(str(file))
    return 0


def _csv(options: argparse.Namespace) -> int:
    write_csv(_found(options), options.out)
    write(str(options.out))
    return 0


def _upload(options: argparse.Namespace) -> int:
    from studio.core.train.hub import default_name, upload_run

    w, run = words("en"), _found(options)
    done = upload_run(run, options.name or default_name(run), is_private=not options.public)
    write(f"{done.url} ({w('runs.hub_private' if done.is_private else 'runs.hub_public')})")
    return 0


def _continue(options: argparse.Namespace) -> int:
    from studio.cli import _quiet_libraries, follow

    _quiet_libraries()
    run = _found(options)
    if options.from_step is None and not run.state().can_resume:
        raise ConfigError(
            f"The run {run.name} is not one that ended half-way.", "Give --from-step to go on from a checkpoint."
        )
    run = run if options.from_step is None else branch_run(run, options.from_step)
    try:
        return follow(run)
    except StudioError:
        if options.from_step is not None:
            # It was made a moment ago, and holds nothing that its origin has not.
            delete_run(run)
        raise


def _delete(options: argparse.Namespace) -> int:
    # Nobody reads here which run it is: only its whole name will do.
    w, run = words("en"), find_run(options.runs, options.which, is_whole=options.yes)
    size = size_text(size_on_disk(run.path), w)
    question = w("runs.delete_what", name=run.name, began=moment(figures(run).began), size=size)
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("Nobody can be asked here whether to delete it.", "Give --yes.")
        write(f"{question} [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            write("Nothing was deleted.")
            return 1
    delete_run(run)
    write(w("runs.deleted", name=run.name))
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        write("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip())
