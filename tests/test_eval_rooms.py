"""The rooms of eval/: who may import whom, and that only the engine knows vLLM."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EVAL = Path(__file__).resolve().parents[1] / "eval"
ROOMS = {  # folder -> what its files may import of the project, beside their own room
    "sandbox": (),
    "scoring": ("eval.sandbox", "impart"),
    "engine": ("impart",),
    "run": ("eval.engine", "eval.scoring", "impart"),
}
SCRIPTS = tuple(f"eval.{file.stem}" for file in EVAL.glob("*.py") if "__main__" in file.read_text())


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_goes_up(room):
    project = ("eval", "impart", "sparsify", "quantize", "merge", "serve", "delta", "assets", "reproduce")
    for file in (EVAL / room).glob("*.py"):
        for module in imported(file):
            allowed = (f"eval.{room}", *ROOMS[room])
            assert module == "eval" or within(module, allowed) or not within(module, project), (file, module)


def test_the_sandbox_needs_the_standard_library_only():
    for file in (EVAL / "sandbox").glob("*.py"):
        for module in imported(file):
            assert module.split(".")[0] in {*sys.stdlib_module_names, "eval"}, (file, module)


def test_only_the_engine_knows_vllm():
    knows = {file.relative_to(EVAL).parts[0] for file in EVAL.rglob("*.py") if any(map(is_vllm, imported(file)))}
    assert knows == {"engine"}


def is_vllm(module: str) -> bool:
    return within(module, ("vllm",))


def test_no_script_imports_a_script():
    assert len(SCRIPTS) >= 8
    for file in EVAL.rglob("*.py"):
        assert not [module for module in imported(file) if within(module, SCRIPTS)], file
