"""Whether the models can be merged at all, checked before the first weight is merged."""

import logging
import statistics
from collections.abc import Sequence

from impart.architecture import STRUCTURE, is_vocabulary
from impart.errors import InputError
from impart.relation import delta_ratio, foreign
from merge.models import CheckpointModel, DeltaModel

log = logging.getLogger(__name__)

SUSPICIOUS_RATIO, TIMES_THE_OTHERS = 0.1, 10  # of the delta's norm over the base's


def check_architectures(base: CheckpointModel, models: Sequence[CheckpointModel | DeltaModel]) -> None:
    """InputError that names the first difference in architecture, tensors or shapes between a model and the base."""
    for model in models:
        for key in STRUCTURE:
            ours, theirs = base.config.get(key), model.config.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise InputError(
                    f"model {model.name!r} ({model.source}) has {key}={theirs}, the base ({base.source}) "
                    f"has {ours}; only models of one architecture and size can be merged"
                )
        for name in base.names():
            if name not in model:
                raise InputError(
                    f"model {model.name!r} ({model.source}) has no tensor {name}, which the base "
                    f"({base.source}) has; only models of one architecture can be merged"
                )
            ours, theirs = base.shape(name), model.shape(name)
            if ours != theirs and not (is_vocabulary(name) and ours[1:] == theirs[1:]):
                raise InputError(
                    f"{name} is {tuple(theirs)} in model {model.name!r} ({model.source}), {tuple(ours)} "
                    f"in the base ({base.source}); only models of one architecture and size can be merged"
                )
        for name in model.names():
            if name not in base:
                raise InputError(
                    f"model {model.name!r} ({model.source}) has a tensor {name}, which the base "
                    f"({base.source}) lacks; only models of one architecture can be merged"
                )


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
        if not force:
            raise InputError(f"{message} Give models of this base only, or --force to merge it nevertheless")
        log.warning("warning: %s Merging it nevertheless, because of --force", message)
    return ratios


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
