"""A base and its fine-tuned model, checked against each other before anything long begins."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from impart.checkpoint import Checkpoint, layer_of, linear_names, weight_type
from impart.errors import InputError
from impart.report import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """`matrices` are compressed; `extras` changed and travel as they are; `dropped` stand only in the base."""

    base: Checkpoint
    finetuned: Checkpoint
    matrices: list[str]
    unchanged: frozenset[str]
    extras: list[str]
    dropped: list[str]

    def delta(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """dW = W_finetuned - W_base (m, n) in fp32."""
        tuned = self.finetuned.tensor(name).to(device).float()
        return tuned.sub_(self.base.tensor(name).to(device).float())


def check_comparable(base: Checkpoint, finetuned: Checkpoint, matrices: Sequence[str]) -> None:
    """InputError unless both are one architecture and every matrix to compress has one shape in both."""
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        ours, theirs = (checkpoint.config.get(key) for checkpoint in (base, finetuned))
        if ours != theirs:
            raise InputError(
                f"base {base.source!r} has {key}={ours}, fine-tuned {finetuned.source!r} has {theirs}; "
                "a delta needs two models of one architecture"
            )
    for here, there, wanted in ((base, finetuned, matrices), (finetuned, base, linear_names(base))):
        missing = [name for name in wanted if name not in here]
        if missing:
            raise InputError(
                f"{here.source!r} lacks {_and_more(missing)} that {there.source!r} has; is it whole, and "
                "the right model?"
            )
    for model, name in itertools.product((base, finetuned), matrices):
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


def _same(base: Checkpoint, finetuned: Checkpoint, name: str) -> bool:
    """Whether the parameter is in both, bit for bit; every value of either is looked at, and NaN is an error."""
    if name not in base or base.spec(name) != finetuned.spec(name):
        for model in (finetuned, base):
            for _ in model.blocks(name) if name in model else ():
                pass
        return False
    pairs = itertools.zip_longest(base.blocks(name), finetuned.blocks(name))
    return all([ours is not None and tuned is not None and torch.equal(ours, tuned) for ours, tuned in pairs])


def _and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def select_matrices(
    linear: Sequence[str],
    owner: str,
    weight_types: Sequence[str] | None = None,
    layer_num: int | None = None,
    weight_name: str | None = None,
) -> list[str]:
    """The names to compress of the `linear` ones that `owner` has: all, or those that the authors' keys spell out."""
    if not linear:
        raise InputError(
            f"{owner!r} has no linear weights under self_attn or mlp; is it a decoder in the Hugging Face layout?"
        )
    if (layer_num is None) != (weight_name is None):
        raise InputError(
            "layer_num and weight_name belong together: the one counts through the other; give both or none"
        )
    known = {weight_type(name) for name in linear}
    if weight_types == []:
        raise InputError(f"weight_types is empty; {owner!r} has {', '.join(sorted(known))}")
    weight_types = known if weight_types is None else weight_types
    for kind in weight_types:
        if kind not in known:
            raise InputError(f"weight_types: {kind!r} is not in {owner!r}, which has {', '.join(sorted(known))}")
    if layer_num is None:
        return [name for name in linear if weight_type(name) in weight_types]
    try:
        wanted = {
            weight_name.format(layer_num=layer, weight_type=kind).removesuffix(".weight") + ".weight"
            for layer in range(layer_num)
            for kind in weight_types
        }
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"weight_name={weight_name!r} is no pattern: in braces it may hold layer_num and weight_type only ({error})"
        ) from error
    unknown = sorted(wanted - set(linear))
    if unknown:
        layers = 1 + max(layer_of(name) for name in linear)
        raise InputError(
            f"{unknown[0]} is not among the linear weights of {owner!r}, which has {layers} layers; "
            f"check layer_num={layer_num} and weight_name={weight_name!r}"
        )
    return [name for name in linear if name in wanted]


def compare(base: Checkpoint, finetuned: Checkpoint, matrices: Sequence[str]) -> Comparison:
    """Reads both models once: NaN and Inf are errors, and what did not change need not be stored."""
    check_comparable(base, finetuned, matrices)
    chosen, unchanged, extras = set(matrices), set(), []
    for name in progress(finetuned.names(), what="checking weights", unit="tensor"):
        if _same(base, finetuned, name):
            unchanged.add(name)
        elif name not in chosen:
            extras.append(name)
    if len(unchanged) == len(finetuned.names()):
        log.warning("base %r and fine-tuned %r are identical: the delta is empty", base.source, finetuned.source)
    dropped = [name for name in base.names() if name not in finetuned]
    return Comparison(base, finetuned, list(matrices), frozenset(unchanged), extras, dropped)
