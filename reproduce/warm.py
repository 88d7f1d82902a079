"""Runs scripts of the suite one after another, each in a fork of a process that has imported torch and transformers.

Starting Python with both takes longer than most steps of the tiny pair do. `reproduce/running.py` starts this script
where one thread serves the models best, once for each step at a time, and gives it commands on stdin: a JSON list of
the script with its arguments, and the file that its output goes to. It answers each with the exit code on a line.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


class WarmPython:
    """The process of a slot, started when it is first needed."""

    def __init__(self, python: str, root: Path, environment: dict[str, str], locks: Sequence[int]):
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve())],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=list(locks),
        )

    def run(self, command: Sequence[str], output: Path) -> int:
        """The exit code of a script with its arguments; negative for a signal, and 1 where the process itself ended."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([list(command), str(output)]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return 1
        return int(self._process.stdout.readline() or 1)

    def close(self) -> None:
        """Ends the process, which waits for nothing but its stdin."""
        self._process.communicate()


def serve() -> None:
    """Commands from stdin, until it ends."""
    import torch  # noqa: F401 - what the steps share
    import transformers.models.auto.modeling_auto  # noqa: F401 - models and tokenizers are imported where they are named
    import transformers.models.auto.tokenization_auto  # noqa: F401

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    for line in sys.stdin:
        command, output = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run_script(command, output))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_script(command: Sequence[str], output: str) -> int:
    """One script, as `python script arguments` runs it, in this process; its exit code."""
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = list(command)
    try:
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
