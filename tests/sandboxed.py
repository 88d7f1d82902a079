"""Protections of the sandbox that this machine offers, and one hostile program between two good ones."""

import pytest

from eval.sandbox import Layers, Outcome, run_programs
from eval.sandbox import pool as sandbox

STRONGEST = sandbox.strongest_layers()
KINDS = {
    "strongest": STRONGEST,
    "filter only": Layers(namespaces=False, filter=True, user=False),
    "namespaces only": Layers(namespaces=True, filter=False, user=STRONGEST.user),
    "audit hook only": Layers(namespaces=False, filter=False, user=False),
}


def offered(layers: Layers) -> bool:
    return not (layers.namespaces and not STRONGEST.namespaces or layers.filter and not STRONGEST.filter)


each_protection = pytest.mark.parametrize(
    "layers",
    [
        pytest.param(layers, id=name, marks=pytest.mark.skipif(not offered(layers), reason="this system lacks it"))
        for name, layers in KINDS.items()
    ],
)


def one(program: str, layers: Layers = STRONGEST, **limits) -> Outcome:
    """The outcome of `program`, between two good programs that must not notice it."""
    before, outcome, after = run_programs(
        ["assert True", program, "assert True"], layers=layers, workers=1, **{"timeout_s": 5.0, **limits}
    )
    assert before.passed and after.passed
    return outcome
