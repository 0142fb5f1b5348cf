"""A pipeline from the Hugging Face Hub, without downloading its weights."""

from collections import Counter
from pathlib import Path

import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError

from vramtune.catalog.dtypes import stored_dtypes
from vramtune.catalog.entries import ENTRIES
from vramtune.catalog.folder import CONFIG, build, folder_dtypes
from vramtune.catalog.limits import check_files
from vramtune.errors import UsageError

CONFIGURATIONS = ["*.json", "*.txt", "*.model"]  # ... and what tokenizers read


def load_hub(repo_id: str) -> DiffusionPipeline:
    """The pipeline of that repository; files in the Hub's cache are not requested again."""
    try:
        folder = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=CONFIGURATIONS))
        check_files(folder)
        dtypes = folder_dtypes(folder)
        missing = {config.parent.name for config in folder.glob(f"*/{CONFIG}")} - dtypes.keys()
        if missing:
            dtypes |= _remote_dtypes(repo_id, components=missing)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(_failure(repo_id, error)) from error
    return build(folder, dtypes=dtypes)


def _remote_dtypes(repo_id: str, *, components: set[str]) -> dict[str, torch.dtype]:
    """The dtypes in the headers of the repository's safetensors files."""
    file_names = [file.rfilename for file in huggingface_hub.model_info(repo_id).siblings or ()]
    return stored_dtypes(
        [name for name in file_names if name.partition("/")[0] in components],
        counts_of=lambda name: Counter(huggingface_hub.parse_safetensors_file_metadata(repo_id, name).parameter_count),
    )


def _failure(repo_id: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0] or type(error).__name__
    known = ", ".join(entry.name for entry in ENTRIES)
    if isinstance(error, HfHubHTTPError):
        return f"The Hugging Face Hub refused {repo_id!r}: {reason}. These need no network: {known}."
    return (
        f"{repo_id!r} is not a local folder, and the Hugging Face Hub cannot be reached: {reason}. "
        f"These need no network: {known}."
    )
