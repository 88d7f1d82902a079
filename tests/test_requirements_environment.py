"""requirements/environment.sh: which interpreter a script gets, and that nobody's environment is changed unasked."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = 'source "$0/requirements/environment.sh"; cd "$0"; {}; echo "$PYTHON"'
PACKAGE = "impart-test-gizmo"  # no registry is asked for it: the requirement below names a local file


def variables(**more: object) -> dict[str, str]:
    dropped = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("IMPART_")}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | {name: str(value) for name, value in more.items()}


def bash(*words: object, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *map(str, words)], cwd=ROOT, env=variables(**more), capture_output=True, text=True)


def chosen(call: str, checkout: Path = ROOT, **more: object) -> subprocess.CompletedProcess:
    """Call `find_environment core` or the like as the scripts do; its output is the interpreter's path."""
    return bash("-euo", "pipefail", "-c", CHOSEN.format(call), checkout, **more)


def state(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.lstat().st_mtime_ns for file in folder.rglob("*")}


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A real environment of somebody else's, with a space in its path, without any package and without pip."""
    folder = tmp_path_factory.mktemp("bare") / "their env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def requirements(tmp_path_factory) -> Path:
    """A requirements file that pip can fulfil without a network: one wheel, written here."""
    folder = tmp_path_factory.mktemp("wheel") / "my wheels"
    folder.mkdir()
    name = PACKAGE.replace("-", "_")
    wheel = folder / f"{name}-1-py3-none-any.whl"
    information = f"{name}-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1\n")
        file.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{information}/RECORD", "")
    (folder / "needs.txt").write_text(f"# comment\n{PACKAGE} @ {wheel.as_uri()}\n")
    return folder / "needs.txt"


@pytest.mark.parametrize("call", ["find_environment core", "use_environment core", "use_environment full"])
def test_an_active_environment_that_lacks_packages_is_left_alone(call, bare):
    before = state(bare)
    refused(chosen(call, VIRTUAL_ENV=bare), str(bare), "torch, transformers", "IMPART_INSTALL=yes bash ", call[-4:])
    refused(chosen(call, CONDA_PREFIX=bare), "torch, transformers")
    assert state(bare) == before


@pytest.mark.parametrize(
    "command",
    [
        ("reproduce/table1.sh", "--pairs", "tiny", "--dry-run"),
        ("reproduce/table1.sh", "--dry-run"),
        ("reproduce/table2.sh",),
        ("reproduce/grid_search.sh", "--pairs", "tiny", "--dry-run"),
        ("reproduce/quickstart.sh",),
        ("configs/new_pair.sh", "assets/tiny/base", "assets/tiny/code", "mine"),
        ("tests/run.sh",),
        ("tests/run.sh", "--core"),
    ],
)
def test_no_script_installs_into_an_active_environment(command, bare, tmp_path):
    before = state(bare)
    refused(bash(*command, VIRTUAL_ENV=bare, RUNS=tmp_path / "runs", CONFIGS=tmp_path), "lacks torch")
    assert state(bare) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ("reproduce/table1.sh", "--pairs", "tiny", "--dry-run"),
        ("reproduce/table2.sh",),
        ("configs/new_pair.sh", "assets/tiny/base", "assets/tiny/code", "mine"),
    ],
)
def test_a_plan_makes_no_environment(command, tmp_path):
    missing = tmp_path / "my env"
    done = bash(*command, IMPART_VENV=missing, RUNS=tmp_path / "runs", CONFIGS=tmp_path)
    refused(done, f"no Python environment in {missing}", "environment.sh core")
    assert not list(tmp_path.iterdir())


def test_a_complete_active_environment_is_used_without_pip_and_without_a_stamp(tmp_path):
    """The environment that runs this test, below a path with a space; what pip would write is not there afterwards."""
    folder = tmp_path / "complete env"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    if sys.prefix != sys.base_prefix:
        shutil.copyfile(Path(sys.prefix) / "pyvenv.cfg", folder / "pyvenv.cfg")
    before = state(folder)
    for call in ("find_environment core", "use_environment core"):
        done = chosen(call, VIRTUAL_ENV=folder, IMPART_INSTALL="yes")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout == f"{folder}/bin/python\n"
    assert state(folder) == before


