"""One benchmark on one model: generate what is missing, score it, save it. The scripts say what, this says in which order."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.generate import Engine, EngineSettings
from eval.options import Options
from eval.results import Completion, Run, Verdict, mean_score
from impart.errors import InputError

log = logging.getLogger(__name__)

Score = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Sequence[Verdict]]


@dataclass(frozen=True)
class Benchmark:
    """What to ask and how to score it."""

    name: str
    items: Sequence[Mapping[str, Any]]   # each with "id"
    prompts: Sequence[str]               # one per item
    max_tokens: int
    stop: tuple[str, ...]
    score: Score                         # (items, completions) -> one verdict per item
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else decides the score: data, template, scoring
    summarise: Callable[[Sequence[Verdict]], Mapping[str, Any]] | None = None  # {"score", "stderr", ...}; None: mean


def evaluate(benchmark: Benchmark, options: Options, engine_for: Callable[[], Engine], model: str,
             identity: Mapping[str, Any]) -> dict:
    """The result, from the saved file when this very configuration is done, else generated, scored and saved.

    engine_for: called only when something has to be generated.   model: the name in the results.
    identity: what says which weights these are (path, fingerprint).
    """
    run = Run(options.results_dir, model, benchmark.name, options.seed)
    settings = {**identity, **benchmark.settings, "max_tokens": benchmark.max_tokens, "stop": list(benchmark.stop)}
    result = run.finished(settings, overwrite=options.overwrite)
    if result:
        log.info("%s: already done; --overwrite runs it again", run.result_path)
        return result
    done = run.start(settings, overwrite=options.overwrite)
    missing = [position for position, item in enumerate(benchmark.items) if item["id"] not in done]
    if missing:
        engine = engine_for()
        started = time.monotonic()
        prompts = [benchmark.prompts[position] for position in missing]
        for position, completion in engine.stream(prompts, max_tokens=benchmark.max_tokens, stop=benchmark.stop):
            item_id = benchmark.items[missing[position]]["id"]
            done[item_id] = completion
            run.add(item_id, completion, time.monotonic() - started)
        run.seconds += time.monotonic() - started
    return save_scored(benchmark, run, settings, [done[item["id"]] for item in benchmark.items])


def save_scored(benchmark: Benchmark, run: Run, settings: Mapping[str, Any], completions: Sequence[Completion]) -> dict:
    """Scores the completions and writes the two result files."""
    verdicts = benchmark.score(benchmark.items, [completion.text for completion in completions])
    if benchmark.summarise:
        summary = dict(benchmark.summarise(verdicts))
    else:
        score, stderr = mean_score(verdicts)
        summary = {"score": score, "stderr": stderr}
    samples = [{"id": item["id"], "prompt": prompt, "completion": completion.text, "extracted": verdict.extracted,
                "gold": verdict.gold, "correct": verdict.correct, "detail": verdict.detail,
                "tokens": completion.tokens, "finish_reason": completion.finish_reason}
               for item, prompt, completion, verdict in
               zip(benchmark.items, benchmark.prompts, completions, verdicts, strict=True)]
    return run.finish(samples, settings=settings, seconds=run.seconds,
                      tokens=sum(completion.tokens for completion in completions), **summary)
