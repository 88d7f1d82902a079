"""What passes between an engine and its backends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from impart.overlay import Overlay


@dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt."""

    text: str  # without the stop string and what follows it
    tokens: int  # generated, the end-of-sequence token included
    finish_reason: str  # "stop" (a stop string or the end of sequence) or "length"


class Backend(Protocol):
    """A loaded model."""

    def stream(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: tuple[str, ...]
    ) -> Iterator[tuple[int, Completion]]:
        """(position, completion) in the order in which they finish. `prompts`: token ids of each."""
        ...

    def swap(self, overlay: Overlay) -> None:
        """Takes another delta over the base of the one that is loaded."""
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...
