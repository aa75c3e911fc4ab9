"""SimpleTuner's keys for the optimiser: each one changes what it names, by the formula that it is known for."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studio.core.config import NoiseConfig, OptimConfig
from studio.core.data.dataset import TrainingItem
from studio.core.data.encode import PairEncoder
from studio.core.errors import AdapterError
from studio.core.model.lora import lora_state
from studio.core.simpletuner import read_project
from studio.core.train.learner import Learner, make_encoders
from studio.core.train.loop import batches_for_step, count_steps
from studio.core.train.schedule import learning_rate
from studio.core.train.step import Batch, draw_noise
from studio.core.types import Severity


@pytest.fixture
def learner(config, tiny_bundle):
    """learner(config): a context that gives a Learner with an encoder, and takes its adapter off."""

    @contextmanager
    def build(config=config):
        encoder = PairEncoder(config.data, make_encoders(tiny_bundle), config.output_dir / "cache")
        built = Learner(config, tiny_bundle, encoder, num_steps=10)
        try:
            yield built
        finally:
            built.close()

    return build


@pytest.fixture
def items(report):
    return tuple(TrainingItem(pair=pair, caption=pair.captions[0]) for pair in report.pairs)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1, 1, 1, 1)])
def test_accumulated_batches_are_one_large_batch(learner, items, tiny_bundle, sizes):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = [items[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    found = []
    for batches in ([items], parts):
        with learner() as one:
            done = one.learn(1, batches, one.load(1, batches))
            found.append((done, lora_state(tiny_bundle.dit)))
    (whole, weights), (accumulated, other) = found
    assert accumulated.clips == whole.clips
    assert accumulated.clip_losses == pytest.approx(whole.clip_losses, rel=1e-5)
    assert accumulated.loss == pytest.approx(whole.loss, rel=1e-5)
    assert accumulated.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_step_takes_the_next_batches_and_an_epoch_has_fewer_steps(config, report, with_optim, run):
    from studio.core.data.dataset import BatchSampler

    config = with_optim(config, gradient_accumulation_steps=3, max_train_steps=None, num_train_epochs=2)
    data = replace(config.data, train_batch_size=1)
    sampler = BatchSampler(report.pairs, data, seed=7)
    assert count_steps(replace(config, data=data), sampler) == 3, "8 batches, 3 a step"
    taken = [batch for step in (1, 2) for batch in batches_for_step(sampler, step, 3)]
    assert taken == [sampler.batch_for_step(number) for number in range(1, 7)]
    folder = run(with_optim(config, gradient_accumulation_steps=2, max_train_steps=1, num_train_epochs=1))
    snapshot = folder.snapshot()
    assert "an effective batch of 4 clips" in snapshot.started.notices[0]
    assert sorted(snapshot.steps[0].clips) == [f"clips/shape_{i}" for i in range(4)]


def test_the_moving_average_is_kept_resumed_and_what_the_run_leaves(config, run, with_optim):
    config = with_optim(config, use_ema=True, ema_decay=0.2, checkpoint_step_interval=1)
    folder = run(with_optim(config, max_train_steps=2))
    run(config, resume=folder)
    average = None
    for step in range(1, 5):
        checkpoint = folder.path / f"checkpoints/step-{step:06d}"
        now = load_file(checkpoint / "lora.safetensors")
        # diffusers' EMAModel: the first step counts whole, then min(decay, (1 + t) / (10 + t)).
        decay = 0 if average is None else min(0.2, step / (9 + step))
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now} if average else now
        for name, tensor in load_file(checkpoint / "ema.safetensors").items():
            torch.testing.assert_close(tensor, average[name])
    left = load_file(folder.path / "lora/pytorch_lora_weights.safetensors")
    kept = load_file(checkpoint / "ema.safetensors")
    assert all(torch.equal(left[f"transformer.{name}"], tensor) for name, tensor in kept.items())
    assert any(not torch.equal(left[f"transformer.{name}"], tensor) for name, tensor in now.items())


def test_dropped_captions_are_the_empty_caption_and_as_many_as_asked_for(learner, items, config, with_optim):
    encoder = None
    with learner(with_optim(config, caption_dropout=0.999)) as one:
        encoder = one._encoder
        (batch,) = one.load(1, [items[:2]])
        empty = encoder.text("")
        assert batch.text_mask.sum(1).tolist() == [len(empty)] * 2
        assert torch.equal(batch.text[0, 0, : len(empty)], empty)
    with learner(with_optim(config, caption_dropout=0.3)) as one:
        drawn = [one._caption(items[0], step, position) for step in range(500) for position in range(2)]
    assert 0.25 < drawn.count("") / len(drawn) < 0.35
    assert set(drawn) == {"", items[0].caption}


FALLING = OptimConfig(learning_rate=1.0, lr_warmup_steps=2, lr_end=0.1)


@pytest.mark.parametrize(
    ("optim", "share"),
    [
        (replace(FALLING, lr_scheduler="linear"), lambda p: 1 - p),
        (replace(FALLING, lr_scheduler="polynomial", lr_power=2.0), lambda p: (1 - p) ** 2),
        (replace(FALLING, lr_scheduler="cosine"), lambda p: 0.5 * (1 + math.cos(math.pi * p))),
        (
            replace(FALLING, lr_scheduler="cosine_with_restarts", lr_num_cycles=2),
            lambda p: 0.5 * (1 + math.cos(math.pi * (2 * p % 1))),
        ),
    ],
)
def test_a_rate_warms_up_and_falls_to_its_end(optim, share):
    rate = learning_rate(optim, 11)
    assert [rate(step) for step in (1, 2)] == pytest.approx([0.5, 1.0])
    progress = [(step - 2) / 10 for step in range(3, 12)]
    assert [rate(step) for step in range(3, 12)] == pytest.approx([0.1 + 0.9 * share(p) for p in progress], abs=1e-6)


def test_a_constant_rate_is_constant_and_one_with_warm_up_warms_up():
    constant = learning_rate(replace(FALLING, lr_scheduler="constant"), 10)
    assert {constant(step) for step in range(1, 11)} == {1.0}
    warm = learning_rate(replace(FALLING, lr_scheduler="constant_with_warmup"), 10)
    assert [warm(step) for step in (1, 2, 3, 10)] == [0.5, 1.0, 1.0, 1.0]


def test_a_lora_to_begin_with_gives_its_weights_rank_and_alpha(config, run, with_optim, tmp_path):
    first = run(replace(config, lora=replace(config.lora, rank=3, alpha=6.0)))
    file = tmp_path / "begin.safetensors"
    given = first.path / "lora/pytorch_lora_weights.safetensors"
    file.write_bytes(given.read_bytes())
    config = with_optim(config, learning_rate=1e-12, max_train_steps=1, weight_decay=0.0)
    second = run(replace(config, lora=replace(config.lora, rank=8, init_from=file)))
    assert (second.config().lora.rank, second.config().lora.alpha) == (3, 3.0)
    started = second.snapshot().started
    assert started.notices == ("Training begins from begin.safetensors: rank 3, alpha 3.",)
    before, after = load_file(file), load_file(second.path / "lora/pytorch_lora_weights.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    file.unlink()
    longer = with_optim(second.config(), max_train_steps=2)
    assert run(longer, resume=second).snapshot().step == 2, "the checkpoint has all that a resumed run needs"


def test_a_file_that_is_no_lora_is_refused_before_a_run_is_made(config, run, tmp_path):
    file = tmp_path / "begin.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match=r"begin\.safetensors"):
        run(replace(config, lora=replace(config.lora, init_from=file)))
    assert not list(config.output_dir.glob("*/config.json"))


def test_noise_levels_are_uniform_or_sigmoid_before_the_shift():
    nothing = torch.zeros(0)
    batch = Batch(latents=torch.zeros(4000, 1, 1, 1, 1), start_latent=nothing, text=nothing, text_mask=nothing)

    def levels(**options):
        generators = [torch.Generator().manual_seed(i) for i in range(4000)]
        return draw_noise(batch, generators=generators, **options)[0].sort().values

    uniform = levels(shift=1.0)
    assert (uniform - torch.linspace(0, 1, 4000)).abs().max() < 0.03
    torch.testing.assert_close(levels(shift=12.0), 12 * uniform / (1 + 11 * uniform))
    normal = levels(shift=1.0, sigmoid_scale=0.5).logit() / 0.5
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05


def test_the_shift_and_the_optimiser_are_those_of_the_configuration(config, run, with_optim):
    folder = run(
        replace(
            with_optim(config, max_train_steps=1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.1),
            noise=NoiseConfig(shift=1.0),
        )
    )
    (group,) = json.loads((folder.path / "checkpoints/step-000001/state.json").read_text())["param_groups"]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ([0.8, 0.95], 1e-6, 0.1)
    other = run(with_optim(config, max_train_steps=1))
    assert folder.snapshot().losses != other.snapshot().losses, "another shift, other levels"


def test_gaussian_is_another_start(config, run, with_optim):
    config = with_optim(config, max_train_steps=1, learning_rate=1e-12)
    normal, gaussian = (run(replace(config, lora=replace(config.lora, start=s))) for s in ("default", "gaussian"))
    first, second = (load_file(f.path / "checkpoints/step-000001/lora.safetensors") for f in (normal, gaussian))
    name = next(name for name in first if name.endswith("lora_A.weight"))
    assert second[name].std().item() == pytest.approx(1 / 4, rel=0.2), "peft: 1 / rank"
    assert not torch.equal(first[name], second[name])


KEYS = {
    "gradient_accumulation_steps": 4, "lr_scheduler": "polynomial", "lr_warmup_steps": 5, "lr_end": 1e-6,
    "lr_power": 0.8, "caption_dropout_probability": 0.1, "use_ema": True, "ema_decay": 0.99, "adam_beta1": 0.8,
    "adam_beta2": 0.95, "adam_epsilon": 1e-7, "adam_weight_decay": 0.05, "lora_init_type": "gaussian",
    "init_lora": "begin.safetensors", "flow_schedule_shift": 3, "flow_sigmoid_scale": 1.5, "eval_steps_interval": 20,
    "eval_loss_disable": True, "checkpointing_steps": 50,
}  # fmt: skip


def test_the_keys_are_read_from_config_json(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "multidatabackend.json").write_text(json.dumps([{"id": "a", "instance_data_dir": "clips"}]))
    (tmp_path / "config.json").write_text(json.dumps({"model_family": "longcat_video", **KEYS}))
    project = read_project(tmp_path)
    assert not [i for i in project.issues if i.subject in KEYS and i.severity is not Severity.NOTICE]
    optim, lora, run = project.run.optim, project.run.lora, project.run
    assert (optim.gradient_accumulation_steps, optim.lr_scheduler, optim.lr_warmup_steps) == (4, "polynomial", 5)
    assert (optim.lr_end, optim.lr_power, optim.caption_dropout) == (1e-6, 0.8, 0.1)
    assert (optim.use_ema, optim.ema_decay, optim.checkpoint_step_interval) == (True, 0.99, 50)
    assert (optim.adam_beta1, optim.adam_beta2, optim.adam_epsilon, optim.weight_decay) == (0.8, 0.95, 1e-7, 0.05)
    assert (lora.start, lora.init_from) == ("gaussian", tmp_path / "begin.safetensors")
    assert (run.noise.shift, run.noise.sigmoid_scale) == (3.0, 1.5)
    assert (run.validation.eval_step_interval, run.validation.eval_loss_disabled) == (20, True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lr_end": 1e-6}, "lr_end does nothing with lr_scheduler constant_with_warmup"),
        ({"ema_decay": 0.9}, "ema_decay does nothing without use_ema"),
        ({"flow_schedule_shift": 0}, "taken as 1: no shift"),
        ({"flow_use_beta_schedule": True}, "noise levels are uniform"),
        ({"lora_init_type": "pissa"}, 'one of "default", "gaussian"'),
        ({"adam_beta1": 1.0}, "below 1"),
    ],
)
def test_keys_that_do_nothing_or_cannot_be_done_are_said(tmp_path, keys, said):
    (tmp_path / "clips").mkdir()
    (tmp_path / "multidatabackend.json").write_text(json.dumps([{"id": "a", "instance_data_dir": "clips"}]))
    (tmp_path / "config.json").write_text(json.dumps({"model_family": "longcat_video", **keys}))
    assert any(said in issue.message for issue in read_project(tmp_path).issues)
