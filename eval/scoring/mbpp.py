"""The two kinds of MBPP: what is asked, what of the answer is tested, the program that tests it, and its verdict.

EvalPlus' file (378 items, `base_input`) is prompted, sanitized and judged by EvalPlus' own functions; only the process
they run in is our sandbox instead of EvalPlus' unprotected one. Google's public files (`test_list`) are asked in the
same form and judged by their own assertions.
"""

import base64
import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt
from evalplus.syncheck import syntax_check

from eval.sandbox import Layers
from eval.scoring.programs import computed, verdicts_on
from eval.scoring.verdict import Verdict

EXTRACTION_SECONDS = 10.0  # for the syntax of one answer, which takes a fraction of one unless it was made to take long
EVALPLUS_SECONDS = 65.0  # EvalPlus' own limits stop a test after a second or so; this is for what they cannot stop
PUBLIC_SECONDS = 30.0  # the reference of item 123 needs more than 10 s on a busy core
MEMORY_MB = 4096  # EvalPlus' limit
MAX_TOKENS = 768  # of EvalPlus' decoders
# The two sentences stand inside a function of EvalPlus (run_codegen), where they cannot be imported from.
INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
RESPONSE = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)
_JUDGE = """\
import base64, contextlib, pickle, types
import evalplus.eval as evaluation
from evalplus.gen.util import trusted_exec

problem, solution = pickle.loads(base64.b64decode({payload!r}))
inputs, entry_point = problem["base_input"], problem["entry_point"]
reference = problem["prompt"] + problem["canonical_solution"]
expected, seconds = trusted_exec(reference, inputs, entry_point, record_time=True,
                                 output_not_none=entry_point in evaluation.MBPP_OUTPUT_NOT_NONE_TASKS)
limits = [max(evaluation.DEFAULT_MIN_TIME_LIMIT, evaluation.DEFAULT_GT_TIME_LIMIT_FACTOR * time) for time in seconds]
evaluation.query_maximum_memory_bytes = lambda: None       # the sandbox limits the memory,
evaluation.create_tempdir = contextlib.nullcontext         # and has put us into a private folder
status, done = types.SimpleNamespace(value=-1), types.SimpleNamespace(value=0)
details = [False] * len(inputs)
evaluation.unsafe_execute("mbpp", entry_point, solution, inputs, expected, limits, problem["atol"], True, status,
                          details, done)
assert status.value == evaluation._SUCCESS and all(details), f"EvalPlus: base test {{done.value}} of {{len(inputs)}}"
"""
_EXTRACTION = "import itertools\nfrom evalplus.syncheck import syntax_check"
PRELOAD = ("evalplus.eval", "evalplus.gen.util")


def asked(prompt: str, chat: Any | None) -> str:
    """EvalPlus' prompt: the docstring to continue, or its chat form where the tokenizer has a chat template.

    chat: what EvalPlus takes for a tokenizer: `chat_template` and `apply_chat_template`.
    """
    prompt = prompt.strip() + "\n"
    return prompt if chat is None else make_raw_chat_prompt(prompt, INSTRUCTION, RESPONSE, chat)


def stops(direct: bool) -> tuple[str, ...]:
    """EvalPlus' stop strings of a direct completion, or of a chat answer that begins inside a fence."""
    return (*EOS, *(extra_eos_for_direct_completion("mbpp") if direct else ["\n```\n"]))


def solutions_of(
    texts: Sequence[str], prompts: Sequence[str], direct: bool, entry_points: Sequence[str | None]
) -> list[str]:
    """What EvalPlus tests of each answer: tabs as spaces, after its prompt if it continued one, then sanitized.

    Without an entry point only the longest part that parses is taken: EvalPlus' pruning of what the function does not
    seem to need takes away classes and helpers of six of the public references (367, 512, 601, 630, 927, 940).
    An answer at which EvalPlus or Python's own parser gives up, or that takes too long, is tested as it is.
    """
    texts = [text.replace("\t", "    ") for text in texts]
    codes = [prompt.strip() + "\n" + text if direct else text for text, prompt in zip(texts, prompts, strict=True)]
    solutions = computed(
        (longest_code, sanitized),
        list(zip(codes, entry_points, strict=True)),
        setup=_EXTRACTION,
        timeout_s=EXTRACTION_SECONDS,
        otherwise=None,
        memory_mb=MEMORY_MB,
        preload=("evalplus.sanitize",),
    )
    return [code if solution is None else solution for code, solution in zip(codes, solutions, strict=True)]


def sanitized(code: str, entry_point: str | None) -> str:
    """EvalPlus' sanitize, with a quicker search for what parses."""
    if entry_point is None:
        return longest_code(code)
    import evalplus.sanitize as evalplus

    evalplus.code_extract = longest_code
    return evalplus.sanitize(code, entrypoint=entry_point)


def longest_code(text: str) -> str:
    """The outcome of EvalPlus' code_extract: of the ranges of lines that parse, the first of those with most text.

    EvalPlus parses every range of two or more lines and compares; here the longest are tried first.
    """
    lines = text.split("\n")
    filled = [0, *itertools.accumulate(bool(line.strip()) for line in lines)]  # lines with text before each line
    ranges = itertools.combinations(range(len(lines)), 2)
    for i, j in sorted(ranges, key=lambda ends: filled[ends[0]] - filled[ends[1] + 1]):
        if filled[j + 1] > filled[i] and syntax_check("\n".join(lines[i : j + 1])):
            return "\n".join(lines[i : j + 1])
    return lines[0]


def evalplus_program(problem: Mapping[str, Any], solution: str) -> str:
    """EvalPlus' check of one solution on the base tests: its oracle, comparison, special cases and time limits."""
    fields = ("prompt", "canonical_solution", "base_input", "entry_point", "atol")
    payload = base64.b64encode(pickle.dumps(({name: problem[name] for name in fields}, solution))).decode()
    return _JUDGE.format(payload=payload)


def public_prompt(item: Mapping[str, Any]) -> str:
    """A public item in EvalPlus' form: the task and its first assertion as a docstring."""
    return f'"""\n{item["text"]}\n{item["test_list"][0]}\n"""\n'


def public_program(item: Mapping[str, Any], solution: str) -> str:
    """The solution, then the item's own set-up and assertions."""
    return "\n".join([solution, item["test_setup_code"], *item["test_list"]])


def judge_evalplus(
    items: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    problems: Mapping[str, dict],
    direct: bool,
    layers: Layers | None = None,
) -> list[Verdict]:
    """EvalPlus' verdict on the base tests of each item, in the sandbox."""
    solutions = solutions_of(texts, [item["prompt"] for item in items], direct, [item["entry_point"] for item in items])
    programs = [
        evalplus_program(problems[item["id"]], solution) for item, solution in zip(items, solutions, strict=True)
    ]
    return verdicts_on(
        solutions, programs, layers=layers, timeout_s=EVALPLUS_SECONDS, memory_mb=MEMORY_MB, preload=PRELOAD
    )


def judge_public(
    items: Sequence[Mapping[str, Any]], texts: Sequence[str], direct: bool, layers: Layers | None = None
) -> list[Verdict]:
    """The verdict of each item's own assertions, in the sandbox."""
    solutions = solutions_of(texts, [public_prompt(item) for item in items], direct, [None] * len(items))
    programs = [public_program(item, solution) for item, solution in zip(items, solutions, strict=True)]
    return verdicts_on(solutions, programs, layers=layers, timeout_s=PUBLIC_SECONDS, memory_mb=MEMORY_MB)
