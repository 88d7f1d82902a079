"""What a scorer says about one completion."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What a benchmark's scorer says about one completion."""

    extracted: Any  # the answer found in the completion, None when there is none
    gold: Any  # what it is compared with
    correct: bool
    detail: str = ""  # why not, where the scorer knows
