"""Puts another delta in the place of the one that a running server answers for; the base stays where it is.

    python serve/swap.py DELTA                                   the server of `serve/serve.py ... --swappable`
    python serve/swap.py DELTA --url http://host:8001            DELTA as that machine calls it

Requests under way are answered by the old delta, later ones wait for the new one, and nothing that was computed with
the old weights is reused. A delta that does not fit is refused in one line, and the old one goes on serving.
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as `python serve/swap.py`: import from the repository root, not from serve/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, reason_of, run

URL = "http://localhost:8000"


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("delta", metavar="DELTA", help="folder of a delta artifact, on the server's machine")
    parser.add_argument("--url", default=URL, help=f"the server's address (default: {URL})")
    given = parser.parse_args(arguments)
    local = Path(given.delta).expanduser()
    swap(str(local.resolve()) if local.is_dir() else given.delta, given.url)
    print(f"{given.url} answers with {given.delta}")


def swap(delta: str, url: str = URL) -> None:
    """Swaps the delta of the server at `url`. InputError when it cannot be reached, or refuses."""
    post(url, "/pause?mode=wait")
    try:
        answer = post(url, "/collective_rpc", {"method": "swap_delta", "args": [delta]})
        refusals = [text for text in answer["results"] if text is not None]
        if refusals:
            raise InputError(refusals[0])
        if not post(url, "/reset_prefix_cache")["success"]:
            raise InputError(f"{url} has loaded {delta!r} but keeps its prefix cache; give the command again")
    finally:
        post(url, "/resume")


def post(url: str, path: str, body: Any = None) -> Any:
    """The JSON that the server answers."""
    data = json.dumps(body or {}).encode()
    try:
        request = urllib.request.Request(url.rstrip("/") + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{url} does not swap deltas ({error.code} at {path}); start it with serve/serve.py DELTA --swappable"
        ) from error
    except (OSError, ValueError) as error:  # no server, no HTTP, no URL
        raise InputError(f"no server answers at {url} ({reason_of(error)}); --url gives another address") from error


if __name__ == "__main__":
    run(main)
