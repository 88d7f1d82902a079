"""What becomes of a program in the sandbox: its verdict, which it can neither forge nor escape, and its time."""

import sys
from pathlib import Path

import pytest
from sandboxed import each_protection, one

from eval.sandbox import run_programs
from eval.sandbox.watch import IDLE, PATIENCE, time_left


@each_protection
def test_good_programs_pass_and_keep_their_order(layers):
    programs = [f"assert sum(range({n})) == {n * (n - 1) // 2 + n % 2}" for n in range(20)]
    assert [outcome.passed for outcome in run_programs(programs, layers=layers)] == [n % 2 == 0 for n in range(20)]


def test_nothing_to_run():
    assert run_programs([]) == []


def test_the_reason_of_a_failure_is_one_line():
    assert one("assert 1 == 2, 'not\\nequal'").detail == "failed: AssertionError: not equal"
    assert one("def f(:").detail.startswith("failed: SyntaxError")
    assert one("class E(Exception):\n    def __str__(self): raise ValueError\nraise E()").detail.startswith("failed: E")
    assert len(one("raise ValueError('x' * 10**6)").detail) < 400


LEAVING = [
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "import os; os._exit(0)",
    "quit()",
    "exit(0)",
    "import os, threading; threading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
    "import os; os.abort()",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\nraise ValueError",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.close(3); os._exit(0)",
    "import os\nif os.fork() == 0: os._exit(0)\nraise ValueError",
    "import os, time\nif os.fork() != 0: time.sleep(1); raise ValueError",
    "def f(): f()\nimport sys; sys.setrecursionlimit(10**8); f()",
    "import builtins; builtins.AssertionError = SystemExit; assert False",
    "import os; os.write(3, b'passed\\n'); os.write(3, b'0' * 32 + b' passed\\n')",
    "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "import sys; sys.excepthook = lambda *a: None; 1 / 0",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "import signal; signal.alarm(1)\nwhile True: pass",
]


@each_protection
def test_leaving_before_the_last_line_never_passes(layers):
    good = ["assert True"] * len(LEAVING)
    outcomes = run_programs([*LEAVING, *good], layers=layers, timeout_s=5.0)
    passed = [program for program, outcome in zip(LEAVING, outcomes, strict=False) if outcome.passed]
    assert not passed and all(outcome.passed for outcome in outcomes[len(LEAVING) :])
    assert all(outcome.detail for outcome in outcomes)


SEND = """
def send(value):
    import os
    for word in (b"passed\\n", b" passed\\n", b"refused: x\\n", b" refused: x\\n"):
        for descriptor in range(3, 9):
            try: os.write(descriptor, value + word)
            except OSError: pass

def search(frame):
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if type(value) is bytes: send(value)
        frame = frame.f_back
"""
FORGERIES = {
    "frames": "import sys\nsearch(sys._getframe())\nraise ValueError",
    "objects": """
import gc
gc.unfreeze()
for thing in gc.get_objects():
    for value in gc.get_referents(thing):
        if type(value) is bytes and 8 < len(value) < 80: send(value)
raise ValueError
""",
    "frames, from another thread": """
import sys, threading
def look():
    while True:
        for frame in sys._current_frames().values(): search(frame)
threading.Thread(target=look, daemon=True).start()
raise ValueError
""",
    "a trace of the caller": """
import sys
def trace(frame, event, argument):
    for name, value in list(frame.f_locals.items()):
        if isinstance(value, bytes): frame.f_locals[name] = b"passed"
    return trace
sys.settrace(trace)
frame = sys._getframe()
while frame: frame.f_trace, frame = trace, frame.f_back
raise ValueError
""",
    "names of the caller": "import sys\nsys._getframe(1).f_globals['_failure'] = lambda e: b'passed'\nraise ValueError",
    "the key's descriptor": "import os\nsend(os.read(4, 99))",
    "a refusal": "send(b'')",
    "readiness": "import os\nos.write(3, b'ready\\n')\nsend(b'')",
}


@each_protection
def test_a_program_cannot_claim_a_verdict_or_end_the_run(layers):
    programs = [*(SEND + text for text in FORGERIES.values()), "assert True"]
    outcomes = run_programs(programs, layers=layers, timeout_s=5.0)
    assert [name for name, outcome in zip(FORGERIES, outcomes, strict=False) if outcome.passed] == []
    assert outcomes[-1].passed


def test_a_program_finds_no_frame_of_the_worker_above_its_own():
    walk = "import sys\nframe = sys._getframe()\nwhile frame: print(frame.f_code.co_name); frame = frame.f_back"
    assert one(walk).output.split() == ["<module>", "_outcome", "run_and_report", "main", "<module>"]


@each_protection
def test_endless_loop_is_ended_by_the_clock(layers):
    assert one("while True: pass", layers, timeout_s=1.0).detail == "timed out after 1 s"
    assert one("import time; time.sleep(1000)", layers, timeout_s=1.0).detail == "timed out after 1 s"
    assert one("try:\n    while True: pass\nexcept BaseException: pass", layers, timeout_s=1.0).passed is False


@pytest.mark.parametrize(
    ("waited", "used", "left"),
    [
        (0.0, 0.0, 2.0),  # seconds by the clock, of the processor, and until to look again, of 2 s
        (0.5, 0.5, 1.5),
        (2.0, 2.0, 0.0),  # computed all the time
        (2.0, 0.0, 0.0),  # waited all the time
        (2.0, 2.0 * IDLE - 1e-6, 0.0),
        (2.0, 2.0 * IDLE + 1e-6, 2.0 - 2.0 * IDLE - 1e-6),  # computes, and has to wait for the processor
        (30.0, 1.0, 1.0),
        (30.0, 1.99, 0.05),  # not asked for more often than this
        (30.0, 2.0, 0.0),
        (2.0 * PATIENCE - 0.5, 1.0, 0.5),
        (2.0 * PATIENCE, 1.0, 0.0),
        (2.0, None, 0.0),  # the system does not say what a process has used
    ],
)
def test_the_time_that_is_left(waited, used, left):
    assert time_left(waited, lambda: used, 2.0) == pytest.approx(left)


@each_protection
def test_a_program_that_has_to_wait_for_the_processor_keeps_its_time(layers):
    """It gets a fifth of it for longer than the limit, as on a busy machine."""
    program = (
        "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end:\n"
        "    slice = time.process_time() + 0.005\n    while time.process_time() < slice: pass\n    time.sleep(0.02)"
    )
    if sys.platform == "linux":  # elsewhere only the clock counts
        assert one(program, layers, timeout_s=1.0).passed


@each_protection
def test_standard_input_is_closed(layers):
    assert one("input()", layers).detail.startswith("failed: EOFError")


@each_protection
def test_the_environment_is_not_the_callers(layers, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program = "import os; print(dict(os.environ)); assert 'sk-secret' not in str(dict(os.environ))"
    outcome = one(program, layers)
    assert outcome.passed, outcome
    assert str(Path.home()) not in outcome.output
    hidden = (
        "try: text = open('/proc/self/environ').read() + open(f'/proc/{__import__(\"os\").getppid()}/environ').read()\n"
        "except OSError: text = ''\nassert 'sk-secret' not in text"
    )
    assert one(hidden, layers).passed
