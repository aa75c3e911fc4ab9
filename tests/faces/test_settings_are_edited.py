"""All settings can be edited on the page; fields and text say the same, files stay, and a failed run is mended."""

import json
import time

import pytest

from studio.core.config import ModelConfig
from studio.core.data.check import check_dataset
from studio.core.errors import StudioError
from studio.core.jsonc import parse_jsonc, with_value
from studio.core.runlog import RunFolder, RunState
from studio.core.settings_text import changed, texts_of, with_settings
from studio.core.simpletuner import read_project, read_texts
from studio.core.simpletuner_help import MEANINGS, help_of, matching
from studio.core.simpletuner_keys import CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Honoured
from studio.ui.mend_run import mend_button, mend_run
from studio.ui.plan_panel import run_config
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.words import words
from tests.memory_that_runs_out import failing

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

TINY = ModelConfig(source="tiny", device="cpu")
SETTINGS = [
    ("config.json", "lora_rank", 2),
    ("config.json", "validation_step_interval", 7),
    ("multidatabackend.json", "clips.video.num_frames", 5),
    ("multidatabackend.json", "clips.repeats", 3),
]


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("{}", ("a",), '{\n  "a": 5\n}'),
        ('{\n  // "a": 1,\n}', ("a",), '{\n  // "a": 1,\n  "a": 5\n}'),
        ('{"a": 1 // one\n}', ("a",), '{"a": 5 // one\n}'),
        ('{\n  "a": 1 // one\n}', ("b",), '{\n  "a": 1, // one\n  "b": 5\n}'),
        ('{\n  "a": 1, /* last */\n}', ("b",), '{\n  "a": 1, /* last */\n  "b": 5\n}'),
        ('[{"v": {"n": 1}}]', (0, "v", "n"), '[{"v": {"n": 5}}]'),
        ('[\n  {"a": 1}\n]', (0, "v", "n"), '[\n  {"a": 1,\n    "v": {"n": 5}\n  }\n]'),
    ],
)
def test_a_value_is_changed_in_place_and_comments_stay(text, path, expected):
    changed_text = with_value(parse_jsonc(text, name="t"), path, 5)
    assert changed_text == expected
    value = parse_jsonc(changed_text, name="t").value
    for part in path:
        value = value[part]
    assert value == 5


@pytest.mark.parametrize("is_plain", [False, True])
def test_texts_make_the_run_that_the_files_make(project, is_plain):
    project = read_project(project / "clips" if is_plain else project)
    texts = texts_of(project, TINY)
    read = read_texts(texts.config, texts.datasets, project.written)
    assert read.run.data == project.run.data
    assert read.run.model.source == "tiny"
    assert is_plain or read.run == project.run
    new = with_settings(texts, SETTINGS, project)
    run = read_texts(new.config, new.datasets, project.written).run
    assert run == changed(read.run, SETTINGS)
    assert (run.lora.rank, run.data.datasets[0].num_frames, run.data.datasets[0].repeats) == (2, 5, 3)


def test_everything_that_is_wrong_in_the_texts_is_listed_at_once(project):
    written = read_project(project).written
    config = '{\n  "lora_rank": 0,\n  "learning_rat": 1,\n  "lora_dropout": 2\n}'
    issues = read_texts(config, "[", written).issues
    said = {issue.subject: f"{issue.message} {issue.remedy}" for issue in issues}
    assert "line 2" in said["lora_rank"]
    assert "Did you mean learning_rate?" in said["learning_rat"]
    assert "line 4" in said["lora_dropout"]
    assert "the file ends here" in said["multidatabackend.json"]


def test_every_setting_with_an_effect_has_a_meaning_and_is_found(project):
    tables = (CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS)
    assert {key for table in tables for key, rule in table.items() if isinstance(rule, Honoured)} == set(MEANINGS)
    keys = help_of(read_project(project).run)
    (found,) = matching(keys, "checkpointing_steps")
    assert (found.key, found.value, found.default) == ("checkpoint_step_interval", "500", "500")
    assert "video.num_frames" in [key.key for key in matching(keys, "frames clip 4k+1")]
    assert not list(matching(keys, "no such thing"))


def over(workshop):
    deadline = time.monotonic() + 60
    while workshop.is_training:
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.02)
    return workshop.current_run()


