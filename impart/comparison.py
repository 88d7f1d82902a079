"""A base and its fine-tuned model, checked against each other before anything long begins."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from impart.architecture import (
    EMBEDDING,
    HEAD,
    IDENTITY,
    TEXT_CONFIGS,
    is_vocabulary,
    linear_names,
    stated_difference,
)
from impart.checkpoint import Checkpoint
from impart.errors import InputError
from impart.matrices import by_tensor, head_and_rest, split_name
from impart.report import progress
from impart.workers import in_order, readers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """`matrices` are compressed; the other fields name stored tensors.

    `unchanged` are the same in both; `extras` changed and travel as they are; `dropped` stand only in the base, or are
    a tied head, which is the embedding once more.
    """

    base: Checkpoint
    finetuned: Checkpoint
    matrices: list[str]
    unchanged: frozenset[str]
    extras: list[str]
    dropped: list[str]

    def delta(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """dW = W_finetuned - W_base (m, n) in fp32."""
        change = self.finetuned.change(name, device)
        if change is not None:
            return change
        return self.finetuned.tensor(name, device).float().sub_(self.base.tensor(name, device).float())


def check_comparable(base: Checkpoint, finetuned: Checkpoint, matrices: Sequence[str], *, bits: bool = False) -> None:
    """InputError unless both are one architecture and every matrix to compress has one shape in both.

    `bits`: not numbers are compared but what stands for them, in any dtype.
    """
    key = stated_difference(base.config, finetuned.config, IDENTITY)
    if key is not None:
        raise InputError(
            f"base {base.source!r} has {key}={base.config[key]}, fine-tuned {finetuned.source!r} has "
            f"{finetuned.config[key]}; a delta needs two models of one architecture"
        )
    for here, there, wanted in ((base, finetuned, matrices), (finetuned, base, linear_names(base))):
        missing = [name for name in wanted if name not in here]
        if missing:
            forms = (
                "are experts stored apart in the one and in one tensor in the other (then save both in one form), or "
            )
            raise InputError(
                f"{here.source!r} lacks {and_more(missing)} that {there.source!r} has; "
                f"{forms if 'experts' in missing[0] else ''}is it whole, and the right model?"
            )
    for model, name in itertools.product((base, finetuned), () if bits else matrices):
        if model.dtype(name) not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(
                f"{name} of {model.source!r} is stored as {str(model.dtype(name)).removeprefix('torch.')}: "
                "a delta is taken of 16-bit or fp32 weights; give the model before quantization"
            )
    wrong = [name for name in matrices if base.shape(name) != finetuned.shape(name)]
    if wrong:
        listed = ", ".join(f"{name} {base.shape(name)} against {finetuned.shape(name)}" for name in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"base and fine-tuned differ in shape: {listed}{more}; a delta needs equal shapes")


def compressible(base: Checkpoint, finetuned: Checkpoint, matrices: Sequence[str]) -> list[str]:
    """The matrices without a head that repeats the embedding, and those with a row a token as far as both have them.

    Rows are matched by position: a fine-tuned model's new tokens stand after the base's.
    """
    found = []
    for name in matrices:
        if _is_tied(finetuned, name):
            continue
        ours, theirs = (model.shape(name) if name in model else () for model in (base, finetuned))
        grown = is_vocabulary(name) and ours[1:] == theirs[1:] and ours[:1] != theirs[:1]
        found.append(head_and_rest(name, min(ours[0], theirs[0]))[0] if grown else name)
    return found


def _is_tied(model: Checkpoint, name: str) -> bool:
    """Whether the parameter is a head that the config ties to the embedding, and that repeats it."""
    settings = (model.config, *(model.config.get(key) for key in TEXT_CONFIGS))
    tied = any(isinstance(one, dict) and one.get("tie_word_embeddings") for one in settings)
    if not (tied and name.endswith(HEAD)):
        return False
    return any(
        model.spec(other).shape == model.spec(name).shape and model.digest(other) == model.digest(name)
        for other in model.names()
        if other.endswith(EMBEDDING)
    )


def _same(base: Checkpoint, finetuned: Checkpoint, name: str, finite: bool) -> bool:
    """Whether the parameter is in both, bit for bit; every value of either is looked at. `finite`: NaN is an error."""
    if finetuned.change(name) is not None:
        return False  # whatever rounding would make of it
    if name not in base or base.spec(name) != finetuned.spec(name):
        for model in (finetuned, base):
            for _ in model.blocks(name, finite) if name in model else ():
                pass
        return False
    pairs = itertools.zip_longest(base.blocks(name, finite), finetuned.blocks(name, finite))
    return all([ours is not None and tuned is not None and _equal_bits(ours, tuned) for ours, tuned in pairs])


def _equal_bits(ours: torch.Tensor, tuned: torch.Tensor) -> bool:
    """Of two tensors of one shape and dtype; as whole words they compare five times as fast."""
    parts = [part.contiguous().reshape(-1).view(torch.uint8) for part in (ours, tuned)]
    if all(size % 8 == 0 for part in parts for size in (part.numel(), part.storage_offset())):
        parts = [part.view(torch.int64) for part in parts]
    return torch.equal(*parts)


def and_more(names: Sequence[str]) -> str:
    """The first of the names, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def compare(base: Checkpoint, finetuned: Checkpoint, matrices: Sequence[str], *, bits: bool = False) -> Comparison:
    """Reads both models once: what did not change need not be stored. NaN and Inf are errors unless `bits` count."""
    check_comparable(base, finetuned, matrices, bits=bits)
    chosen, unchanged, extras = by_tensor(matrices), set(), []
    names = [name for name in finetuned.names() if not _is_tied(finetuned, name)]
    same = in_order(lambda name: _same(base, finetuned, name, finite=not bits), names, readers())
    for name, unchanged_here in zip(progress(names, what="checking weights", unit="tensor"), same, strict=True):
        if unchanged_here:
            unchanged.add(name)
        elif name not in chosen:
            extras.append(name)
        elif isinstance(rows := split_name(chosen[name][0])[1], slice) and finetuned.shape(name)[0] > rows.stop:
            extras.append(head_and_rest(name, rows.stop)[1])
    if len(unchanged) == len(names):
        log.warning("base %r and fine-tuned %r are identical: the delta is empty", base.source, finetuned.source)
    kept = set(names)
    dropped = [name for name in base.names() if name not in kept]
    return Comparison(base, finetuned, list(matrices), frozenset(unchanged), extras, dropped)
