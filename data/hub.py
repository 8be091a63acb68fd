"""Names of models into folders: a local folder is itself, anything else is fetched from the Hugging Face hub."""

import errno
import re
import sys
from pathlib import Path

from data.errors import RunError, UserError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SMALL_FILES = ["*.json", "*.model", "*.spiece", "*.txt"]  # configuration and every kind of vocabulary
ANSWER_SECONDS = 3


def fetch_folder(name, weights=True):
    """The local folder of the model `name`, downloaded on first use and cached by the hub's own library.

    Args:
        name: an existing folder, or a hub id such as `skt/kobert-base-v1`.
        weights: also fetch the weights (safetensors if there are any, else PyTorch's own format).

    Raises:
        UserError: neither a folder nor an id the hub knows.
        RunError: the hub does not answer within seconds and the cache does not have the model, or it is gated.
    """
    if Path(name).is_dir():
        return Path(name)
    if not HUB_ID.fullmatch(str(name)) or Path(name).suffix in (".pt", ".bin", ".model", ".spiece"):
        raise UserError(f"{name}: no such file or folder")

    from huggingface_hub import HfApi, snapshot_download  # half a second, and most runs need no hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()

    # The library raises whatever its HTTP client of the day raises, so everything is caught here.
    failure = None
    try:
        HfApi().model_info(name, timeout=ANSWER_SECONDS)  # snapshot_download has no time limit
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such folder, and no such public model on the Hugging Face hub") from None
    except Exception as error:
        failure = error

    def fetch(patterns):
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=failure is not None))

    try:
        folder = fetch(SMALL_FILES + ["*.safetensors"] * weights)
        if weights and not any(folder.rglob("*.safetensors")):
            folder = fetch(SMALL_FILES + ["*pytorch_model*.bin"])
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # not the hub's fault
            raise
        if isinstance(error, GatedRepoError):
            raise RunError(
                f"{name}: the Hugging Face hub hands this model out only to those whom its owner lets in; ask for "
                "access on its page, then log in with `hf auth login`"
            ) from None
        raise RunError(
            f"{name}: no such folder here, and the Hugging Face hub cannot be reached for a model of that name "
            f"({type(failure or error).__name__}); on a machine that reaches it run "
            f"`hf download {name} --local-dir FOLDER`, copy FOLDER here and give it in place of the name"
        ) from None
    return folder