@pytest.mark.parametrize(
    ("at_call", "label", "first_step"),
    [
        (1, "Apply gradient_checkpointing = true and start again", 0),
        (2, "Apply gradient_checkpointing = true and continue from step 1", 1),
    ],
)
def test_a_run_out_of_memory_is_mended_by_the_button(
    project, tmp_path, tiny_bundle, monkeypatch, at_call, label, first_step
):
    workshop = Workshop(AppSettings(model=TINY, output_dir=tmp_path / "runs"))
    monkeypatch.setattr(Workshop, "bundle", lambda _self, _model: tiny_bundle)
    (tmp_path / "multidatabackend.json").write_text((project / "multidatabackend.json").read_text().replace(
        '"instance_data_dir": "', f'"instance_data_dir": "{project}/'
    ))  # fmt: skip
    settings = json.loads((project / "config.json").read_text()) | {
        "gradient_checkpointing": False, "checkpoint_step_interval": 1, "validation_using_datasets": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    path, w = str(workshop.open(str(tmp_path)).path), words("en")
    with failing(tiny_bundle.dit.blocks[1], at_call=at_call):
        workshop.train(*run_config(workshop, path, (2, 1e-3, 2, 1, 3), w))
        failed = over(workshop)
    assert failed.state() is RunState.FAILED
    button = mend_button(workshop, failed, workshop.snapshot(failed), w)
    assert (button["visible"], button["value"]) == (True, label)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "events", lambda _: pytest.fail("it was read again"))
        assert workshop.can_continue(failed)

    def check_while_another_is_opened(*args, **options):
        workshop.latest = None
        return check_dataset(*args, **options)

    monkeypatch.setattr("studio.ui.mend_run.check_dataset", check_while_another_is_opened)
    mend_run(workshop, failed)
    workshop.latest = path
    mended = over(workshop)
    assert (mended == failed) is (first_step > 0)
    assert mended.state() is RunState.FINISHED
    assert mended.snapshot().started.from_step == first_step
    assert mended.config().model.gradient_checkpointing
    now = workshop.opened[path]
    assert now.project.run.model.gradient_checkpointing, "the page has the settings of the run"
    assert (now.project.run.optim.max_train_steps, now.project.run.lora.rank) == (2, 2)
    assert json.loads((tmp_path / "config.json").read_text()) == settings, "the files are as they were"
    assert mend_button(workshop, mended, workshop.snapshot(mended), w)["visible"] is False
    with pytest.raises(StudioError, match="nothing to mend"):
        mend_run(workshop, mended)


@pytest.mark.browser
def test_settings_are_edited_used_saved_and_let_go(visit, project):
    page = visit()
    page.click("#use-demo")
    page.wait_for_selector(f".summary .path:text-is('{project}')")
    page.click("#to-train")
    page.wait_for_selector("#plan .facts:has-text('8, every clip')")
    files = {file: file.read_bytes() for file in project.glob("*.json")}

    page.fill("#steps input", "12")
    page.wait_for_selector("#plan .facts:has-text('12, every clip about 3.0 times')")
    page.click("#settings .label-wrap")
    page.wait_for_selector("#edit-config .cm-content:has-text('\"max_train_steps\": 12')")
    page.fill("#settings-search input, #settings-search textarea", "blocks wait")
    page.wait_for_selector("#settings-keys code:has-text('musubi_blocks_to_swap')")

    def write(text):
        page.click("#edit-config .cm-content")
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(text)

    write('{"lora_rnk": 3, "train_batch_size": 0}')
    page.wait_for_selector("#settings-problems:has-text('Did you mean lora_rank?')")
    assert "train_batch_size is 0" in page.inner_text("#settings-problems")
    assert page.is_disabled("#settings-use")
    write('{"learning_rate": 0.5}')
    page.fill("#rank input", "5")
    page.wait_for_selector("#edit-config .cm-content:has-text('\"lora_rank\": 5')")
    assert '"learning_rate": 0.5' in page.inner_text("#edit-config .cm-content"), "what was typed stays"
    write('{"pretrained_model_name_or_path": "tiny", "lora_rank": 3, "max_train_steps": 6, "train_batch_size": 2}')
    page.wait_for_selector("#settings-use:not([disabled])")
    page.click("#settings-use")
    page.wait_for_function("document.querySelector('#rank input').value === '3'")
    assert [page.input_value(f"#{name} input") for name in ("steps", "batch")] == ["6", "2"]
    page.wait_for_selector("#settings-line:has-text('In use')")
    page.wait_for_selector("#plan .facts:has-text('6, every clip about 3.0 times')")
    page.click("#settings-save")
    with page.expect_download() as download:
        page.click("#save-config")
    assert '"lora_rank": 3' in download.value.path().read_text(encoding="utf-8")

    page.click("#measure")
    page.wait_for_selector("#fit table")
    page.wait_for_selector("#plan .facts:has-text('that were measured')")
    page.fill("#rank input", "6")
    page.wait_for_selector("#fit:has-text('measured for other settings')")
    page.click("#settings-back")
    page.wait_for_function("document.querySelector('#rank input').value === '4'")
    assert {file: file.read_bytes() for file in project.glob("*.json")} == files
