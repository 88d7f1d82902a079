"""Where the deltas to compress come from: two checkpoints, or an SVD delta that was saved before."""

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from impart.adapter import open_finetuned
from impart.architecture import LINEAR_TYPES, VOCABULARY_TYPES, matrices_of, select_matrices
from impart.artifact import Delta, open_delta
from impart.artifact_writer import model_facts
from impart.checkpoint import Checkpoint, check_named, open_checkpoint
from impart.comparison import Comparison, check_comparable, compare, compressible
from impart.config import option
from impart.coverage import coverage, of_checkpoint
from impart.encodings.encoded import Triplets
from impart.errors import InputError
from impart.files import user_path
from impart.matrices import tensor_of
from impart.method import Matrix, Method
from impart.relation import check_pair
from impart.svd import delta_svd

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The keys that say which delta is compressed: two checkpoints, or a saved SVD, and which matrices of it."""

    ftm_dir: str | None = option(
        None, help="fine-tuned model: folder or hub id, or a LoRA adapter", aliases=("finetuned_model",)
    )
    base_model: str | None = option(
        None, help="base model: folder or hub id; not needed with svd_dir", aliases=("ptm_dir",)
    )
    svd_dir: str | None = option(None, help="saved SVD delta; without it the SVD is computed from the two models")
    weight_types: list[str] | str | None = option(
        None,
        help="types to compress, like self_attn.q_proj or embed_tokens; linear (the default): all linear weights of "
        "attention, mixers, feed-forward and experts; embeddings: embedding and head, by default of method=lossless "
        "only; all: every 2-D weight of at least 64 x 64 in a repeated block",
    )
    layer_num: int | None = option(None, help="number of layers that weight_name counts through", low=1)
    weight_name: str | None = option(None, help="pattern of the names, like model.layers.{layer_num}.{weight_type}")


class Source(ABC):
    """One fine-tuned model's deltas, matrix by matrix, and what travels beside them."""

    device: torch.device  # where deltas and triplets are computed
    matrices: list[str]  # names of the compressed weights
    extras: list[str]  # names of other parameters that changed and travel whole
    dropped: list[str]  # names of parameters that only the base has
    computes_svd: ClassVar[bool]  # whether triplets are computed, not read

    def matrix(self, name: str) -> Matrix:
        """The delta of one matrix, as a method reads it."""
        return _SourceMatrix(self, name)

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int]: ...

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the matrix has in the fine-tuned checkpoint."""

    @abstractmethod
    def triplets(self, name: str, rank: int) -> Triplets | None:
        """Leading U (m, r), s (r,), V (n, r) of dW; None when dW is zero."""

    @abstractmethod
    def dense(self, name: str) -> torch.Tensor:
        """dW (m, n) in fp32."""

    @abstractmethod
    def weights(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's and the fine-tuned weight (m, n), as stored, on the CPU."""

    def require(self, method: Method) -> None:  # noqa: B027 - sources with the two models keep this one
        """InputError unless what the method reads of every matrix is there; from two models all of it comes."""

    @abstractmethod
    def extra(self, name: str) -> torch.Tensor:
        """A parameter that travels whole."""

    @abstractmethod
    def extra_sizes(self) -> dict[str, int]:
        """Bytes of every extra."""

    @abstractmethod
    def is_changed(self, name: str) -> bool:
        """Whether a matrix may differ from the base's."""

    def say_coverage(self) -> None:
        """How many of the changed bytes are compressed, and how many travel whole."""
        sizes = {name: math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self.matrices}
        coverage({name: size for name, size in sizes.items() if self.is_changed(name)}, self.extra_sizes()).say()

    @abstractmethod
    def head(self) -> dict:
        """What a manifest says of the models."""

    @abstractmethod
    def companions(self) -> list[Path]:
        """The fine-tuned model's config, tokenizer and other small files."""


@dataclass(frozen=True)
class _SourceMatrix:
    """One matrix of a source."""

    source: Source
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape(self.name)

    def dense(self) -> torch.Tensor:
        return self.source.dense(self.name)

    def triplets(self, rank: int) -> Triplets | None:
        return self.source.triplets(self.name, rank)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.source.weights(self.name)


