"""The small files beside a model's weights: which of them travel with a delta or a rebuilt model.

A list of kinds decides, since the folder of a trainer holds weights in every format, optimizer states, pickles and
logs, under names that no list of exceptions would ever cover.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from impart.files import sha256_of

log = logging.getLogger(__name__)

KINDS = {
    "config": "config.json",
    "generation_config": "generation_config.json",
    "tokenizer": (
        "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt "
        "merges.txt tokenizer.model tokenizer.model.v* spiece.model sentencepiece*.model *.spm *.tiktoken tekken.json "
        "vocab.model"
    ),
    "chat_template": "chat_template.json *.jinja",
    "code": "*.py",  # runs only where --trust_remote_code asks for it
    "other_settings": (
        "configuration.json quantization_config.json quantize_config.json preprocessor_config.json "
        "processor_config.json image_processor_config.json video_preprocessor_config.json params.json"
    ),
    "documents": (
        "license* licence* copying* copyright* notice* use_policy* acceptable_use_policy* readme* *.md citation*"
    ),
}
TEMPLATES = "additional_chat_templates"  # the one folder that belongs to them: further templates by name
# The endings of weights and of what trainers leave, which no name of the list may have either.
WEIGHT_ENDINGS = (
    ".safetensors .bin .pt .pth .pkl .pickle .ckpt .h5 .hdf5 .keras .msgpack .onnx .onnx_data .ot .gguf .ggml .nemo "
    ".npz .npy .mlmodel .mlpackage .tflite .pb .engine .plan .index.json .joblib .distcp .zip .tar .gz .tgz .bz2 .xz "
    ".zst .7z .bak .tmp .incomplete zero_to_fp32.py"
).split()
MAX_BYTES = 1 << 28  # the largest tokenizer.json of a published model has about 35 MB


def is_plain_name(name: str) -> bool:
    """Whether a text of someone else names a file directly in a folder, on every system."""
    plain = name.isprintable() and not re.search(r"[/\\:]", name) and not name.startswith(".")
    return bool(name) and plain and len(name.encode()) < 256  # lone surrogates are not printable


def is_weight(name: str) -> bool:
    """Whether a file of this name holds weights, in any format, or an archive that may."""
    return name.lower().endswith(tuple(WEIGHT_ENDINGS)) or bool(re.search(r"\.safetensors|\.gguf", name.lower()))


def kind_of(name: str) -> str | None:
    """The kind of a file that travels with a model, by its name in the folder; None for all others."""
    plain = name.removeprefix(f"{TEMPLATES}/")
    if not is_plain_name(plain) or is_weight(plain):
        return None
    if plain != name:
        return "chat_template" if plain.endswith(".jinja") else None
    return next(
        (kind for kind, names in KINDS.items() if any(fnmatchcase(name.lower(), form) for form in names.split())), None
    )


def companion_name(file: Path) -> str:
    """What a companion is called in its model's folder: its name, or `additional_chat_templates/NAME`."""
    return f"{TEMPLATES}/{file.name}" if file.parent.name == TEMPLATES else file.name


def copy_companion(file: Path, folder: Path) -> Path:
    """Copies a companion to its place in another model's folder, and returns the copy."""
    copy = folder / companion_name(file)
    copy.parent.mkdir(exist_ok=True)
    return Path(shutil.copyfile(file, copy))


def digests(files: Iterable[Path]) -> dict[str, str]:
    """One sha256 for each kind of companion that decides what a model answers, over its files' names and bytes."""
    found: dict[str, list[str]] = {}
    for file in sorted(files, key=companion_name):
        name = companion_name(file)
        kind = kind_of(name)
        if kind is not None and kind != "documents":
            found.setdefault(kind, []).append(f"{name} {sha256_of(file)}\n")
    return {kind: hashlib.sha256("".join(lines).encode()).hexdigest() for kind, lines in found.items()}


def stays_inside(file: Path, folder: Path) -> bool:
    """Whether the file, links followed, lies in the folder, or in the blobs of the hub cache that the folder is in.

    A snapshot of the hub's cache, `models--OWNER--NAME/snapshots/REVISION/`, holds links to `../../blobs/`.
    """
    target, folder = Path(os.path.realpath(file)), Path(os.path.realpath(folder))  # resolve() raises for loops
    if target.is_relative_to(folder):
        return True
    for above in (folder, *folder.parents):
        if above.parent.name == "snapshots" and above.parents[1].name.startswith(("models--", "datasets--")):
            return target.parent == above.parents[1] / "blobs"
    return False


def companions_of(folder: Path) -> list[Path]:
    """The small files of a model folder, by name; what else lies there and is no weight is named in the log."""
    found, left = [], []
    inner = folder / TEMPLATES
    for file in sorted([*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ())]):
        name, link = companion_name(file), file.is_symlink()
        if file.name.startswith(".") or is_weight(name) or (file.is_dir() and not link):
            continue
        wanted = kind_of(name) is not None
        if wanted and not stays_inside(file, folder):
            log.warning("%s is a link out of its folder and is left out; copy what it names there if it belongs", file)
        elif wanted and _is_small_file(file):
            found.append(file)
        else:
            left.append(name)
    if left:
        log.info("left out of the model's small files: %s", ", ".join(left))
    return found


def _is_small_file(file: Path) -> bool:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES
