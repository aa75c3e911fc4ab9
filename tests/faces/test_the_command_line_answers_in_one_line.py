"""The command line: what is wrong is said before work begins, an error in one line."""

import json
import os
import shutil
import sys

import pytest
import torch

from studio.cli import main


@pytest.fixture
def change(project, tmp_path):
    """change(**settings): the path of a config.json of sound clips, with these settings."""

    def write(**settings):
        folder = shutil.copytree(project, tmp_path / "project")
        config = folder / "config.json"
        fields = json.loads(config.read_text()) | {"output_dir": str(tmp_path / "runs")} | settings
        config.write_text(json.dumps(fields))
        return config

    return write


def test_nothing_to_resume_is_an_error_with_its_remedy(change, capsys):
    assert main(["train", "--config", str(change()), "--resume"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("There is no unfinished run of this dataset in ")
    assert error.endswith("Leave out --resume.")


def test_what_a_configuration_says_in_vain_is_warned_of_before_training(change, capsys):
    main(["train", "--config", str(change(lora_rnk=8)), "--resume"])
    shown = capsys.readouterr().out
    assert "lora_rnk is not a known key; it has no effect. Did you mean lora_rank?" in shown
    assert "is taken" not in shown, "notices are left to the check"


def test_a_mended_copy_is_ready_and_the_dataset_is_as_it_was(change, tmp_path, capsys):
    folder = change().parent
    (folder / "start_frames" / "shape_1.png").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["check", str(folder)]) == 1
    assert main(["mend", str(folder), "--start-frames", "--into", str(tmp_path / "mended")]) == 0
    assert main(["check", str(tmp_path / "mended"), "--json"]) == 0
    assert '"ready": 4' in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_report_is_a_page_that_overwrites_nothing(project, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["check", str(project), "--html", str(page)]) == 0
    assert "The report is in" in capsys.readouterr().out
    written = page.read_bytes()
    assert written.startswith(b"<!DOCTYPE html>")
    assert main(["check", str(project), "--html", str(page)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert page.read_bytes() == written
    assert main(["check", str(project), "--html", str(tmp_path / ("a" * 300 + ".html"))]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are always text")
def test_a_name_that_is_no_text_is_reported_all_the_same(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    assert main(["check", str(folder)]) == 1
    assert "caf\\udce9" in capsys.readouterr().out
    assert main(["check", str(folder), "--html", str(tmp_path / "report.html")]) == 1
    assert "caf\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_dataset_without_hope_is_offered_no_mend_and_said_so(tmp_path, capsys):
    assert main(["mend", str(tmp_path)]) == 1
    assert "No mend is offered" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU blocks are swapped")
def test_a_sample_in_little_memory_says_what_does_nothing_on_this_device(project, tmp_path, capsys):
    image, out = project / "start_frames" / "shape_0.png", tmp_path / "video.mp4"
    arguments = ["sample", "--image", str(image), "--prompt", "a red circle hops", "--out", str(out)]
    small = ["--size", "64x64", "--frames", "5", "--steps", "1", "--precision", "int8-quanto", "--vae-tiling"]
    assert main([*arguments, *small, "--swap", "4"]) == 0
    assert "musubi_blocks_to_swap does nothing here" in capsys.readouterr().err
    assert out.exists()
    assert main([*arguments[:-1], str(tmp_path / "other.mp4"), "--swap", "-1"]) == 1
    assert capsys.readouterr().err.startswith("--swap is -1.")


def test_fit_prints_what_a_step_of_each_size_takes(change, capsys):
    assert main(["fit", str(change(train_batch_size=3))]) == 0
    heading, *rows, verdict = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["Size", "Clips", "Batch"]
    assert sorted(row.split()[:4] for row in rows) == [["9f", "64x64", "1", "1"], ["9f", "64x64", "3", "3"]]
    assert verdict == "Memory is measured on GPUs only."
