"""Run a script of the repository and kill it, as `kill -9` does, at an exact moment of writing its artifact.

    python tests/killed.py FUNCTION before|during|after N SCRIPT ARGUMENTS...

The moment is the N-th call of FUNCTION in impart/artifact_writer.py: `save_file` writes a shard under its temporary
name, `write_atomically` writes run.json, then each shard's record, then delta.json; `replace_folder` gives the artifact
its name. `during` is for save_file: half of the file is on the disk. Nothing is caught and no handler runs, so what
lies on the disk is what a power cut leaves; tests/whole_runs.py starts it.
"""

import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    name, when, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.argv = sys.argv[4:]
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of tests/
    from impart import artifact_writer

    real, calls = getattr(artifact_writer, name), 0

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

    setattr(artifact_writer, name, dies)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
