"""The button that mends a run which ran out of memory, or would: its settings changed, and on it goes."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from studio.core.config import RunConfig
from studio.core.data.check import check_dataset
from studio.core.errors import ConfigError, StudioError
from studio.core.remedy import CONFIG_NAME, Setting
from studio.core.runlog import RunFolder, RunSnapshot
from studio.core.settings_text import changed
from studio.core.train.retry import can_continue_with, change_run, concrete, is_same_data, offered_settings
from studio.ui.plan_markup import settings_line
from studio.ui.settings_editor import put_into, texts_in_use, use_texts
from studio.ui.workshop import Workshop
from studio.view.words import Words


def mend_button(workshop: Workshop, run: RunFolder, snapshot: RunSnapshot, w: Words) -> Any:
    """The update of the button; hidden where nothing is to mend, or the run is of other data than what is open."""
    settings = _settings(workshop, workshop.latest, run, snapshot)
    if not settings:
        return gr.update(visible=False)
    step = workshop.resumable_step(run) if can_continue_with(settings) else 0
    line = settings_line(settings)
    return gr.update(
        value=w("plan.mend_resume", change=line, step=step) if step else w("plan.mend", change=line), visible=True
    )


def mend_run(workshop: Workshop, run: RunFolder) -> None:
    """Goes on with a run under the settings that mend it, where it has a checkpoint and they change no loss; else
    starts it anew with them. The settings of the page become those of the run.

    Raises StudioError.
    """
    path = workshop.latest or ""
    settings = _settings(workshop, path, run, workshop.snapshot(run))
    if not settings:
        raise ConfigError(f"There is nothing to mend in the run {run.name}.", "Start another run.")
    config = changed(run.config(), settings)
    if can_continue_with(settings) and workshop.resumable_step(run):
        change_run(run, settings)
        workshop.resume(run)
    else:
        report = check_dataset(
            config.data, eval_dataset_id=config.validation.eval_dataset_id, probes=workshop.probes
        )  # fmt: skip
        workshop.train(config, report)
    # Another dataset may have been opened meanwhile.
    opened = workshop.opened[path]
    if text := put_into(texts_in_use(opened), [*few_settings(config), *settings], opened):
        for _ in use_texts(workshop, opened, text, threading.Event(), lambda _: None):
            pass


def few_settings(config: RunConfig) -> list[Setting]:
    """The settings that have a field of their own on the page."""
    values = {
        "max_train_steps": config.optim.max_train_steps or 0,
        "learning_rate": config.optim.learning_rate,
        "lora_rank": config.lora.rank,
        "train_batch_size": config.data.train_batch_size,
        "seed": config.seed,
    }
    return [(CONFIG_NAME, key, value) for key, value in values.items()]


def _settings(workshop: Workshop, path: str | None, run: RunFolder, snapshot: RunSnapshot) -> tuple[Setting, ...]:
    """What would mend the run, in full; empty where nothing would, or it is of other data than what `path` names."""
    offered, opened = offered_settings(snapshot), workshop.opened.get(path or "")
    if not offered or opened is None:
        return ()
    try:
        config = run.config()
        if not is_same_data(config, opened.project.run):
            return ()
        settings = concrete(offered, config, opened.report.pairs)
        return () if changed(config, settings) == config else settings
    except (StudioError, KeyError):
        return ()
