"""What each of two processes runs for `test_two_processes_train_as_one.py`: `<folder>` holds the configurations."""

import json
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from studio.core.config_json import read_run_config
from studio.core.errors import ConfigError
from studio.core.events import RunPaused, SampleSaved, StepDone
from studio.core.model.load import load_bundle
from studio.core.model.processes import joined
from studio.core.train.job import run_inline
from studio.core.train.onerun import told_run
from studio.core.train.requests import Request, ask, withdraw
from tests.memory_that_runs_out import failing
from tests.two_processes import as_two


def main(folder):
    heard = {}
    # The process that fails first ends in silence.
    with suppress(SystemExit), joined("cpu") as processes:
        bundle = load_bundle(read_run_config(folder / "ddp.json").model, processes)
        heard["ddp"] = str(train(folder / "ddp.json", bundle, processes, on_event=asking).path)
        sharding = replace(processes, is_sharded=True)
        sharded = load_bundle(read_run_config(folder / "fsdp.json").model, sharding)
        parts = [getattr(p, "to_local", lambda p=p: p)().numel() for p in sharded.dit.blocks.parameters()]
        heard["held"] = sum(parts) / sum(p.numel() for p in sharded.dit.blocks.parameters())
        heard["fsdp"] = str(train(folder / "fsdp.json", sharded, sharding).path)
        try:
            processes.require_same("configuration", f"that of process {processes.rank}")
        except ConfigError as error:
            heard["mismatch"] = error.message
        heard["sum"] = processes.sum(torch.tensor([1.0 + processes.rank])).tolist()
        heard["all"] = [processes.all_agree(answer) for answer in (True, processes.is_main, False)]
        (folder / f"{processes.rank}.json").write_text(json.dumps(heard))
        with nullcontext() if processes.is_main else failing(bundle.dit.blocks[0], at_call=2):
            train(folder / "fails.json", bundle, processes)


def train(file, bundle, processes, on_event=lambda *_: None):
    config = read_run_config(file)
    return run_inline(
        config, lambda: bundle, on_event=lambda event: on_event(event, told_run(config.output_dir)), processes=processes
    )


def asking(event, run):
    """Asks the run for all that can be asked for, as a page does that sees its events."""
    match event:
        case StepDone(step=1):
            ask(run, Request.SAVE)
            ask(run, Request.SAMPLE)
        case StepDone(step=2):
            ask(run, Request.PAUSE)
        case RunPaused():
            ask(run, Request.SAMPLE)
        case SampleSaved(step=2):
            withdraw(run, Request.PAUSE)
        case StepDone(step=3):
            ask(run, Request.STOP)


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_two(partial(main, Path(sys.argv[1])))
