"""What several rooms need. Importing it says in one line what a Python without the suite's packages lacks."""

import importlib.util
import sys

NEEDED = ("torch", "numpy", "yaml", "safetensors", "zstandard")
_missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    print(
        f"error: {sys.executable} lacks {', '.join(_missing)}: activate the environment that the scripts make "
        "(`source .venv/bin/activate`), or make it with `bash requirements/environment.sh core`",
        file=sys.stderr,
    )
    raise SystemExit(2)
