"""Runs programs that a language model wrote; see README.md beside this file for what it covers and what not."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.sandbox.pool import Layers, Outcome, SandboxError, required_layers, run_programs, strongest_layers

__all__ = ["Layers", "Outcome", "SandboxError", "required_layers", "run_programs", "strongest_layers"]


def __getattr__(name: str):
    """Imports the pool when it is asked for: the workers, which import this package too, start faster without it."""
    if name in __all__:
        from eval.sandbox import pool

        return getattr(pool, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
