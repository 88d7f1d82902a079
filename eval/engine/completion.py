"""What an engine gives back."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """What an engine answered to one prompt."""

    text: str  # without the stop string and what follows it
    tokens: int  # generated, the end-of-sequence token included
    finish_reason: str  # "stop" (a stop string or the end of sequence) or "length"
