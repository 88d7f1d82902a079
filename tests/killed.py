"""Run a script of the repository and kill it, as `kill -9` does, at an exact moment of writing its artifact.

    python tests/killed.py MODULE.FUNCTION before|during|after N SCRIPT ARGUMENTS...

The moment is the N-th call of FUNCTION by MODULE of impart/: `artifact_writer.save_file` writes a shard under its
temporary name, `artifact_writer.write_atomically` writes run.json, then each shard's record, then delta.json, and
`outputs.replace_folder` gives the artifact its name. `during` is for save_file: half of the file is on the disk.
Nothing is caught and no handler runs, so that the disk holds what a killed process leaves.
"""

import importlib
import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    module_name, name = sys.argv[1].split(".")
    when, number = sys.argv[2], int(sys.argv[3])
    sys.argv = sys.argv[4:]
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of tests/
    module = importlib.import_module(f"impart.{module_name}")
    real, calls = getattr(module, name), 0

    def dies(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **keywords)
        if calls == number:
            if when == "during":
                _, file = arguments[:2]
                os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, dies)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