def test_a_stamp_spares_the_look_at_the_packages(bare, tmp_path):
    folder = tmp_path / "env"
    shutil.copytree(bare, folder, symlinks=True)
    stamped = f'PYTHON=none; fingerprint_of "$(requirements_of core)" > "{folder}/.impart-requirements-core"'
    assert chosen(stamped).returncode == 0
    assert chosen("find_environment core", VIRTUAL_ENV=folder).stdout == f"{folder}/bin/python\n"
    refused(chosen("find_environment full", VIRTUAL_ENV=folder), "lacks torch")  # the core's stamp says nothing of full


def test_an_environment_is_made_once_and_paths_may_have_spaces(tmp_path, requirements):
    checkout = tmp_path / "my checkout"
    shutil.copytree(ROOT / "requirements", checkout / "requirements", ignore=shutil.ignore_patterns("build"))
    for file in ROOT.glob("requirements*.txt"):
        shutil.copyfile(file, checkout / file.name)
    given = {"PYTHON": sys.executable, "IMPART_REQUIREMENTS": requirements}
    refused(chosen("find_environment core", checkout, **given), "environment.sh core")
    assert not (checkout / ".venv").exists()
    first = chosen("use_environment core", checkout, **given)
    python = checkout / ".venv" / "bin" / "python"
    assert first.returncode == 0 and first.stdout == f"{python}\n", first.stderr
    assert "making an environment" in first.stderr and "installing" in first.stderr
    subprocess.run([python, "-c", f"import {PACKAGE.replace('-', '_')}"], check=True)
    before = state(checkout)
    for call in ("find_environment core", "use_environment core"):
        again = chosen(call, checkout, **given)
        assert (again.returncode, again.stdout, again.stderr) == (0, f"{python}\n", "")
    assert state(checkout) == before
    with (checkout / "requirements-core.txt").open("a") as file:
        file.write("# changed\n")
    renewed = chosen(
        "use_environment core", checkout, VIRTUAL_ENV=checkout / ".venv", **given
    )  # activated, but made here
    assert renewed.returncode == 0 and "installing" in renewed.stderr
    installs_only_when_allowed(checkout, requirements)


def installs_only_when_allowed(checkout: Path, requirements: Path) -> None:
    """The environment just made, now as one that the user activated, without the package and its stamp."""
    active = checkout / ".venv"
    subprocess.run([active / "bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", PACKAGE], check=True)
    (active / ".impart-requirements-core").unlink()  # as if the user had made it
    before = state(active)
    given = {"VIRTUAL_ENV": active, "IMPART_REQUIREMENTS": requirements}
    refused(chosen("use_environment core", checkout, **given), f"lacks {PACKAGE};")
    refused(chosen("use_environment core", checkout, **given, IMPART_INSTALL="no"), f"lacks {PACKAGE};")
    refused(chosen("find_environment core", checkout, **given, IMPART_INSTALL="yes"), f"lacks {PACKAGE};")
    assert state(active) == before
    remedy = chosen("use_environment core", checkout, **given).stderr.partition("install with: ")[2]
    pasted = bash("-c", remedy, **given)
    assert pasted.returncode == 0, pasted.stderr
    subprocess.run([active / "bin/python", "-c", f"import {PACKAGE.replace('-', '_')}"], check=True)


def test_what_cannot_be_an_environment_is_refused(bare, tmp_path):
    refused(chosen("use_environment core", VIRTUAL_ENV=tmp_path), f"{tmp_path}", "no bin/python")
    refused(bash("requirements/environment.sh", "everything"), "usage: bash requirements/environment.sh core|full")
    refused(chosen("use_environment core", VIRTUAL_ENV=bare, IMPART_REQUIREMENTS="no.txt"), "'no.txt'")


@pytest.mark.parametrize(
    "script",
    [
        "benchmarks/gpu.sh",
        "configs/new_pair.sh",
        "reproduce/all.sh",
        "reproduce/small_pair.sh",
        "tests/lint.sh",
        "tests/run.sh",
    ],
)
def test_a_script_explains_itself_in_any_environment(script, bare):
    done = bash(script, "--help", VIRTUAL_ENV=bare)
    assert (done.returncode, done.stderr) == (0, "") and f"bash {script}" in done.stdout and "set -e" not in done.stdout


