"""Where the deltas to compress come from: two checkpoints, or an SVD delta that was saved before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from impart.artifact import Delta, open_delta
from impart.artifact_writer import model_facts
from impart.checkpoint import Checkpoint, linear_names, open_checkpoint
from impart.comparison import Comparison, check_comparable, compare, select_matrices
from impart.errors import InputError
from impart.svd import delta_svd

Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SourceSettings(Protocol):
    """The settings that say where a delta comes from."""

    base_model: str | None
    ftm_dir: str | None
    svd_dir: str | None
    weight_types: list[str] | None
    layer_num: int | None
    weight_name: str | None
    save_model: bool


class Source(Protocol):
    """One fine-tuned model's deltas, matrix by matrix, and what travels beside them."""

    matrices: list[str]
    extras: list[str]
    dropped: list[str]

    def shape(self, name: str) -> tuple[int, int]: ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the matrix has in the fine-tuned checkpoint."""

    def triplets(self, name: str, rank: int | None) -> Triplets | None:
        """Leading U (m, r), s (r,), V (n, r) of dW; None when dW is zero."""

    def dense(self, name: str) -> torch.Tensor:
        """dW (m, n)."""

    def require(self, rank: Callable[[str], int]) -> None:
        """InputError unless the leading rank(name) triplets of every matrix can be had."""

    def extra(self, name: str) -> torch.Tensor: ...

    def extra_bytes(self) -> int: ...

    def head(self) -> dict:
        """What a manifest says of the models."""

    def companions(self) -> list[Path]: ...


class ModelSource:
    """Deltas computed from two checkpoints as they are asked for."""

    def __init__(self, pair: Comparison, device: torch.device):
        self._pair, self._device = pair, device
        self.matrices, self.extras, self.dropped = pair.matrices, pair.extras, pair.dropped

    def shape(self, name: str) -> tuple[int, int]:
        return self._pair.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._pair.finetuned.dtype(name)

    def triplets(self, name: str, rank: int | None) -> Triplets | None:
        if name in self._pair.unchanged:
            return None
        triplets = delta_svd(self.dense(name), rank)
        return triplets if float(triplets[1][0]) > 0 else None  # equal values in two dtypes

    def dense(self, name: str) -> torch.Tensor:
        return self._pair.delta(name, self._device)

    def require(self, rank: Callable[[str], int]) -> None:
        """All can be had: they are computed."""

    def extra(self, name: str) -> torch.Tensor:
        return self._pair.finetuned.tensor(name)

    def extra_bytes(self) -> int:
        return sum(self._pair.finetuned.spec(name).nbytes for name in self.extras)

    def head(self) -> dict:
        return {"base": model_facts(self._pair.base), "finetuned": model_facts(self._pair.finetuned)}

    def companions(self) -> list[Path]:
        return self._pair.finetuned.companions()


class SvdSource:
    """Deltas read from a saved SVD; matrices left out of `matrices` come from the fine-tuned model as they are."""

    def __init__(self, delta: Delta, matrices: list[str], device: torch.device, finetuned: Checkpoint | None):
        if delta.manifest["kind"] != "svd":
            raise InputError(
                f"{str(delta.path)!r} is a {delta.manifest['kind']} delta; an SVD delta is wanted here, "
                "as delta.py --svd makes it"
            )
        self._delta, self._device, self._finetuned = delta, device, finetuned
        chosen = set(matrices)
        self._left_out = [name for name in delta.names() if name not in chosen]
        if self._left_out and finetuned is None:
            raise InputError(
                f"weight_types leaves out {self._left_out[0]} and {len(self._left_out) - 1} more of "
                f"{str(delta.path)!r}, which then come from the fine-tuned model; name it as ftm_dir"
            )
        if finetuned is not None:
            delta.check_finetuned(finetuned)
        self.matrices, self.extras = matrices, delta.extras() + self._left_out
        self.dropped = delta.manifest["dropped"]

    def shape(self, name: str) -> tuple[int, int]:
        return self._delta.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._delta.dtype(name)

    def triplets(self, name: str, rank: int | None) -> Triplets | None:
        if self._delta.rank(name) == 0:
            return None
        return tuple(factor[..., :rank].contiguous() for factor in self._delta.factors(name, self._device))

    def dense(self, name: str) -> torch.Tensor:
        return self._delta.reconstruct(name, device=self._device)

    def require(self, rank: Callable[[str], int]) -> None:
        for name in self.matrices:
            held, wanted = self._delta.rank(name), rank(name)
            if 0 < held < wanted:
                raise InputError(
                    f"{name} has {held} singular triplets in {str(self._delta.path)!r}, and {wanted} are "
                    "needed; make the SVD with a larger --dim or without, or give base_model and ftm_dir "
                    "instead of svd_dir"
                )

    def extra(self, name: str) -> torch.Tensor:
        return self._finetuned.tensor(name) if name in self._left_out else self._delta.extra(name)

    def extra_bytes(self) -> int:
        stored = sum(extra["bytes"] for extra in self._delta.manifest["extras"].values())
        return stored + sum(self._finetuned.spec(name).nbytes for name in self._left_out)

    def head(self) -> dict:
        manifest = self._delta.manifest
        return {"base": manifest["base"], "finetuned": manifest["finetuned"], "svd": manifest["settings"]}

    def companions(self) -> list[Path]:
        return self._delta.companions()


def open_source(
    config: SourceSettings, device: torch.device, check_shapes: Callable[[Mapping[str, tuple[int, int]]], None]
) -> Source:
    """The models or the saved SVD, checked against each other and the settings before anything long begins."""
    keys = (config.weight_types, config.layer_num, config.weight_name)
    if config.svd_dir is not None:
        svd = open_delta(config.svd_dir)
        matrices = select_matrices(svd.names(), config.svd_dir, *keys)
        # The models are not needed here but for what is left out or rebuilt, so a hub id is fetched only then; a folder
        # that is named all the same has to be the one that the SVD was made from.
        left_out = len(matrices) < len(svd.names())
        finetuned = (
            open_checkpoint(config.ftm_dir) if config.ftm_dir and (left_out or is_folder(config.ftm_dir)) else None
        )
        source = SvdSource(svd, matrices, device, finetuned)
        check_shapes({name: source.shape(name) for name in source.matrices})
        if config.save_model or is_folder(config.base_model):
            svd.check_base(open_checkpoint(config.base_model or svd.manifest["base"]["source"]))
        svd.verify()
        return source
    base, finetuned = open_checkpoint(config.base_model), open_checkpoint(config.ftm_dir)
    matrices = select_matrices(linear_names(finetuned), config.ftm_dir, *keys)
    check_comparable(base, finetuned, matrices)
    check_shapes({name: base.shape(name) for name in matrices})
    return ModelSource(compare(base, finetuned, matrices), device)


def is_folder(model: str | None) -> bool:
    return model is not None and Path(model).expanduser().is_dir()
