"""What a run takes from the Hugging Face hub: one place asks it, and one message says what it did not give.

Everything comes from the local cache where the hub cannot be reached. Callers look at local files first: no function
here is called for something that lies in a folder. The hub's client is imported when it is needed.
"""

import re
from pathlib import Path
from typing import Any

from impart.errors import InputError, reason_of

OTHER_WEIGHTS = ["*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "original/*", "consolidated*"]
TIMEOUT = 10  # seconds for a question about what there is


def is_hub_id(text: str) -> bool:
    """Whether the text has the form of a model's or data set's id: owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def fetch_model(repository: str) -> Path:
    """The folder of a model's snapshot in the local cache: safetensors if it has them, else .bin."""
    from huggingface_hub import HfApi, snapshot_download

    ignore, files, unanswered = list(OTHER_WEIGHTS), [], None
    try:
        files = HfApi().list_repo_files(repository)
    except Exception as error:  # no network, offline, unknown, gated: a type each, some of them the HTTP client's own
        unanswered = error
    if any(file.endswith(".safetensors") for file in files):
        ignore.append("*.bin")
    try:
        return Path(snapshot_download(repository, ignore_patterns=ignore, local_files_only=not files))
    except Exception as error:
        remedy = "check the name, the network and `hf auth login` for gated models, or name a local folder"
        raise _not_given(f"model {repository!r}", repository, unanswered or error, remedy) from error


def holds_file(repository: str, file: str) -> bool:
    """Whether a model's repository, on the hub or in the local cache, has this file."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repository, file)
    except Exception:  # no such file, no such repository, no network: whoever opens it says which
        return False
    return True


def upload(folder: Path, repository: str) -> str:
    """Puts a folder's files into a model repository, which is made where there is none. Returns its address."""
    from huggingface_hub import HfApi

    if not is_hub_id(repository):
        raise InputError(f"--push_to_hub {repository!r} is not of the form owner/name")
    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=[".*"])
    except Exception as error:  # no token, no right, no network: a type each
        raise InputError(
            f"the hub does not take {repository} ({reason_of(error)}); `hf auth login`, or HF_TOKEN with the right to "
            "write there"
        ) from error
    return str(address)


def fetch_file(repository: str, file: str, *, what: str, remedy: str, kind: str = "model") -> Path:
    """One file of a model or of a data set (`kind`: model or dataset), in the local cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type=kind))
    except Exception as error:
        raise _not_given(what, f"{repository}/{file}", error, remedy) from error


def load_rows(repository: str, *, split: str, what: str, remedy: str, **options: Any) -> Any:
    """The rows of a data set's split, as the package `datasets` gives them. `options`: of its load_dataset."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"{what}: the package datasets is missing ({error}); pip install datasets, or {remedy}"
        ) from error
    try:
        return load_dataset(repository, split=split, **options)
    except Exception as error:
        raise _not_given(what, repository, error, f"check the network, or {remedy}") from error


def availability(repository: str, kind: str, what: str) -> str | None:
    """Why a model or data set (`kind`) is neither in the local cache nor on the hub; None when it is."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            snapshot_download(repository, repo_type=kind, local_files_only=True)
        except LocalEntryNotFoundError:
            HfApi().repo_info(repository, repo_type=kind, timeout=TIMEOUT)
    except Exception as error:  # as above, and names that the client refuses unasked: a--b
        return f"{what}: {repository} is not in the local cache, and the hub does not give it ({reason_of(error)})"
    return None


def _not_given(what: str, repository: str, error: Exception, remedy: str) -> InputError:
    return InputError(f"{what}: the hub does not give {repository} ({reason_of(error)}); {remedy}")
