"""rho: how far a fine-tuned model is from its base, by which compression gets harder."""

from pathlib import Path

from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint


def rho(base: Path, tuned: Path) -> float:
    """Mean over the linear weights of norm(tuned - base) / norm(base)."""
    old, new = open_checkpoint(str(base)), open_checkpoint(str(tuned))
    names = linear_names(old)
    return sum(_relative(old.tensor(name).float(), new.tensor(name).float()) for name in names) / len(names)


def _relative(old, new) -> float:
    return float((new - old).norm() / old.norm())
