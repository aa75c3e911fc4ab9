"""What each of two processes runs for `test_two_processes_train_as_one.py`: `<folder>` holds the configurations."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from studio.core.config_json import read_run_config
from studio.core.errors import ConfigError
from studio.core.events import StepDone
from studio.core.model.load import load_bundle
from studio.core.model.processes import joined
from studio.core.train.job import run_inline
from tests.two_processes import as_two


def main(folder):
    with joined("cpu") as processes:
        heard = {}
        bundle = load_bundle(read_run_config(folder / "ddp.json").model, processes)
        heard["ddp"] = str(train(folder / "ddp.json", bundle, processes, last=2).path)
        sharding = replace(processes, is_sharded=True)
        config = read_run_config(folder / "fsdp.json").model
        bundle = load_bundle(config, sharding)
        parts = [getattr(p, "to_local", lambda p=p: p)().numel() for p in bundle.dit.blocks.parameters()]
        heard["held"] = sum(parts) / sum(p.numel() for p in bundle.dit.blocks.parameters())
        heard["fsdp"] = str(train(folder / "fsdp.json", bundle, sharding).path)
        try:
            processes.require_same("configuration", f"that of process {processes.rank}")
        except ConfigError as error:
            heard["mismatch"] = error.message
        heard["sum"] = processes.sum(torch.tensor([1.0 + processes.rank])).tolist()
        (folder / f"{processes.rank}.json").write_text(json.dumps(heard))


def train(file, bundle, processes, last=None):
    """A new run, which the first process ends after step `last`."""
    seen = []

    def on_event(event):
        if isinstance(event, StepDone):
            seen.append(event.step)

    return run_inline(
        read_run_config(file), lambda: bundle, on_event=on_event, should_stop=lambda: last in seen, processes=processes
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_two(partial(main, Path(sys.argv[1])))
