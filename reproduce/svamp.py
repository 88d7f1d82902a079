"""SVAMP, the paper's validation set for math, in the format of eval/gsm8k.py.

    python reproduce/svamp.py SVAMP.json svamp.jsonl

Reads the public file (data/SVAMP.json of github.com/arkilpatel/SVAMP: a JSON array with Body, Question and Answer) and
writes one object a line with `question` and `answer`, the number after ####.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/svamp.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, reason_of, run
from impart.files import write_atomically
from impart.records import read_records


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, help="SVAMP.json")
    parser.add_argument("target", type=Path, help="the .jsonl that is written")
    flags = parser.parse_args(arguments)
    items = []
    for place, item in read_records(flags.source):
        try:
            items.append(converted(item))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{flags.source}, {place}: not SVAMP's Body, Question and Answer ({reason_of(error)})"
            ) from error
    write_atomically(flags.target, "".join(json.dumps(item) + "\n" for item in items).encode())
    print(f"{flags.target}: {len(items)} items")


def converted(item: dict) -> dict[str, str]:
    """One item; some bodies lack their full stop."""
    body = item["Body"].strip()
    body += "" if body.endswith((".", "?", "!", ",")) else "."
    return {"question": f"{body} {item['Question'].strip()}", "answer": f"#### {float(item['Answer']):g}"}


if __name__ == "__main__":
    run(main)
