"""Fixtures that many tests share: a small pair of models and its SVD, and two ways to run a script."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import llama_pair

ROOT = Path(__file__).resolve().parents[1]

# Scripts that a test starts run in the interpreter that runs the tests, and may not install anything into it.
os.environ["VIRTUAL_ENV"] = sys.prefix
os.environ["IMPART_VENV"] = os.devnull  # or an environment that a script made would be theirs, to install into
if os.environ.get("IMPART_INSTALL") == "yes":
    del os.environ["IMPART_INSTALL"]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices are fastest on one thread, and a script called in process may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory):
    """Nothing of the tests' models stays in the user's cache."""
    os.environ["IMPART_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def environment(cache_of_the_tests) -> dict[str, str]:
    """For subprocesses: offline, one thread, without the caller's launcher variables."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def vllm_environment(environment) -> dict[str, str]:
    """The same for vLLM on a CPU: a small cache and no pinning, so that it starts soon and shares the machine."""
    quick = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    return environment | quick


@pytest.fixture(scope="session")
def script(environment) -> Callable[..., Ended]:
    """`script("delta.py", "--info", path)` runs a script of the repository as a user would, one of bash likewise."""

    def run(file: str | Path, *arguments: object, cwd: Path = ROOT) -> Ended:
        interpreter = "bash" if Path(file).suffix == ".sh" else sys.executable
        done = subprocess.run(
            [interpreter, str(ROOT / file), *map(str, arguments)],
            cwd=cwd,
            env={**environment, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def called(monkeypatch, capsys) -> Callable[..., Ended]:
    """`called(delta.main, "--info", path)`: the same in this process, with the exit code that `run` makes of it."""
    from impart.errors import run

    def call(main: Callable[[Sequence[str]], None], *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            run(main)
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A base and a fine-tuned Llama of two layers with grouped key/value heads, in bf16."""
    return llama_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def svd_delta(pair, tmp_path_factory) -> Path:
    """The full-rank fp32 SVD of the pair's delta, as delta.py --svd writes it."""
    import delta

    path = tmp_path_factory.mktemp("svd") / "delta.pt"
    delta.main(
        [
            "--svd",
            "--base_model",
            str(pair[0]),
            "--finetuned_model",
            str(pair[1]),
            "--dtype",
            "fp32",
            "--save_path",
            str(path),
            "--threads",
            "1",
        ]
    )
    return path


@pytest.fixture(scope="session")
def modules() -> dict[str, str]:
    """Path -> text of every Python file of the suite but its tests, for tests that look for a second home of a fact."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return {
        name: (ROOT / name).read_text()
        for name in filter(None, names)
        if not name.startswith("tests/") and (ROOT / name).is_file()
    }


@pytest.fixture
def copy_of_the_suite(tmp_path) -> Path:
    """The repository's tracked files in a folder of their own, for tests that add a file to it."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = tmp_path / "suite" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    return tmp_path / "suite"


@pytest.fixture(scope="session")
def tiny_pair() -> list[str]:
    """The keys of the tiny pair's code model, from any copy of the suite."""
    return ["base_model=assets/tiny/base", "ftm_dir=assets/tiny/code"]


@pytest.fixture(scope="session")
def tiny_deltas(tmp_path_factory) -> Callable[..., Path]:
    """`tiny_deltas("lowrank", "math")`: the tiny pair's delta by a row's method, made once a session."""
    from sparsify import sparsify

    folder = tmp_path_factory.mktemp("tiny")

    def made(row: str, skill: str, ratio: int = 4, *settings: str) -> Path:
        path = folder / "_".join((row, skill, str(ratio), *settings))
        if not path.is_dir():
            rows = ("--config", f"configs/rows/{row}.yaml", "--config", f"configs/tiny/{skill}/pair.yaml")
            sparsify.main([*rows, f"compression_ratio={ratio}", f"save_dir={path}", "--threads", "1", *settings])
        return path

    return made
