"""Result files as tables take them: what was compressed how, at which ratio, and which items were right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report.cells import BASE, PERCENT, TUNED, Scored
from eval.report.labels import label_of
from eval.run.descriptions import PAPER
from eval.run.results import RATIO_KEYS, read_lines, read_result

PLAIN = "win_rate"  # AlpacaEval's metric where length control was not at hand


def mark_of(settings: Mapping[str, Any]) -> str:
    """What sets a score apart from one by the paper's rule; empty where nothing does."""
    scoring = settings.get("scoring", PAPER)
    marks = [f"scoring: {scoring}"] * (scoring != PAPER)
    marks += ["plain win rate"] * (settings.get("metric") == PLAIN) + ["with BOS"] * bool(settings.get("bos"))
    return ", ".join(marks)


def read_scored(file: Path) -> Scored:
    """One result with its samples; InputError for a file that is none."""
    result = read_result(file)
    delta = result.get("delta") or {}
    whole = {Path(delta[key]).name: role for key, role in (("base", BASE), ("finetuned", TUNED)) if key in delta}
    settings = delta.get("settings", {})
    ratio = next((settings[key] for key in RATIO_KEYS if settings.get(key) is not None), None)
    others = sorted((key, str(value)) for key, value in settings.items() if key not in RATIO_KEYS and value is not None)
    return Scored(
        benchmark=result["benchmark"],
        model=result["model"],
        method=label_of(delta.get("kind"), delta.get("method")) if delta else None,
        ratio=ratio if delta else None,
        settings=tuple(others),
        score=result["score"],
        byte_ratio=delta.get("linear_ratio"),
        mark=mark_of(result["settings"]),
        per_item=_per_item(file, result),
        measure=result.get("measure", PERCENT),
        backend=str(result["settings"].get("backend", "")),
        dtype=str(result["settings"].get("dtype", "")),
        whole=whole,
    )


def _per_item(file: Path, result: Mapping[str, Any]) -> tuple[float, ...]:
    """Each item's mark or loss: in the result itself where it was exported without its samples."""
    if "per_item" in result:
        return tuple(map(float, result["per_item"]))
    field = "correct" if result.get("measure", PERCENT) == PERCENT else "loss"
    return tuple(float(sample[field]) for sample in read_lines(file.parent / result["samples"], [field]))
