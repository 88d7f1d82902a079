"""Whether a model was fine-tuned from a base at all, found on a sample before anything long begins."""

import logging
import math

import torch

from impart.architecture import linear_names, rope_theta
from impart.checkpoint import Checkpoint
from impart.errors import InputError
from impart.files import user_path

log = logging.getLogger(__name__)

# Norm of a delta over the norm of the base. Fine-tuning leaves 0.005 to 0.3; the base of CodeLlama was trained on 500
# billion tokens more than Llama 2's, which moves weights by as much as they were large, and two models that have
# nothing to do with each other are at 1.4.
LARGEST_RATIO, UNRELATED_RATIO = 0.4, 1.2
SAMPLED_MATRICES, SAMPLED_ROWS = 8, 256


def check_pair(base: Checkpoint, finetuned: Checkpoint, force: bool) -> None:
    """InputError, or with `force` a warning, unless the second model seems to be fine-tuned from the first."""
    if user_path(base.source).resolve() == user_path(finetuned.source).resolve():
        raise InputError(f"{base.source!r} is given as base and as fine-tuned model; there is no delta between the two")
    ratio = delta_ratio(base, finetuned)
    reason = foreign(base, finetuned, ratio, UNRELATED_RATIO)  # a delta from a far base is large, but it is one
    if reason is not None:
        message = f"{finetuned.source!r} does not seem to be fine-tuned from {base.source!r}: {reason}"
        if not force:
            raise InputError(f"{message}. Name the base that it was made from, or add --force to go on nevertheless")
        log.warning("warning: %s. Going on, because of --force", message)
    elif LARGEST_RATIO < ratio < math.inf:
        log.warning(
            "%r differs from %r by %.2f times the base's norm, where fine-tuning leaves less than 0.3: is it its base?",
            finetuned.source,
            base.source,
            ratio,
        )
    if _has_template(base) and not _has_template(finetuned):
        log.warning("base %r has a chat template, fine-tuned %r has none: swapped?", base.source, finetuned.source)


def foreign(base: Checkpoint, finetuned: Checkpoint, ratio: float, largest: float = LARGEST_RATIO) -> str | None:
    """Why the model, whose `delta_ratio` is given, cannot be fine-tuned from the base; None where it can."""
    ours, theirs = rope_theta(base.config), rope_theta(finetuned.config)
    if ours != theirs:
        return f"its rotary embeddings have rope_theta={theirs:g}, the base's {ours:g}"
    if largest < ratio < math.inf:  # Inf and NaN are for the check of every value
        return (
            f"its weights differ by {ratio:.2f} times the base's norm, where fine-tuning leaves less than 0.3 (a "
            "model rebuilt from a strongly sparsified delta can also be that far away)"
        )
    return None


def delta_ratio(base: Checkpoint, model: Checkpoint) -> float:
    """Norm of W_model - W_base over the norm of W_base, on rows of evenly spaced linear weights."""
    names = [name for name in linear_names(base) if name in model] or [name for name in base.names() if name in model]
    step = max(1, len(names) // SAMPLED_MATRICES)
    squares = torch.zeros(2, dtype=torch.float64)
    for name in names[::step]:
        ours, theirs = base.tensor(name), model.tensor(name)
        stride = max(1, len(ours) // SAMPLED_ROWS)
        ours, theirs = ours[::stride].double(), theirs[::stride].double()
        squares += torch.stack([(theirs - ours).square().sum(), ours.square().sum()])
    return float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 0.0


def _has_template(model: Checkpoint) -> bool:
    if (model.path / "chat_template.jinja").is_file():
        return True
    config = model.path / "tokenizer_config.json"
    return config.is_file() and b'"chat_template"' in config.read_bytes()
