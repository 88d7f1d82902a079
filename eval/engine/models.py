"""MODEL of the command line: a checkpoint folder, a hub id, or a delta artifact, whose weights an engine decodes."""

import hashlib
from pathlib import Path

import torch

from impart.artifact import COMPANIONS, MANIFEST, Delta, is_delta, open_delta
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.companions import digests
from impart.dtypes import DTYPE_NAMES, short_name
from impart.errors import InputError
from impart.files import user_path
from impart.overlay import Overlay, open_overlay
from impart.pretrained import trusted


class ModelSource:
    """What MODEL names, checked and identified, but not yet loaded."""

    def __init__(self, source: str, base_model: str | None = None):
        self.source, self.base_model = source, base_model
        self.name = model_name(source)
        self._delta: Delta | None = None
        self.delta_facts: dict | None = None
        if is_delta(source):
            self._delta = open_delta(source)
            manifest = (self._delta.path / MANIFEST).read_bytes()
            self.identity = {"delta": hashlib.sha256(manifest).hexdigest()}
            sizes = self._delta.sizes()
            self.delta_facts = {key: self._delta.manifest[key] for key in ("kind", "method", "settings", "seed")} | {
                "linear_ratio": round(sizes.linear_ratio, 4),
                "checkpoint_ratio": round(sizes.checkpoint_ratio, 4),
                "base": self._delta.manifest["base"]["source"],
                "finetuned": self._delta.manifest["finetuned"]["source"],
            }
            dtype = self._delta.dtype(self._delta.names()[0]) if self._delta.names() else torch.bfloat16
            self._delta.companions()  # verifies them: the tokenizer is read from there
            self.tokenizer_folder = self._delta.path / COMPANIONS
        else:
            if base_model:
                raise InputError(f"--base_model is for delta artifacts, but {source!r} is a whole checkpoint")
            checkpoint = open_checkpoint(source)
            self.identity = identity_of(checkpoint)
            dtype, self.tokenizer_folder = checkpoint.model_dtype(), checkpoint.path
        # The model's own, as in DTYPE of the command line.
        self.dtype = short_name(dtype) if dtype in DTYPE_NAMES.values() else "fp32"

    def weights(self) -> Path | Overlay:
        """What an engine loads: the checkpoint's folder, or the delta over its base, which is checked here."""
        if self._delta is None:
            return self.tokenizer_folder
        return open_overlay(self._delta.path, self.base_model)


def model_name(source: str) -> str:
    """What a model is called in the results: the last part of its path or id."""
    return user_path(source).resolve().name or "model"


def identity_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Everything of a model that decides its answers, as digests by what they are of."""
    files = digests(checkpoint.companions())
    if not trusted():  # then it is not run
        files.pop("code", None)
    return {"fingerprint": checkpoint.fingerprint(), **files}
