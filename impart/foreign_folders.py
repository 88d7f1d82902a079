"""What a folder is that somebody gave as a model and that is none, and what to give instead."""

import json
import re
from pathlib import Path

ADAPTER = (
    "it is an adapter, not a whole model: delta.py --svd and sparsify.py take it as the fine-tuned model of its base, "
    "and the delta that they write can be evaluated, merged and served"
)
DELTA = "it is a delta, not a whole model; `python delta.py --merge --delta_path DELTA --save_path OUT` rebuilds one"
LFS = b"version https://git-lfs"  # how a pointer begins that git-lfs leaves in place of a file
# Quantizations into codes. 8-bit floats with scales are no codes (impart/scales.py).
PACKED = ("gptq", "awq", "bitsandbytes", "hqq", "aqlm", "eetq", "exl2", "mxfp4", "vptq", "spqr", "quanto", "torchao")
PACKED_FORMATS = ("pack-quantized", "int-quantized", "marlin-24", "nvfp4-pack-quantized")


def foreign_kind(folder: Path) -> str | None:
    """One sentence for a folder without a readable model, or one that is quantized; None where nothing is known."""
    pointer = next((file for file in sorted(folder.glob("*")) if _is_pointer(file)), None)
    if pointer is not None:
        return f"{pointer.name} is a git-lfs pointer, not the file itself; run `git lfs pull` in that folder"
    if next(folder.glob("*.gguf"), None) is not None and not (folder / "config.json").is_file():
        return "it holds GGUF files, whose weights are rounded; give the 16-bit model that they were made from"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return ADAPTER
    if (folder / "delta.json").is_file():
        return DELTA
    saved = sorted(folder.glob("checkpoint-*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    if saved and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return f"it is a trainer's folder of checkpoints; give one of them, as {saved[-1]}"
    method, form = _quantization(folder)
    if method in PACKED or form in PACKED_FORMATS:
        return f"it is quantized by {method.upper()}, whose weights are codes; give the 16-bit model it was made from"
    return None


def _is_pointer(file: Path) -> bool:
    if file.suffix not in (".safetensors", ".bin", ".json", ".model") or not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(LFS)) == LFS


def _quantization(folder: Path) -> tuple[str, str]:
    """Method and, of compressed-tensors, format that a config names; empty texts for what it does not."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())["quantization_config"]
        return str(settings.get("quant_method", "")), str(settings.get("format", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""
