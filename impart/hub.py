"""What a run takes from the Hugging Face hub: one place asks it, and one message says what it did not give.

Everything comes from the local cache where the hub cannot be reached. Callers look at local files first: no function
here is called for something that lies in a folder. The hub's client is imported when it is needed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    from huggingface_hub import snapshot_download

    ignore = list(OTHER_WEIGHTS)
    files, unanswered = _files_of(repository)
    if any(file.endswith(".safetensors") for file in files):
        ignore.append("*.bin")
    try:
        return Path(snapshot_download(repository, ignore_patterns=ignore, local_files_only=not files))
    except Exception as error:
        remedy = "check the name, the network and `hf auth login` for gated models, or name a local folder"
        raise _not_given(f"model {repository!r}", repository, unanswered or error, remedy) from error


def holds_file(repository: str, file: str) -> bool:
    """Whether a model's repository, on the hub or in the local cache, has this file."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(repository, file), str) or file in _files_of(repository)[0]
    except ValueError:  # a name that the client refuses unasked, a--b: whoever opens it says so
        return False


def _files_of(repository: str, kind: str = "model") -> tuple[list[str], Exception | None]:
    """The files that the hub has of a model or data set, or why it has not told; asked once, for the client's own
    downloads ask a hub that cannot be reached six times in half a minute."""
    from huggingface_hub import HfApi

    try:
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        return [file.rfilename for file in ask(repository, timeout=TIMEOUT).siblings or ()], None
    except Exception as error:  # no network, offline, unknown, gated: a type each, some of them the HTTP client's own
        return [], error


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

    files, unanswered = _files_of(repository, kind)
    try:
        return Path(hf_hub_download(repository, file, repo_type=kind, local_files_only=not files))
    except Exception as error:
        raise _not_given(what, f"{repository}/{file}", unanswered or error, remedy) from error


def load_rows(repository: str, *, split: str, what: str, remedy: str, **options: Any) -> Any:
    """The rows of a data set's split, as the package `datasets` gives them. `options`: of its load_dataset."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"{what}: the package datasets is missing ({error}); pip install datasets, or {remedy}"
        ) from error
    unanswered = _files_of(repository, "dataset")[1]
    try:
        with _from_cache() if unanswered else nullcontext():
            return load_dataset(repository, split=split, **options)
    except Exception as error:
        raise _not_given(what, repository, unanswered or error, f"check the network, or {remedy}") from error


@contextmanager
def _from_cache() -> Iterator[None]:
    """Within it `datasets` takes what it has cached and asks nobody; it has no argument for that."""
    import datasets
    from huggingface_hub import constants

    held = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = held


def availability(repository: str, kind: str, what: str) -> str | None:
    """Why a model or data set (`kind`) is neither in the local cache nor on the hub; None when it is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    unanswered: Exception | None
    try:
        snapshot_download(repository, repo_type=kind, local_files_only=True)
        return None
    except LocalEntryNotFoundError:
        unanswered = _files_of(repository, kind)[1]
    except Exception as error:  # names that the client refuses unasked: a--b
        unanswered = error
    if unanswered is None:
        return None
    return f"{what}: {repository} is not in the local cache, and the hub does not give it ({reason_of(unanswered)})"


def _not_given(what: str, repository: str, error: Exception, remedy: str) -> InputError:
    return InputError(f"{what}: the hub does not give {repository} ({reason_of(error)}); {remedy}")
