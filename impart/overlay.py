"""A base with a delta on it: the fine-tuned model, tensor by tensor as it is asked for, never written to disk."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from impart.artifact import COMPANIONS, Delta, is_delta, open_delta, triplet_count
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.dtypes import parse_dtype
from impart.errors import InputError
from impart.reconstruct import planned_tensors, reconstructed

# Keys of config.json that say who wrote it, not what the model computes.
PROVENANCE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Overlay:
    """A delta and the base that it belongs to, both opened and checked; made by `open_overlay`."""

    delta: Delta
    base: Checkpoint

    @property
    def folder(self) -> Path:
        """The fine-tuned model's config and tokenizer."""
        return self.delta.path / COMPANIONS

    def tensors(
        self, device: torch.device | str = "cpu", wanted: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of the fine-tuned model, decoded on the device; only the `wanted` names, where that is given.

        Compressed matrices come on the device, all other parameters on the CPU.
        """
        return reconstructed(self.delta, self.base, device=device, wanted=wanted)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of the fine-tuned model."""
        return {spec.name: spec.shape for spec in planned_tensors(self.delta, self.base)}

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all parameters once loaded as `dtype` (auto: as they are stored)."""
        specs = planned_tensors(self.delta, self.base)
        if dtype == "auto":
            return sum(spec.nbytes for spec in specs)
        return sum(spec.nbytes // spec.dtype.itemsize * parse_dtype(dtype).itemsize for spec in specs)

    def decode_bytes(self) -> int:
        """Bytes that decoding takes at most beside the weights: dW or its parts, the base's weight, factors in fp32."""
        entries = self.delta.manifest["matrices"].values()
        shapes = [(*entry["shape"], triplet_count(entry) or 0, 3 if "tail" in entry else 2) for entry in entries]
        return max((4 * (dense * m * n + (m + n) * rank) for m, n, rank, dense in shapes), default=0)


def open_overlay(path: str | Path, base: Checkpoint | str | None = None) -> Overlay:
    """The delta in `path`, or whose `model` folder `path` is, over `base` (default: the one that it names).

    InputError for a damaged delta, for a base that is not there, and for one that is not the delta's: every shard's
    sha256 and the base's fingerprint are checked here.
    """
    path = Path(path).expanduser()
    inside = path.name == COMPANIONS and is_delta(path.parent)
    delta = open_delta(path.parent if inside else path)
    opened = base if isinstance(base, Checkpoint) else open_base(delta, base)
    delta.check_base(opened)
    delta.verify()
    return Overlay(delta, opened)


def open_base(delta: Delta, base_model: str | None) -> Checkpoint:
    """The delta's base: `base_model`, or where the delta says that it is. InputError when it cannot be opened."""
    recorded = delta.manifest["base"]["source"]
    try:
        return open_checkpoint(base_model or recorded)
    except InputError as error:
        if base_model:
            raise
        raise InputError(
            f"{str(delta.path)!r} is a delta over {recorded!r}, which cannot be opened ({error}); say "
            "where its base model is with --base_model"
        ) from error


def difference(old: Overlay, new: Overlay) -> str | None:
    """Why an engine that was started for `old` cannot answer for `new` by loading its weights; None when it can."""
    if old.base.source != new.base.source:
        return f"it is a delta over {new.base.source!r}, not over {old.base.source!r}"
    if old.shapes() != new.shapes():
        return "it has parameters of other names or shapes"
    files = {name for overlay in (old, new) for name in overlay.delta.manifest["files"]}
    for name in sorted(file for file in files if file.endswith((".json", ".model", ".jinja"))):
        if _meaning(old, name) != _meaning(new, name):
            return f"its {name} says something else"
    return None


def _meaning(overlay: Overlay, name: str) -> object:
    """What a small file says: the values of a config, whoever wrote it, and the sha256 of any other."""
    if name == "config.json":
        config = json.loads((overlay.folder / name).read_text())
        return {key: value for key, value in config.items() if key not in PROVENANCE}
    return overlay.delta.manifest["files"].get(name)