class ModelSource(Source):
    """Deltas computed from two checkpoints as they are asked for."""

    computes_svd = True

    def __init__(self, pair: Comparison, device: torch.device):
        self._pair, self.device = pair, device
        self.matrices, self.extras, self.dropped = pair.matrices, pair.extras, pair.dropped

    def shape(self, name: str) -> tuple[int, int]:
        m, n = self._pair.base.shape(name)
        return m, n

    def dtype(self, name: str) -> torch.dtype:
        return self._pair.finetuned.dtype(name)

    def triplets(self, name: str, rank: int) -> Triplets | None:
        if not self.is_changed(name):
            return None
        triplets = delta_svd(self.dense(name), rank)
        return triplets if float(triplets[1][0]) > 0 else None  # equal values in two dtypes

    def dense(self, name: str) -> torch.Tensor:
        return self._pair.delta(name, self.device)

    def weights(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pair.base.tensor(name), self._pair.finetuned.tensor(name)

    def extra(self, name: str) -> torch.Tensor:
        return self._pair.finetuned.tensor(name)

    def extra_sizes(self) -> dict[str, int]:
        return {name: self._pair.finetuned.spec(name).nbytes for name in self.extras}

    def is_changed(self, name: str) -> bool:
        return tensor_of(name) not in self._pair.unchanged

    def head(self) -> dict:
        return {"base": model_facts(self._pair.base), "finetuned": model_facts(self._pair.finetuned)}

    def companions(self) -> list[Path]:
        return self._pair.finetuned.companions()


class SvdSource(Source):
    """Deltas read from a saved SVD; matrices left out of `matrices` come from the fine-tuned model as they are."""

    computes_svd = False

    def __init__(self, delta: Delta, matrices: list[str], device: torch.device, finetuned: Checkpoint | None):
        if delta.manifest["kind"] != "svd":
            raise InputError(
                f"{str(delta.path)!r} is a {delta.manifest['kind']} delta; an SVD delta is wanted here, "
                "as delta.py --svd makes it"
            )
        self._delta, self.device = delta, device
        chosen = set(matrices)
        left_out = list(dict.fromkeys(tensor_of(name) for name in delta.names() if name not in chosen))
        if finetuned is not None:
            delta.check_finetuned(finetuned)
        elif left_out:
            raise InputError(
                f"weight_types leaves out {left_out[0]} and {len(left_out) - 1} more of "
                f"{str(delta.path)!r}, which then come from the fine-tuned model; name it as ftm_dir"
            )
        self._left_out: dict[str, Checkpoint] = dict.fromkeys(left_out, finetuned) if finetuned is not None else {}
        self.matrices, self.extras = matrices, delta.extras() + left_out
        self.dropped = delta.manifest["dropped"]

    def shape(self, name: str) -> tuple[int, int]:
        return self._delta.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._delta.dtype(name)

    def triplets(self, name: str, rank: int) -> Triplets | None:
        if self._delta.rank(name) == 0:
            return None
        U, s, V = (factor[..., :rank].contiguous() for factor in self._delta.factors(name, self.device))
        return U, s, V

    def dense(self, name: str) -> torch.Tensor:
        return self._delta.reconstruct(name, device=self.device)

    def weights(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError("a saved SVD has no weights; `require` says so to methods that read them")

    def require(self, method: Method) -> None:
        if method.reads_weights:
            raise InputError(
                f"method {method.name} reads the bits of both models, which the SVD in {str(self._delta.path)!r} has "
                "rounded; give base_model and ftm_dir instead of svd_dir"
            )
        for name in self.matrices:
            held, wanted = self._delta.rank(name) or 0, method.rank(name, *self.shape(name))
            if 0 < held < wanted:
                raise InputError(
                    f"{name} has {held} singular triplets in {str(self._delta.path)!r}, and {wanted} are "
                    "needed; make the SVD with a larger --dim or without, or give base_model and ftm_dir "
                    "instead of svd_dir"
                )

    def extra(self, name: str) -> torch.Tensor:
        return self._left_out[name].tensor(name) if name in self._left_out else self._delta.extra(name)

    def extra_sizes(self) -> dict[str, int]:
        stored = {name: extra["bytes"] for name, extra in self._delta.manifest["extras"].items()}
        return stored | {name: finetuned.spec(name).nbytes for name, finetuned in self._left_out.items()}

    def is_changed(self, name: str) -> bool:
        return self._delta.rank(name) != 0

    def head(self) -> dict:
        manifest = self._delta.manifest
        return {"base": manifest["base"], "finetuned": manifest["finetuned"], "svd": manifest["settings"]}

    def companions(self) -> list[Path]:
        return self._delta.companions()


def open_source(
    origin: Origin, method: Method, device: torch.device, *, force: bool, base_needed: bool = False
) -> Source:
    """The models or the saved SVD, checked against each other and the method before anything long begins.

    `force`: two models are taken that do not seem to be a pair. `base_needed`: the base's weights are read afterwards,
    so that it has to be the one of the SVD.
    """
    types = [origin.weight_types] if isinstance(origin.weight_types, str) else origin.weight_types
    if types is None and origin.weight_name is None and method.reads_weights:
        types = [LINEAR_TYPES, VOCABULARY_TYPES]
    keys = (types, origin.layer_num, origin.weight_name)
    if origin.svd_dir is not None:
        svd = open_delta(origin.svd_dir)
        matrices = select_matrices(svd.names(), origin.svd_dir, *keys)
        # The models are not needed here but for what is left out or rebuilt, so a hub id is fetched only then. A folder
        # that is named has to be the one that the SVD was made from.
        left_out = len(matrices) < len(svd.names())
        named = origin.ftm_dir if left_out or is_folder(origin.ftm_dir) else None
        finetuned = open_finetuned(named).named_like(svd.names()) if named else None
        source = SvdSource(svd, matrices, device, finetuned)
        check_budgets(source, method)
        if base_needed or is_folder(origin.base_model):
            svd.check_base(open_checkpoint(origin.base_model or svd.manifest["base"]["source"]))
        source.require(method)
        source.say_coverage()
        svd.verify()
        return source
    if origin.base_model is None or origin.ftm_dir is None:
        raise InputError("nothing to compress: give svd_dir, or base_model and ftm_dir")
    check_named(origin.base_model, origin.ftm_dir)
    base = open_checkpoint(origin.base_model)
    finetuned = open_finetuned(origin.ftm_dir, base)
    matrices = compressible(base, finetuned, matrices_of(finetuned, origin.ftm_dir, *keys))
    check_comparable(base, finetuned, matrices, bits=method.reads_weights)
    check_pair(base, finetuned, force)
    for name in matrices:
        method.check(name, *base.shape(name))
    log.info(of_checkpoint(finetuned, matrices).summary())
    models = ModelSource(compare(base, finetuned, matrices, bits=method.reads_weights), device)
    models.say_coverage()
    return models


def check_budgets(source: Source, method: Method) -> None:
    """InputError naming the first matrix for which the method cannot meet its budget."""
    for name in source.matrices:
        method.check(name, *source.shape(name))


def is_folder(model: str | None) -> bool:
    """Whether a model is named by a folder of this machine."""
    return model is not None and user_path(model).is_dir()
