"""Whole runs on the tiny checkpoint: what they leave, and that a broken one goes on as if it had not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from studio.core.errors import ConfigError, DatasetError, JobAlreadyRunning, StudioError
from studio.core.events import CheckpointSaved, RunFinished, RunStopped, SampleSaved, StepDone
from studio.core.model.attention import AttentionChoice
from studio.core.model.lora import TRAINING, LoraFile, adapter_names, add_lora, remove_lora
from studio.core.runlog import RunFolder, RunState
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.train import learner as learning
from studio.core.train.job import run_inline
from studio.core.train.loop import attention_of_run, train
from studio.core.types import Bucket


def losses(folder):
    return dict(folder.snapshot().losses)


def stop_after(step):
    """(on_event, should_stop) that end a run after `step`."""
    seen = []

    def on_event(event):
        if isinstance(event, StepDone):
            seen.append(event.step)

    return on_event, lambda: step in seen


def test_a_run_leaves_its_lora_and_gives_the_model_back_unchanged(config, run, tiny_bundle, weights_hash):
    before = weights_hash(tiny_bundle.dit)
    folder = run(config)
    events = [event for _, event in folder.events()]
    assert folder.state() is RunState.FINISHED
    assert [e.step for e in events if isinstance(e, StepDone)] == [1, 2, 3, 4]
    assert isinstance(events[-1], RunFinished)
    assert weights_hash(tiny_bundle.dit) == before
    assert adapter_names(tiny_bundle.dit) == ()
    assert not any(p.requires_grad for p in tiny_bundle.dit.parameters())
    assert not tiny_bundle.dit.training
    with safe_open(folder.path / events[-1].lora, framework="pt") as file:
        notes = file.metadata()
    assert notes["studio.steps"] == "4"
    assert notes["studio.seed"] == "7"
    assert json.loads(notes["studio.config"])["lora"]["rank"] == 4
    assert str(config.output_dir) not in json.dumps(notes), "no folders of this machine in a LoRA"


def test_a_sparse_run_says_so_in_its_log(config, run, tiny_bundle, data_of, shapes_dataset, with_optim):
    bundle = replace(tiny_bundle, attention=AttentionChoice(setting="sparse", refusal="no kernel"))
    bundle.dit.set_attention(bundle.attention)
    config = replace(with_optim(config, max_train_steps=1), data=data_of(shapes_dataset))
    try:
        folder = run_inline(config, lambda: bundle)
    finally:
        bundle.dit.set_attention(tiny_bundle.attention)
    started = folder.snapshot().started
    assert (started.attention, started.attention_sparsity, started.attention_block) == ("sparse", 0.9375, (4, 4, 4))
    assert "no kernel" in started.attention_reason


def test_a_run_of_long_and_short_clips_names_the_attention_of_each(tiny_bundle, report):
    attention_of = replace(tiny_bundle, attention=AttentionChoice(setting="auto")).attention_of
    short = report.pairs[0]
    long = replace(short, bucket=Bucket(num_frames=93, height=480, width=832))
    mixed = attention_of_run(attention_of, [short, long])
    assert (mixed.kind, mixed.sparsity, mixed.block) == ("mixed", 0.9375, (4, 4, 4))
    assert "sparse for 93f 480x832" in mixed.reason
    assert f"dense for {short.bucket}" in mixed.reason
    assert attention_of_run(attention_of, [long]).kind == "sparse"
    assert attention_of_run(attention_of, [short]).kind == "dense"


def test_a_resumed_run_is_equal_bit_for_bit_to_an_unbroken_one(config, run, with_optim, tiny_bundle):
    config = replace(config, lora=replace(config.lora, dropout=0.1), data=replace(config.data, train_batch_size=3))
    unbroken = run(config)
    on_event, should_stop = stop_after(2)
    broken = run(config, on_event=on_event, should_stop=should_stop)
    assert broken.state() is RunState.STOPPED
    assert sorted(losses(broken)) == [1, 2]
    torch.manual_seed(123)  # whatever happened in between has no part in it
    assert run(broken.config(), resume=broken) == broken
    assert broken.state() is RunState.FINISHED
    assert losses(broken) == losses(unbroken)
    first, second = (load_file(f.path / "lora/pytorch_lora_weights.safetensors") for f in (unbroken, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(config, run, with_optim, tiny_bundle):
    config = with_optim(config, checkpoint_step_interval=2)
    unbroken = run(config)
    folders = set(config.output_dir.iterdir())

    def pull_the_plug(event):
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_event=pull_the_plug)
    (path,) = set(config.output_dir.iterdir()) - folders
    broken = RunFolder(path)
    assert broken.state() is RunState.INTERRUPTED
    assert adapter_names(tiny_bundle.dit) == ()
    run(config, resume=broken)
    assert [event.step for _, event in broken.events() if isinstance(event, StepDone)] == [1, 2, 3, 3, 4]
    assert losses(broken) == losses(unbroken)


def test_a_sample_between_two_steps_changes_no_loss(config, tiny_bundle, report, tmp_path):
    def go(between):
        folder = RunFolder.create(config.output_dir, config)
        found = []
        for event in train(config, folder, tiny_bundle, report):
            if isinstance(event, StepDone):
                found.append(event.loss)
                between()
            if isinstance(event, RunFinished):
                return found, folder.path / event.lora
        raise AssertionError

    expected, lora = go(lambda: None)
    request = SampleRequest(
        prompt="", start_frame=np.zeros((64, 64, 3), np.uint8), height=64, width=64, num_frames=5,
        num_inference_steps=1, loras=(LoraFile(path=lora),),
    )  # fmt: skip
    found, _ = go(lambda: list(sample(request, tiny_bundle, tmp_path / "between.mp4")))
    assert found == expected


def test_resuming_under_other_settings_is_refused_with_the_difference(config, run, tiny_bundle, report):
    folder = run(replace(config, optim=replace(config.optim, max_train_steps=1)))
    other = replace(config, lora=replace(config.lora, rank=8))
    with pytest.raises(ConfigError, match="lora.rank 4, now 8"):
        list(train(other, folder, tiny_bundle, report, resume=True))
    assert adapter_names(tiny_bundle.dit) == ()


def test_a_checkpoint_from_before_a_setting_existed_is_resumed(config, run, with_optim):
    folder = run(with_optim(config, max_train_steps=1))
    state = folder.path / "checkpoints/step-000001/state.json"
    written = json.loads(state.read_text())
    del written["config"]["model"]["base_precision"], written["config"]["model"]["keep_attention"]
    state.write_text(json.dumps(written))
    run(with_optim(config, max_train_steps=2), resume=folder)
    assert folder.state() is RunState.FINISHED
    assert folder.snapshot().step == 2


def test_a_run_is_made_longer_unless_that_changes_its_learning_rate(config, run, with_optim, tiny_bundle, report):
    folder = run(with_optim(config, max_train_steps=1))
    run(with_optim(config, max_train_steps=2), resume=folder)
    assert folder.snapshot().step == 2
    folder = run(with_optim(config, max_train_steps=1, lr_scheduler="cosine"))
    longer = with_optim(config, max_train_steps=2, lr_scheduler="cosine")
    with pytest.raises(ConfigError, match="optim.max_train_steps 1, now 2"):
        list(train(longer, folder, tiny_bundle, report, resume=True))


def test_a_damaged_checkpoint_is_passed_over(config, run, with_optim):
    config = with_optim(config, max_train_steps=2, checkpoint_step_interval=1)
    folder = run(config)
    damaged = folder.path / "checkpoints/step-000002/optim.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = losses(folder)
    run(config, resume=folder)
    steps = [event.step for _, event in folder.events() if isinstance(event, StepDone)]
    assert steps == [1, 2, 2]
    assert losses(folder) == before


def test_a_folder_that_is_no_checkpoint_is_left_alone(config, run, with_optim):
    folder = run(with_optim(config, max_train_steps=1))
    kept = folder.path / "checkpoints/step-1-kept"
    kept.mkdir()
    run(with_optim(config, max_train_steps=2, checkpoints_total_limit=1), resume=folder)
    assert sorted(path.name for path in kept.parent.iterdir()) == ["step-000002", kept.name]


def test_checkpoints_beyond_the_limit_are_deleted_oldest_first(config, run, with_optim):
    folder = run(with_optim(config, max_train_steps=3, checkpoint_step_interval=1, checkpoints_total_limit=2))
    assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert [e.step for _, e in folder.events() if isinstance(e, CheckpointSaved)] == [1, 2, 3]


def test_a_stopped_run_saves_the_lora_as_it_stood(config, run):
    on_event, should_stop = stop_after(1)
    folder = run(config, on_event=on_event, should_stop=should_stop)
    last = folder.events()[-1][1]
    assert (last.step, last.lora) == (1, "lora/pytorch_lora_weights.safetensors")
    assert isinstance(last, RunStopped)
    assert folder.snapshot().lora.is_file()


def test_a_resumed_run_that_is_stopped_while_caching_keeps_its_step_and_its_lora(config, run):
    on_event, should_stop = stop_after(1)
    folder = run(config, on_event=on_event, should_stop=should_stop)
    run(config, resume=folder, should_stop=lambda: True)
    assert folder.events()[-1][1] == RunStopped(step=1, lora="")
    assert folder.snapshot().lora == folder.path / "lora/pytorch_lora_weights.safetensors"


def test_a_loss_that_is_not_finite_names_step_and_clips_and_changes_nothing(config, tiny_bundle, report, monkeypatch):
    config = replace(config, data=replace(config.data, train_batch_size=4))
    real = learning.clip_losses
    states = []

    def poisoned(dit, *inputs, **options):
        states.append({n: p.detach().clone() for n, p in dit.named_parameters() if p.requires_grad})
        losses = real(dit, *inputs, **options)
        return losses * torch.tensor([1, 1, float("nan"), 1]) if len(states) == 2 else losses

    monkeypatch.setattr(learning, "clip_losses", poisoned)
    folder = RunFolder.create(config.output_dir, config)
    events = train(config, folder, tiny_bundle, report)
    while not isinstance(next(events), StepDone):
        pass
    after_first = {n: p.detach().clone() for n, p in tiny_bundle.dit.named_parameters() if p.requires_grad}
    with pytest.raises(StudioError, match=r"loss at step 2 is nan; clips: shape_\d\. The step was not taken"):
        next(events)
    assert all(torch.equal(states[1][n], after_first[n]) for n in after_first)
    assert adapter_names(tiny_bundle.dit) == ()


def test_samples_are_rendered_under_way_and_at_the_end(config, run, with_validation, with_optim):
    config = with_optim(with_validation(config, num_pairs=2, step_interval=2), max_train_steps=3)
    folder = run(config)
    saved = [event for _, event in folder.events() if isinstance(event, SampleSaved)]
    assert [event.step for event in saved] == [2, 2, 3, 3]
    assert saved[0].path == "samples/step-000002-shape_0.mp4"
    assert saved[0].prompt.endswith("hops")
    assert all((folder.path / event.path).stat().st_size > 0 for event in saved)


def test_warm_up_is_linear_and_gradient_checkpointing_changes_no_loss(config, run, with_optim):
    config = with_optim(config, max_train_steps=3, lr_warmup_steps=2)
    plain = run(config)
    checkpointed = run(replace(config, model=replace(config.model, gradient_checkpointing=True)))
    rates = [event.learning_rate for _, event in plain.events() if isinstance(event, StepDone)]
    assert rates == [0.0005, 0.001, 0.001]
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-5)


def test_without_max_train_steps_the_epochs_decide(config, run, with_optim):
    folder = run(with_optim(config, max_train_steps=None, num_train_epochs=2))
    assert folder.snapshot().step == 4, "4 clips in batches of 2, twice"


def test_a_model_in_training_is_not_trained_twice(config, tiny_bundle, report):
    add_lora(tiny_bundle.dit, config.lora, seed=0)
    try:
        with pytest.raises(JobAlreadyRunning):
            list(train(config, RunFolder.create(config.output_dir, config), tiny_bundle, report))
        assert TRAINING in adapter_names(tiny_bundle.dit), "the other run's adapter stays on"
    finally:
        remove_lora(tiny_bundle.dit, TRAINING)


def test_a_run_that_cannot_begin_leaves_no_adapter(config, tiny_bundle, report, with_optim):
    impossible = with_optim(config, learning_rate=-1.0)
    with pytest.raises(ValueError, match="learning rate"):
        list(train(impossible, RunFolder.create(config.output_dir, config), tiny_bundle, report))
    assert adapter_names(tiny_bundle.dit) == ()


def test_nothing_ready_is_said_before_anything_is_loaded(config, tiny_bundle, report):
    with pytest.raises(DatasetError, match="No clip is ready"):
        next(train(config, RunFolder.create(config.output_dir, config), tiny_bundle, replace(report, pairs=())))
