"""Whether the models can be merged at all, checked before the first weight is merged."""

import logging
import statistics
from collections.abc import Sequence

from impart.architecture import STRUCTURE, heads, is_vocabulary, stated_difference
from impart.comparison import and_more
from impart.errors import InputError
from impart.relation import delta_ratio, foreign
from merge.models import CheckpointModel, DeltaModel

log = logging.getLogger(__name__)

SUSPICIOUS_RATIO, TIMES_THE_OTHERS = 0.1, 10  # of the delta's norm over the base's


def check_architectures(base: CheckpointModel, models: Sequence[CheckpointModel | DeltaModel]) -> None:
    """InputError that names the first difference in architecture, tensors or shapes between a model and the base."""
    for model in models:
        key = stated_difference(base.config, model.config, STRUCTURE)
        if key is not None:
            raise InputError(
                f"model {model.name!r} ({model.source}) has {key}={model.config[key]}, the base ({base.source}) "
                f"has {base.config[key]}; only models of one architecture and size can be merged"
            )
        lacking, added = differing_heads(base, model)
        for name in [name for name in base.names() if name not in lacking]:
            ours, theirs = base.shape(name), model.shape(name)
            if ours != theirs and not (is_vocabulary(name) and ours[1:] == theirs[1:]):
                raise InputError(
                    f"{name} is {tuple(theirs)} in model {model.name!r} ({model.source}), {tuple(ours)} "
                    f"in the base ({base.source}); only models of one architecture and size can be merged"
                )
        if lacking:
            log.warning("%s lacks the base's head, which counts as unchanged: %s", model.name, and_more(lacking))
        if added:
            log.warning("%s has a head that the base lacks, left out of the merge: %s", model.name, and_more(added))


def differing_heads(base: CheckpointModel, model: CheckpointModel | DeltaModel) -> tuple[list[str], list[str]]:
    """The tensors that only the base has, and that only the model has; InputError where those are no heads."""
    found = []
    for ours, theirs in ((base, model), (model, base)):
        missing, replaceable = [name for name in ours.names() if name not in theirs], heads(ours.names())
        strange = next((name for name in missing if name not in replaceable), None)
        if strange is not None:
            has = "has no tensor" if ours is base else "has a tensor"
            raise InputError(
                f"model {model.name!r} ({model.source}) {has} {strange}, which the base ({base.source}) "
                f"{'has' if ours is base else 'lacks'}; only models of one architecture can be merged"
            )
        found.append(missing)
    return found[0], found[1]


def check_bases(base: CheckpointModel, models: Sequence[CheckpointModel | DeltaModel], force: bool) -> dict[str, float]:
    """The norm of each checkpoint's delta over the base's on a sample of matrices, by model name.

    InputError, or with `force` a warning, for a model that was fine-tuned from another base: then the difference to
    this one is no task vector, and the merged model would be noise.
    """
    ratios = {
        model.name: delta_ratio(base.checkpoint, model.checkpoint)
        for model in models
        if isinstance(model, CheckpointModel)
    }
    for model in models:
        reason = _foreign_delta(base, model) if isinstance(model, DeltaModel) else _foreign(base, model, ratios)
        if reason is None:
            continue
        message = (
            f"model {model.name!r} ({model.source}) does not seem to be fine-tuned from {base.source}: {reason}."
            " Is it of another base, as a CodeLlama-based coder is beside Llama 2?"
        )
        _refuse(message, "Give models of this base only", force)
    return ratios


def check_distinct(models: Sequence[CheckpointModel | DeltaModel], force: bool) -> None:
    """InputError, or with `force` a warning, for one model under two names, which would count twice."""
    first: dict[str, CheckpointModel | DeltaModel] = {}
    for model in models:
        other = first.setdefault(model.identity, model)
        if other is not model:
            message = f"{other.name!r} and {model.name!r} are the same model ({model.source})."
            _refuse(message, f"Give it once, with its weight (--model {model.name}=PATH:2)", force)


def _refuse(message: str, remedy: str, force: bool) -> None:
    if not force:
        raise InputError(f"{message} {remedy}, or --force to merge it nevertheless")
    log.warning("warning: %s Merging it nevertheless, because of --force", message)


def _foreign_delta(base: CheckpointModel, model: DeltaModel) -> str | None:
    """Why the delta is of another base; InputError for one that does not even fit this base."""
    model.delta.check_shapes(base.checkpoint)
    try:
        model.delta.check_base(base.checkpoint)
    except InputError as error:
        return str(error)
    return None


def _foreign(base: CheckpointModel, model: CheckpointModel, ratios: dict[str, float]) -> str | None:
    ratio = ratios[model.name]
    reason = foreign(base.checkpoint, model.checkpoint, ratio)
    if reason is not None:
        return reason
    others = [other for name, other in ratios.items() if name != model.name]
    usual = statistics.median(others) if others else ratio
    if ratio > SUSPICIOUS_RATIO and ratio > TIMES_THE_OTHERS * usual:
        return f"its weights differ by {ratio:.3f} times the base's norm, the other models' by {usual:.4f}"
    return None