def test_missing_reads_the_files_that_a_file_includes(tmp_path):
    (tmp_path / "all.txt").write_text(
        "-c none.txt\n-r more.txt\n./stubs/vllm\nimpart-absent[x]==1.*  # why\npyyaml>=1\n"
    )
    (tmp_path / "more.txt").write_text("numpy>=1\nimpart.absent.too>=1\n")
    command = [sys.executable, ROOT / "requirements" / "missing.py", tmp_path / "all.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "lacks impart.absent.too, impart-absent\n")


def test_missing_names_versions_outside_their_range(tmp_path):
    """The versions are those of the environment that runs this; a local part such as 2.13.0+cpu is no difference."""
    torch, numpy = version("torch"), version("numpy")
    file = tmp_path / "all.txt"
    file.write_text(f"torch=={torch.partition('+')[0]}\nnumpy>=1000,<1001\npyyaml>=1\nimpart-absent\n")
    command = [sys.executable, ROOT / "requirements" / "missing.py", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"lacks impart-absent and has numpy {numpy} (>=1000,<1001 is needed)\n"
    done = subprocess.run([*command, "--any-version"], capture_output=True, text=True)
    assert done.stdout == "lacks impart-absent\n"


def test_versions_outside_their_range_need_a_word_of_the_user(tmp_path):
    file = tmp_path / "needs.txt"
    file.write_text("numpy>=1000\n")
    given = {"VIRTUAL_ENV": sys.prefix, "IMPART_REQUIREMENTS": file}
    for call in ("find_environment core", "use_environment core"):
        refused(chosen(call, **given), f"has numpy {version('numpy')} (>=1000 is needed)", "IMPART_INSTALL=skip")
        accepted = chosen(call, **given, IMPART_INSTALL="skip")
        assert (accepted.returncode, accepted.stderr) == (0, "")
        refused(chosen(call, **given, IMPART_INSTALL="1"), "yes, no or skip, not '1'")
    file.write_text("impart-absent\n")
    refused(chosen("use_environment core", **given, IMPART_INSTALL="skip"), "lacks impart-absent")


def test_every_package_of_the_core_is_a_range_that_can_be_tried_at_its_lower_end():
    """With the command of requirements/README.md."""
    command = re.search(r"(?m)^ {4}(sed .*) > \S+$", (ROOT / "requirements" / "README.md").read_text())[1]
    lowest = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ends = [line for line in lowest.splitlines() if not line.startswith("#")]
    assert len(ends) > 10 and all(re.fullmatch(r"[a-z]+==[\d.]+", end) for end in ends), ends


def test_whatever_a_test_starts_runs_here_and_may_not_install():
    assert os.environ["VIRTUAL_ENV"] == sys.prefix and os.environ.get("IMPART_INSTALL") != "yes"
    asked = 'source requirements/environment.sh; choose_environment; echo "$ACTIVE"'
    done = subprocess.run(["bash", "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "yes\n"  # a user's own: also the environment that a script made for these tests


def test_every_variable_that_the_suite_reads_is_documented():
    """IMPART_* anywhere; `${NAME` with a default in bash; os.environ in Python."""
    text = (ROOT / "requirements" / "README.md").read_text()
    pattern = re.compile(
        r"""\bIMPART_[A-Z_]+|(?<=\$\{)[A-Z][A-Z_]+(?=:?[-?=])|(?<=environ\[")\w+|(?<=environ\.get\(")\w+"""
    )
    files = [
        file for room in ROOT.iterdir() if room.name[0] != "." and room.name != "tests" for file in room.rglob("*")
    ]
    read = {
        name: file.name
        for file in [*files, *ROOT.glob("*.py"), *ROOT.glob("tests/*.sh")]
        if file.suffix in (".sh", ".py")
        for name in pattern.findall(file.read_text())
    }
    assert len(read) > 20
    assert {name: file for name, file in read.items() if f"`{name}`" not in text} == {}


def test_outsiders_and_hooks_check_what_every_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["core"]
    steps = "\n".join(step.get("run", "") for step in workflow["steps"])
    every_change = (ROOT / ".ci" / "run").read_text()
    for text in (steps, every_change):
        assert text.index("bash tests/lint.sh") < text.index("bash tests/run.sh")
        assert all((ROOT / script).is_file() for script in re.findall(r"bash (\S+\.sh)", text))
    assert "bash requirements/environment.sh core" in steps and "bash tests/run.sh --core" in steps
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "tests" / "lint.sh").read_text()
    assert all(f"-m {hook['entry'].replace(' --force-exclude', '')}" in lint for hook in hooks)
    tools = (ROOT / "requirements-dev.txt").read_text().splitlines()[1:]
    assert all("==" in tool and "*" not in tool for tool in tools)  # another ruff lays the code out in another way
