"""What the form of the room Sample asks for, without a browser."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.core.config import ModelConfig
from studio.core.errors import StudioError
from studio.core.model.lora import LoraFile
from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest
from studio.core.sample.video import read_clip, write_video
from studio.ui.sample_asked import Asked, known_model, requests_of
from studio.ui.sample_fields import MOST_LORAS, fields_of, lora_files
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.words import words
from tests.sample.test_queue_and_gallery import same

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 48, 96, 3), np.uint8)
NAMES = [field.name for field in fields(Asked) if field.name != "loras"]
EMPTY = dict.fromkeys(NAMES) | {
    "mode": "picture", "comparison": "nothing", "way": "standard", "refinement": "none", "attention": "auto",
}  # fmt: skip


@pytest.fixture
def workshop(tmp_path):
    return Workshop(AppSettings(model=ModelConfig(source="tiny", device="cpu"), output_dir=tmp_path / "runs"))


@pytest.fixture
def lora(workshop, tmp_path):
    """A LoRA that someone uploaded."""
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, tmp_path / "mine.safetensors")
    return workshop.desk().keep_lora(tmp_path / "mine.safetensors")


@pytest.fixture
def ask(workshop):
    """ask(values): what the form asks for with these in its fields."""

    def ask(values):
        known = known_model(workshop, workshop.model)
        files = lora_files(workshop, words("en"))
        return requests_of(Asked.of(tuple(values)), known, files, lambda path: read_clip(Path(path)), words("en"))

    return ask


def values(*loras, **changes):
    rows = [*loras, *[("", 1)] * (MOST_LORAS - len(loras))]
    return [*(EMPTY | changes).values(), *[part for row in rows for part in row]]


def test_every_way_of_sampling_can_be_asked_for_and_its_settings_come_back(ask, workshop, lora):
    plain = SampleRequest(prompt="it moves")
    for request in (
        replace(plain, start_frame=PIXELS[0], seed=7, loras=(LoraFile(path=lora, strength=0.5),)),
        replace(plain, negative_prompt=PUBLISHED_NEGATIVE_PROMPT, guidance_scale=3.5, attention="sparse", sparsity=0.5),
        replace(plain, clip=PIXELS, clip_fps=30.0, num_frames=17, num_segments=2, later_prompts=("then it stops",)),
        replace(plain, start_frame=PIXELS[0], num_segments=3, later_prompts=("two", "three"), attention="dense"),
        replace(plain, start_frame=PIXELS[0], schedule="distilled", refinement="space and time", height=64, width=64),
    ):
        updates = fields_of(workshop, request, words("en"))[2 : 2 + len(NAMES) + 2 * MOST_LORAS]
        filled = [update.get("value") if isinstance(update, dict) else update for update in updates]
        (again,) = ask(filled)
        assert again.preview_steps > 0
        same(replace(again, preview_steps=0), request)


@pytest.mark.parametrize(("here", "asked", "chosen"), [(4, 4, 4), (4, 2, 2), (3, 4, 2), (0, 4, 1), (8, 1, 1)])
def test_the_number_of_gpus_comes_back_as_far_as_they_are_here(workshop, here, asked, chosen):
    at = NAMES.index("gpus") + 2
    own = replace(workshop.settings, num_gpus=here)
    assert fields_of(Workshop(own), SampleRequest(prompt="it moves"), words("en"), asked)[at] == chosen


def test_a_clip_is_read_and_its_end_is_gone_on_from(ask, tmp_path):
    write_video(tmp_path / "clip.mp4", PIXELS, 15.0, {})
    (request,) = ask(values(mode="clip", clip=str(tmp_path / "clip.mp4"), prompt="on", segments=1))
    assert (request.clip.shape, request.clip_fps, request.start_frame) == (PIXELS.shape, 15.0, None)


def test_what_is_compared_is_a_group_of_one_seed(ask, lora):
    asked = {"frame": PIXELS[0], "prompt": "it moves", "seed": 3}
    chosen = (lora.name, 0.8)
    pair = ask(values(chosen, **asked, comparison="lora"))
    assert [(one.label, len(one.loras), one.seed) for one in pair] == [("without LoRA", 0, 3), ("with LoRA", 1, 3)]
    for text in ("0, 0.5, 1", "0,0.5,1", "0; 0,5; 1", " 0 0.5  1 "):
        sweep = ask(values(chosen, **asked, comparison="strengths", strengths=text))
        assert [one.loras[0].strength for one in sweep] == [0, 0.5, 1]
        assert len({one.group for one in sweep} - {""}) == 1
    both = ask(values(**asked, comparison="attention"))
    assert [one.attention for one in both] == ["dense", "sparse"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "x"}, "There is no start frame."),
        ({"mode": "clip", "prompt": "x"}, "There is no clip to go on from."),
        ({"frame": PIXELS[0], "prompt": "  "}, "There is no prompt."),
        ({"frame": PIXELS[0], "prompt": "x", "comparison": "lora"}, "Choose a LoRA."),
        ({"frame": PIXELS[0], "prompt": "x", "comparison": "strengths", "strengths": "1"}, "2 to 8 numbers"),
        ({"frame": PIXELS[0], "prompt": "x", "height": 60, "width": 100}, "Use 64x96."),
        ({"frame": PIXELS[0], "prompt": "x", "height": 64}, "Give height and width, or neither."),
        ({"frame": PIXELS[0], "prompt": "x", "frames": 10}, "Use 9 or 13."),
    ],
)
def test_what_cannot_be_rendered_is_said_before_it_is_queued(ask, workshop, changes, said):
    with pytest.raises(StudioError, match=said):
        ask(values(**changes))
    assert workshop.desk().snapshot().entries == ()


def test_a_lora_that_is_not_in_the_list_is_no_path(ask, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(StudioError, match="not one of the list"):
        ask(values((str(tmp_path / "other.safetensors"), 1), frame=PIXELS[0], prompt="x"))
