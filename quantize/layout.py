"""What transformers makes of a checkpoint's tensors: which parameter each becomes, alone or together with others.

Hubs have the experts of a Mixtral or Qwen3-MoE one by one, transformers runs them as one 3-D parameter; its own rules
for loading say how the one becomes the other, and they are applied here to one layer at a time.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from impart.checkpoint import Checkpoint
from impart.matrices import split_name

EXPERT = re.compile(r"\.experts\.(\d+)\.")


class Layout:
    """The names of a model's parameters for those of a checkpoint, and the values that loading gives them."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint):
        self._model = model
        rules, known = get_model_conversion_mapping(model), model.state_dict()
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._converters = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        self._targets: dict[str, tuple[str, str | None]] = {}  # stored tensor -> parameter, pattern of its converter
        self._sources: dict[str, list[str]] = {}  # parameter -> stored tensors
        for name in sorted(checkpoint.names(), key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
            if target not in known and name in known:
                target, pattern = name, None
            if target in known:
                self._targets[name] = target, pattern
                self._sources.setdefault(target, []).append(name)

    def parameter(self, name: str) -> str | None:
        """The parameter that a stored tensor, or the one that a matrix lies in, goes to; None where it goes to none."""
        found = self._targets.get(split_name(name)[0])
        return found[0] if found else None

    def expert(self, name: str) -> int | None:
        """The number of the expert that a matrix belongs to, by its slice or by its name."""
        index, found = split_name(name)[1], EXPERT.search(name)
        return index if isinstance(index, int) else int(found[1]) if found else None

    def stored_below(self, prefix: str) -> list[str]:
        """The stored tensors of all parameters whose names start so."""
        return [name for name, (target, _) in self._targets.items() if target.startswith(prefix)]

    def together(self, name: str) -> list[str]:
        """The stored tensors that make the same parameter as this one."""
        return self._sources[self._targets[name][0]]

    def made(self, name: str) -> list[str]:
        """The parameters that are made with this stored tensor."""
        target, pattern = self._targets[name]
        if pattern is None:
            return [target]
        first, *others = self._converters[pattern].target_patterns
        return [target, *(target.replace(first, other) for other in others)]

    def values(self, name: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and their values, made of this stored tensor and those that belong together with it."""
        target, pattern = self._targets[name]
        if pattern is None:
            return {target: stored[name]}
        converter: Any = deepcopy(self._converters[pattern])
        for source in self.together(name):
            converter.add_tensor(target, source, self._targets[source][1], stored[source])
        found = converter.convert(target, model=self._model, config=self._model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in found.items()}
