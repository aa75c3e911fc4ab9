"""The two LoRAs that are published beside the checkpoint: for few steps, and for refinement."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from studio.core.assets import TINY, asset_path
from studio.core.config import PUBLISHED_MODEL, hub_id_of
from studio.core.errors import CheckpointError

DISTILLED_LORA = "lora/cfg_step_lora.safetensors"
"""16 steps without guidance; 2.5 GB."""
REFINEMENT_LORA = "lora/refinement_lora.safetensors"
"""720p from 480p; 3.2 GB."""


def published_lora(source: str, name: str) -> Path:
    """The file of a LoRA in a checkpoint: in its folder, or downloaded once from the hub.

    Raises CheckpointError.
    """
    if source == TINY or Path(source).is_dir():
        file = (asset_path(TINY) if source == TINY else Path(source)) / name
        if not file.is_file():
            raise CheckpointError(
                f"The checkpoint {source} has no {name}, which this way of sampling needs.",
                f"Copy {name} of {PUBLISHED_MODEL} into its folder, or sample without.",
            )
        return file
    repository = hub_id_of(source)
    try:
        return Path(hf_hub_download(repository, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} of {repository}, which this way of sampling needs, did not come from the hub.",
            "Check the network and that the checkpoint has it, or sample without.",
        ) from error
