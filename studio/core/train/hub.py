"""The LoRA of a run on the Hugging Face hub: with its model card and a sample, private unless asked otherwise.

<run>/hub.json    what became of the last upload
"""

from __future__ import annotations

import json
import logging
import shlex
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import get_token

from studio.core.errors import StudioError, UploadError
from studio.core.model.lora import LORA_FILE
from studio.core.runlog import RunFolder, RunState
from studio.core.train.card import write_card

FILE = "hub.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What became of an upload."""

    time: float
    """Unix time in seconds."""
    name: str
    """The repository, with its owner where that is known."""
    url: str = ""
    """Empty: it failed."""
    is_private: bool = True
    message: str = ""
    """Why it failed, and in `remedy` what to do."""
    remedy: str = ""


def default_name(run: RunFolder) -> str:
    """The repository of a run that was given none."""
    return run.config().sharing.hub_model_id or f"longcat-video-lora-{run.name}"


def upload_command(run: RunFolder, name: str) -> str:
    """What to type to try again."""
    return shlex.join(
        ("python", "-m", "studio", "runs", "upload", run.name, "--name", name, "--runs", str(run.path.parent))
    )


def upload_run(run: RunFolder, name: str, *, is_private: bool = True) -> Upload:
    """Brings the LoRA, its card and its newest sample to the repository `name` (`owner/name`, or a name of one's own)
    and writes down what became of it. One that is there keeps its history; with `is_private` it must be private.

    Raises:
        AdapterError: the run has no LoRA yet.
        MediaError: its sample cannot be read.
        UploadError: no token, no network, no right, no such owner, or the repository holds other things, or is public.
    """
    try:
        done = _bring(run, name, is_private)
    except StudioError as error:
        _write_down(run, Upload(time=time.time(), name=name, message=error.message, remedy=error.remedy))
        raise
    _write_down(run, done)
    return done


def upload_finished(run: RunFolder) -> None:
    """Uploads a run if it has finished; what goes wrong is written down, and ends nothing."""
    if run.state() is not RunState.FINISHED:
        return
    try:
        upload_run(run, default_name(run))
    except StudioError as error:
        logger.warning("run=%s not uploaded: %s %s", run.name, error.message, error.remedy)


def last_upload(run: RunFolder) -> Upload | None:
    """What became of the last upload; None before the first."""
    try:
        return Upload(**json.loads((run.path / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def upload_files(run: RunFolder, place: Path) -> dict[str, Path]:
    """What is uploaded, by its name there; what is made for it lies in the empty folder `place`.

    Raises AdapterError, ConfigError or MediaError.
    """
    files = {file.name: file for file in write_card(run, place)}
    lora = run.snapshot().lora
    assert lora is not None
    return {LORA_FILE: lora, **files}


def _bring(run: RunFolder, name: str, is_private: bool) -> Upload:
    try:
        with tempfile.TemporaryDirectory() as place:
            return _upload(run, name, upload_files(run, Path(place)), is_private)
    except OSError as error:
        raise UploadError(
            f"The model card cannot be made: {error.strerror or error}.", "Check that the disk is not full."
        ) from error


def _upload(run: RunFolder, name: str, files: dict[str, Path], is_private: bool) -> Upload:
    again = f"then: {upload_command(run, name)}"
    if not get_token():
        raise UploadError(
            "There is no token of the Hugging Face hub on this machine.", f"Log in with `hf auth login`, {again}"
        )
    api = HfApi()
    try:
        there = api.create_repo(name, private=is_private, exist_ok=True).repo_id
        names = set(api.list_repo_files(there)) - {".gitattributes"}
        if names and LORA_FILE not in names:
            raise UploadError(
                f"The repository {there} holds something else, such as {min(names)}.",
                "Give another name; nothing is overwritten.",
            )
        private = bool(api.repo_info(there).private)
        if is_private and not private:
            raise UploadError(
                f"Everyone can see the repository {there}, and the upload was to be private.",
                f"Give another name, or let everyone see it: {upload_command(run, name)} --public",
            )
        operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()]
        api.create_commit(there, operations, commit_message=f"LoRA of the run {run.name}")
    except LocalTokenNotFoundError as error:
        raise UploadError("The hub knows no token of this machine.", f"Log in with `hf auth login`, {again}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = error.server_message or error.response.reason_phrase or "no reason was given"
        raise UploadError(
            f"The hub refused the upload to {name} (status {status}): {' '.join(what.split())[:300]}",
            f"Check the name and that the token may write (`hf auth whoami`), {again}",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        what = " ".join(str(error).split())[:300]
        raise UploadError(f"The hub takes no upload to {name}: {what}", f"Give another name, {again}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise UploadError(
            f"The hub cannot be reached: {' '.join(str(error).split())[:200] or type(error).__name__}.",
            f"Check the network, {again}",
        ) from error
    return Upload(time=time.time(), name=there, url=f"{api.endpoint}/{there}", is_private=private)


def _write_down(run: RunFolder, upload: Upload) -> None:
    try:
        (run.path / FILE).write_text(json.dumps(asdict(upload), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("run=%s: what became of its upload cannot be written down: %s", run.name, error)
