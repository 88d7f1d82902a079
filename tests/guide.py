"""CONTRIBUTING.md as tests read it: the files that it shows, its change of a file, and its commands."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+/\S+\.(?:py|sh|yaml))\n")


@dataclass(frozen=True)
class Guide:
    """What the page shows, in its order."""

    files: dict[str, str]
    commands: tuple[str, ...]
    change: tuple[str, str]  # the lines that the page takes out of impart/architecture.py, and those in their place


def read_guide() -> Guide:
    """Files are blocks whose first line names them; blocks in bash without a name are commands."""
    files, commands, changes = {}, [], []
    for kind, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        if named := FILE.match(text):
            files[named[1]] = text[named.end() :]
        elif kind == "bash":
            commands.append(text)
        elif kind == "diff":
            lines = text.splitlines(keepends=True)[2:]
            changes.append(tuple("".join(line[1:] for line in lines if line[0] == sign) for sign in "-+"))
    (change,) = changes
    return Guide(files, tuple(commands), change)
