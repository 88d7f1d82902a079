"""Prints keys of a pair's file, a line each, the parts of a list with spaces between them, for the scripts here.

python reproduce/setting.py tiny/code ratios        -> 8 16 32, or none where the file says nothing of it
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as `python reproduce/setting.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import run
from impart.pair import Pair, load_pair, value_text


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("pair", help="folder of configs/")
    keys = [*Pair.__dataclass_fields__]
    parser.add_argument("keys", nargs="+", choices=keys, metavar="key", help="of its pair.yaml")
    flags = parser.parse_args(arguments)
    pair = load_pair(flags.pair)
    for key in flags.keys:
        print(text(getattr(pair, key)))


def text(value: Any) -> str:
    """As a loop of the shell takes it."""
    if value is None or value == []:
        return "none"  # which no line takes for a number: plan.py refuses it before anything runs
    return " ".join(map(value_text, value)) if isinstance(value, list) else value_text(value)


if __name__ == "__main__":
    run(main)
