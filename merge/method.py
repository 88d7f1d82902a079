"""What a merging method is: how the task vectors dW_t = W_t - W_base of one parameter, one per model, become one.

A method is a frozen dataclass in a file of its own under merge/methods/. Its fields are the numbers of its method
string, in their order (`ties_0.8_1.0` is Ties(trim=0.8, lam=1.0)); its class attributes say what it is called and what
its weights mean; `merge_piece` does the arithmetic. A new file there is a new method; nothing else has to know of it.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from impart.units import units
from merge.sums import add_delta, trim_to
from merge.thresholds import trim_threshold

PIECE = 1 << 14  # entries: on a CPU the dozen temporaries of a sum stay in the cache
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class MergeMethod:
    """How the task vectors of one parameter become one. Subclasses define `name`, `form` and `merge_piece`."""

    name: ClassVar[str]  # how its method strings begin
    form: ClassVar[str]  # of its method strings, for --help and errors: `ta_<lambda>`
    example: ClassVar[str] = ""  # a method string, with a colon and an explanation where one is needed
    weights_are_shares: ClassVar[bool] = False  # in a mean: positive, only their ratios count; else they are factors

    @property
    def trimmed_share(self) -> float:
        """The share of each task vector's smallest entries that is set to zero before `merge_piece` reads it."""
        return 0.0

    def may_return(self, weight: float) -> bool:
        """Whether an entry that only a model of this weight moved, or that all moved alike, comes out as that model's.

        The bits of such an entry are then taken from the model itself: base + (model - base) can miss them.
        """
        return False

    def merge_piece(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The merged entries (k,) from `terms`, the w_t dW_t (k,) of the models, and their w_t. Terms stay unchanged.

        Terms are float32 where w_t is 1, else float64; compute in float64, the caller rounds to the deltas' dtype.
        The result must not depend on the order of the models (`merge.sums.ordered_sum`).
        """
        raise NotImplementedError

    def merged_delta(self, deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """One delta from float32 deltas of one shape, already trimmed, and one weight per model (1 if not given).

        Float64 deltas are also taken and give a float64 delta.
        """
        if not len(deltas):
            raise ValueError("there is no task vector to merge")
        weights = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(deltas):
            raise ValueError(f"{len(weights)} weights for {len(deltas)} task vectors")
        for weight in weights:
            self.check_weight(weight)
        if self.weights_are_shares and len(set(weights)) == 1:
            weights = [1.0] * len(weights)  # equal weights cancel in a mean; 1 keeps it exact
        pairs = sorted(zip(weights, deltas, strict=True), key=lambda pair: pair[0])  # sums of weights in one order
        weights, flat = [weight for weight, _ in pairs], [delta.reshape(-1) for _, delta in pairs]
        merged = torch.empty_like(flat[0])
        step = PIECE if merged.device.type == "cpu" else max(1, merged.numel())
        for start in range(0, merged.numel(), step):
            terms = [_weighted(delta[start : start + step], w) for w, delta in zip(weights, flat, strict=True)]
            merged[start : start + step] = self.merge_piece(terms, weights)  # rounded once
        return merged.view(pairs[0][1].shape)

    def merged(self, base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """W_base plus the merged delta, in base's dtype. base and each delta have one shape."""
        for delta in deltas:
            if delta.shape != base.shape:
                raise ValueError(f"a delta of shape {tuple(delta.shape)} for a parameter of shape {tuple(base.shape)}")
        dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
        exact = [delta.to(dtype) for delta in deltas]
        trimmed = [trim_to(delta, trim_threshold(delta, self.trimmed_share)) for delta in exact]
        return add_delta(base, self.merged_delta(trimmed, weights))

    def check_weight(self, weight: float) -> None:
        """ValueError for a weight that the method has no meaning for."""
        if self.weights_are_shares and not weight > 0:
            raise ValueError(f"weight {weight:g} must be positive with {self}; task arithmetic can subtract a model")

    def __str__(self) -> str:
        return "_".join([self.name, *(f"{value:g}" for value in dataclasses.astuple(self))])


def merge_methods() -> dict[str, type[MergeMethod]]:
    """Every merging method, by the beginning of its method strings."""
    return units("merge.methods", MergeMethod)


def forms() -> str:
    """`avg, ta_<lambda> or ties_<trim>_<lambda>`: the method strings, for --help."""
    *most, last = [cls.form for cls in merge_methods().values()]
    return f"{', '.join(most)} or {last}"


def parse_method(text: str) -> MergeMethod:
    """The method of a method string such as `ta_0.5`, `ties_0.8_1.0` or `avg`; ValueError saying what is wrong."""
    named = [name for name in merge_methods() if f"{text}_".startswith(f"{name}_")]
    if not named:
        raise ValueError(f"{text!r} is none of {', '.join(map(_explained, merge_methods().values()))}")
    cls = merge_methods()[max(named, key=len)]
    numbers = text.removeprefix(cls.name).split("_")[1:]
    if len(numbers) != len(dataclasses.fields(cls)) or not all(map(NUMBER.fullmatch, numbers)):
        raise ValueError(f"{text!r} is not of the form {_explained(cls)}")
    for number in numbers:
        if not math.isfinite(float(number)):
            raise ValueError(f"{text!r}: {number} is not a finite number")
    try:
        return cls(*map(float, numbers))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _explained(cls: type[MergeMethod]) -> str:
    return f"{cls.form} ({cls.example})" if cls.example else cls.form


def _weighted(delta: Tensor, weight: float) -> Tensor:
    return delta if weight == 1 else delta.to(torch.float64) * weight
