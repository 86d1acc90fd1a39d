"""From a folder name or a Hub id to a local folder that holds a model."""

from __future__ import annotations

import re
from pathlib import Path

from paceline.core.errors import CheckpointError

# Everything a model and its tokenizer need, at the top of the repository: other formats of the same weights are not fetched.
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def locate(model: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: itself if it is one, else a snapshot from the Hub (its cache alone when `HF_HUB_OFFLINE=1`).

    Args:
        model: a folder, or a Hub id such as `org/name`.
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: if there is neither, naming the model and what to do.
    """
    folder = Path(model).expanduser()
    if model != "" and folder.is_dir():  # an empty name is not the current folder
        return folder
    if folder.is_file():
        raise CheckpointError(f"{str(model)!r} is a file; give the folder that holds config.json and the *.safetensors files")
    if isinstance(model, Path) or not HUB_ID.fullmatch(model):
        raise CheckpointError(f"no folder {str(model)!r}, and it cannot be a Hub id (they read org/name); check the path")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except errors.GatedRepoError:
        reason = "access to it is gated; accept its terms on its page and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}; check the name"
    except errors.RepositoryNotFoundError:
        reason = "no folder and no model on the Hub has this name; check the spelling, or log in with `hf auth login` if it is private"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            reason = "it is not in the local cache and HF_HUB_OFFLINE=1 forbids fetching it; unset that, or give a local folder"
        else:
            reason = "it is not in the local cache and the Hub cannot be reached; check the network, or give a local folder"
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = f"fetching it from the Hub failed: {str(error).splitlines()[0]}"
    raise CheckpointError(f"cannot find model {model!r}: {reason}")
