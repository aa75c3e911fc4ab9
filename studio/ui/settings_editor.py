"""The editor of all settings: the two files as texts, what is wrong in them, and what each key means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import gradio as gr

from studio.core.config import ModelConfig, RunConfig
from studio.core.data.check import check_dataset
from studio.core.errors import ConfigError, StudioError
from studio.core.remedy import CONFIG_NAME, DATASETS_NAME, Setting
from studio.core.settings_text import SettingsText, texts_of, with_settings
from studio.core.simpletuner import Project, read_texts
from studio.core.simpletuner_help import help_of, matching
from studio.core.types import Severity
from studio.ui import markup
from studio.ui.follow import Step, follow
from studio.ui.plan_markup import key_list, problems
from studio.ui.workshop import Opened, Workshop
from studio.view.words import Words


@dataclass(frozen=True, slots=True)
class SettingsEditor:
    """The parts that the plan connects."""

    codes: list[Any]
    """The texts of the two files."""
    use: gr.Button
    back: gr.Button
    told: list[Any]
    """Problems, the line above them, and the button `use`."""
    check: Callable[[Opened, RunConfig | None, str, str], list[Any]]
    """check(opened, in_use, *texts) -> updates for `told`; `in_use`: what a run would be now."""
    search: gr.Textbox
    table: gr.HTML


def build_settings_editor(workshop: Workshop, w: Words, path: gr.State) -> SettingsEditor:
    """Lays the editor out, folded, where it is called."""
    with gr.Accordion(w("settings.title"), open=False, elem_id="settings"):
        gr.HTML(markup.note(w("settings.help")))
        codes = []
        with gr.Tabs():
            for name in (CONFIG_NAME, DATASETS_NAME):
                with gr.Tab(name):
                    codes.append(
                        gr.Code(
                            language="json",
                            lines=12,
                            max_lines=24,
                            wrap_lines=True,
                            show_label=False,
                            interactive=True,
                            buttons=[],
                            elem_id=f"edit-{name.partition('.')[0]}",
                        )  # fmt: skip
                    )
        line = gr.HTML(elem_id="settings-line")
        wrong = gr.HTML(elem_id="settings-problems")
        with gr.Row(elem_classes="bar-row"):
            use = gr.Button(w("settings.use"), variant="primary", min_width=160, elem_id="settings-use")
            back = gr.Button(w("settings.back"), min_width=136, elem_id="settings-back")
            save = gr.Button(w("settings.save"), min_width=136, elem_id="settings-save")
        with gr.Row():
            copies = [
                gr.DownloadButton(name, size="sm", visible=False, elem_id=f"save-{name.partition('.')[0]}")
                for name in (CONFIG_NAME, DATASETS_NAME)
            ]
        search = gr.Textbox(
            label=w("settings.search"), placeholder=w("settings.search_hint"), max_lines=1, elem_id="settings-search"
        )
        table = gr.HTML(elem_id="settings-keys")

    def check(opened: Opened, in_use: RunConfig | None, config: str, datasets: str) -> list[Any]:
        project = read_texts(config, datasets, opened.project.written)
        has_errors = any(issue.severity is Severity.ERROR for issue in project.issues)
        is_used = in_use is not None and same_settings(project, opened, in_use)
        is_as_files = SettingsText(config, datasets) == texts_of(opened.project, opened.model) and not opened.texts
        said = "settings.dirty" if has_errors or not is_used else "settings.used"
        said = "settings.as_files" if is_as_files and is_used else said
        shown = problems(project.issues, w) or markup.note(w("settings.fine"))
        return [shown, markup.note(w(said)), gr.update(interactive=not has_errors and not is_used)]

    def find(target: str | None, words: str) -> str:
        opened = workshop.opened.get(target or "")
        return key_rows(opened, words or "", w) if opened else ""

    def write(config: str, datasets: str) -> list[Any]:
        folder = workshop.folder / uuid4().hex
        folder.mkdir()
        files = [folder / CONFIG_NAME, folder / DATASETS_NAME]
        for file, text in zip(files, (config, datasets), strict=True):
            file.write_text(text or "", encoding="utf-8")
        return [gr.update(value=str(file), visible=True) for file in files]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    search.change(find, [path, search], table, queue=False, trigger_mode="always_last", **quiet)
    save.click(write, codes, copies, **quiet)
    return SettingsEditor(
        codes=codes, use=use, back=back, told=[wrong, line, use], check=check, search=search, table=table
    )


def key_rows(opened: Opened, words: str, w: Words) -> str:
    """The table of the settings that have all the words in name or meaning."""
    return key_list(list(matching(help_of(opened.project.run), words)), w)


def texts_in_use(opened: Opened) -> SettingsText:
    """What the editor shows first."""
    return opened.texts or texts_of(opened.project, opened.model)


def same_settings(project: Project, opened: Opened, in_use: RunConfig) -> bool:
    """True when a run of `project` would be what a run would be now."""
    run, used = project.run, opened.project.run
    steps = replace(run.optim, max_train_steps=run.optim.max_train_steps or in_use.optim.max_train_steps)
    written = replace(run, model=_on_device(project, opened), optim=steps)
    # Where runs are written is the app's to say unless the settings do; GPUs have a choice of their own.
    written = replace(
        written, output_dir=in_use.output_dir, num_processes=in_use.num_processes, is_sharded=in_use.is_sharded
    )
    return written == in_use and run.output_dir == used.output_dir


def _on_device(project: Project, opened: Opened) -> ModelConfig:
    """The model of the texts, where the app runs models."""
    return replace(project.run.model, device=opened.model.device)


def use_texts(
    workshop: Workshop,
    opened: Opened,
    texts: SettingsText,
    stop: threading.Event,
    say: Callable[[Step], Any],
) -> Generator[Any, None, Opened]:
    """Puts texts in the place of the files, for the next runs on this dataset; its clips are looked at again where
    that matters. Yields what `say` makes of each step.

    Raises:
        ConfigError: the texts have errors; says the first.
        CheckStopped: `stop` was set.
    """
    project = read_texts(texts.config, texts.datasets, opened.project.written)
    for issue in project.issues:
        if issue.severity is Severity.ERROR:
            raise ConfigError(issue.message, issue.remedy)
    old, new = opened.project.run, project.run
    if (old.data, old.validation.eval_dataset_id) == (new.data, new.validation.eval_dataset_id):
        found = opened.report.issues[len(opened.project.issues) :]
        report = replace(opened.report, issues=project.issues + found)
    else:
        report = yield from follow(
            lambda tell: check_dataset(
                new.data, eval_dataset_id=new.validation.eval_dataset_id, progress=tell, probes=workshop.probes,
                should_stop=stop.is_set,
            ),
            stop,
            say,
        )  # fmt: skip
        report = replace(report, issues=project.issues + report.issues)
    changed = replace(opened, project=project, report=report, model=_on_device(project, opened), texts=texts)
    workshop.opened[str(opened.path)] = changed
    return changed


def put_into(texts: SettingsText, settings: Sequence[Setting], opened: Opened) -> SettingsText | None:
    """The texts with these settings; None where a text cannot be read."""
    project = read_texts(texts.config, texts.datasets, opened.project.written)
    try:
        return with_settings(texts, settings, project)
    except (StudioError, KeyError):
        return None
