"""One benchmark on one model: generate what is missing, score it, save it."""

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.engine.completion import Completion
from eval.engine.engine import Engine, chosen_backend, chosen_dtype
from eval.engine.models import ModelSource, model_name
from eval.engine.settings import EngineSettings
from eval.run.data import completions_from
from eval.run.descriptions import Description
from eval.run.first_prompt import check_first_prompt
from eval.run.options import Options
from eval.run.prompts import rendered, template_name
from eval.run.results import Run, mean_score
from eval.scoring.verdict import Verdict
from impart.artifact import is_delta
from impart.checkpoint import check_named
from impart.errors import InputError
from impart.files import sha256_of
from impart.report import progress

log = logging.getLogger(__name__)

Score = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Sequence[Verdict]]


@dataclass(frozen=True)
class Benchmark:
    """What to ask and how to score it."""

    name: str
    items: Sequence[Mapping[str, Any]]  # each with "id"
    prompts: Sequence[str]  # one per item
    max_tokens: int
    stop: tuple[str, ...]
    score: Score  # (items, completions) -> one verdict per item
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else decides the score: data, template, scoring
    summarise: Callable[[Sequence[Verdict]], Mapping[str, Any]] = mean_score  # -> {"score", "stderr", ...} in per cent
    special_tokens: bool = True  # whether the tokenizer adds its own to the prompts: begin-of-sequence


class Engines:
    """The engine of the model that is asked, started when something has to be generated; a context manager.

    A delta after a delta over the same base is swapped into the running engine.
    """

    def __init__(self) -> None:
        self._running: Engine | None = None

    def of(self, source: ModelSource, settings: EngineSettings) -> Engine:
        """An engine that answers as the model."""
        weights = source.weights()
        if self._running is not None and self._running.settings == settings and self._running.can_swap(weights):
            self._running.swap(weights)
            return self._running
        self.close()
        self._running = Engine(weights, settings)
        return self._running

    def close(self) -> None:
        """Ends the engine that runs."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def run_models(benchmarks: Callable[[Options], Sequence[Benchmark]], options: Options) -> None:
    """Every model of the command line one after the other, each result printed as soon as it is there.

    benchmarks: what to ask the model of the options, whose tokenizer may decide the prompts.
    """
    check_named(*(model for model in options.models if not is_delta(model)))
    with Engines() as engines:
        for model in options.models or (None,):
            one = dataclasses.replace(options, models=(model,) if model else ())
            for result in run_benchmarks(benchmarks(one), one, engines):
                print_result(result, one)


def run_benchmarks(benchmarks: Sequence[Benchmark], options: Options, engines: Engines) -> list[dict]:
    """The results of one model."""
    if options.rescore:
        return [rescored(benchmark, options) for benchmark in benchmarks]
    source = ModelSource(options.model, options.base_model)
    backend = chosen_backend(options.backend)
    dtype = chosen_dtype(backend, source.dtype) if options.dtype == "auto" else options.dtype
    settings = EngineSettings(
        backend,
        dtype,
        options.max_model_len,
        options.tensor_parallel,
        options.gpu_memory,
        options.batch_size,
        options.seed,
    )
    engine = functools.cache(lambda: engines.of(source, settings))
    return [evaluate(benchmark, options, engine, source, settings) for benchmark in benchmarks]


def evaluate(
    benchmark: Benchmark, options: Options, engine: Callable[[], Engine], source: ModelSource, how: EngineSettings
) -> dict:
    """The result of this configuration: read where it is done, else generated (or continued), scored and saved."""
    run = Run(options.results_dir, result_name(options), benchmark.name, options.seed)
    settings = (
        settings_of(benchmark)
        | source.identity
        | {"backend": how.backend, "dtype": how.dtype, "max_model_len": how.max_model_len}
    )
    result = run.finished(settings, overwrite=options.overwrite)
    if result:
        log.info("%s: already done; --overwrite runs it again", run.result_path)
        return result
    done = run.start(settings, overwrite=options.overwrite)
    missing = [position for position, item in enumerate(benchmark.items) if item["id"] not in done]
    if missing:
        check_first_prompt(
            benchmark.items[missing[0]], benchmark.prompts[missing[0]], engine().tokenizer, benchmark.special_tokens
        )
        stream = engine().stream(
            [benchmark.prompts[position] for position in missing],
            max_tokens=benchmark.max_tokens,
            stop=benchmark.stop,
            names=[benchmark.items[position]["id"] for position in missing],
            special_tokens=benchmark.special_tokens,
        )
        started = time.monotonic()
        for position, completion in progress(_Sized(stream, len(missing)), what=benchmark.name, unit="answer"):
            item_id = benchmark.items[missing[position]]["id"]
            done[item_id] = completion
            run.add(item_id, completion, time.monotonic() - started)
        run.seconds += time.monotonic() - started
    return save_scored(
        benchmark,
        run,
        settings,
        [done[item["id"]] for item in benchmark.items],
        {
            "source": source.source,
            "delta": source.delta_facts,
            "engine": {"tensor_parallel": how.tensor_parallel, "batch_size": how.batch_size},
        },
    )


def rescored(benchmark: Benchmark, options: Options) -> dict:
    """Scores the completions of the model's saved run again and replaces its score; generates nothing."""
    if options.rescore_file:
        return rescored_file(benchmark, options.rescore_file, options)
    run = Run(options.results_dir, result_name(options), benchmark.name, options.seed)
    result, samples = run.saved()
    wanted = [(item["id"], prompt) for item, prompt in zip(benchmark.items, benchmark.prompts, strict=True)]
    if [(sample["id"], sample["prompt"]) for sample in samples] != wanted:
        raise InputError(
            f"--rescore: {run.samples_path} has other items or prompts ({len(samples)} saved, "
            f"{len(wanted)} now); give the same --data, --limit, --subset and --chat_template as that run"
        )
    completions = [Completion(sample["completion"], sample["tokens"], sample["finish_reason"]) for sample in samples]
    run.seconds = result["seconds"]
    more = {key: result[key] for key in ("source", "delta", "engine") if key in result}
    return save_scored(benchmark, run, result["settings"] | settings_of(benchmark), completions, more)


def rescored_file(benchmark: Benchmark, file: Path, options: Options) -> dict:
    """Scores the completions of --rescore FILE, which has one of some or all of the items."""
    texts = dict(completions_from(file, [item["id"] for item in benchmark.items]))
    chosen = [position for position, item in enumerate(benchmark.items) if item["id"] in texts]
    part = dataclasses.replace(
        benchmark,
        items=[benchmark.items[position] for position in chosen],
        prompts=[benchmark.prompts[position] for position in chosen],
    )
    return scored_file(part, [texts[item["id"]] for item in part.items], file, options)


def scored_file(part: Benchmark, texts: Sequence[str], file: Path, options: Options) -> dict:
    """Scores the completions of --rescore FILE, one per item of `part`, and saves the result under `result_name`."""
    run = Run(options.results_dir, result_name(options), part.name, options.seed)
    settings = settings_of(part) | {"completions": file.name, "completions_sha256": sha256_of(file)}
    run.finished(settings, overwrite=options.overwrite)  # refuses to replace the result of anything else
    completions = [Completion(text, 0, "unknown") for text in texts]
    return save_scored(part, run, settings, completions, {"source": str(file)})


def result_name(options: Options) -> str:
    """What the model is called in the results: --name, else after MODEL, else after the file of completions."""
    file = options.rescore_file
    return options.name or (
        file.name.partition(".")[0] if file and not options.model else model_name(options.model or "")
    )


def prompts_for(
    benchmark: Description, instructions: Sequence[str], options: Options, special_tokens: bool = True
) -> tuple[str, list[str]]:
    """The name of the template that --chat_template or the paper chose, and one prompt per instruction.

    special_tokens: as the benchmark will have it.
    """
    template = template_name(options.chat_template, benchmark.template)
    source = ModelSource(options.model, options.base_model) if template == "auto" and options.model else None
    return template, rendered(template, instructions, source.tokenizer_folder if source else None, special_tokens)


def settings_of(benchmark: Benchmark) -> dict[str, Any]:
    """What decides a benchmark's score besides the model: data, prompts, limits, scoring."""
    prompts = hashlib.sha256(json.dumps(list(benchmark.prompts)).encode()).hexdigest()
    return {
        "n": len(benchmark.items),
        **benchmark.settings,
        "max_tokens": benchmark.max_tokens,
        "stop": list(benchmark.stop),
        "prompts_sha256": prompts,
    }


def save_scored(
    benchmark: Benchmark,
    run: Run,
    settings: Mapping[str, Any],
    completions: Sequence[Completion],
    more: Mapping[str, Any],
) -> dict:
    """Scores the completions and writes the two result files."""
    verdicts = benchmark.score(benchmark.items, [completion.text for completion in completions])
    samples = [
        {
            "id": item["id"],
            "prompt": prompt,
            "completion": completion.text,
            "extracted": verdict.extracted,
            "gold": verdict.gold,
            "correct": verdict.correct,
            "detail": verdict.detail,
            "tokens": completion.tokens,
            "finish_reason": completion.finish_reason,
        }
        for item, prompt, completion, verdict in zip(
            benchmark.items, benchmark.prompts, completions, verdicts, strict=True
        )
    ]
    return run.finish(
        samples,
        settings=settings,
        tokens=sum(completion.tokens for completion in completions),
        summary=benchmark.summarise(verdicts),
        more=more,
    )


def print_result(result: Mapping[str, Any], options: Options) -> None:
    """One line on stdout: what was scored, the score and where the files are."""
    file = options.results_dir / result["model"] / result["benchmark"] / f"{result['seed']}.json"
    of = f" of {result['n']}" if result.get("verdicts", result["n"]) < result["n"] else ""  # a judge may owe some
    n = f"{result.get('verdicts', result['n'])}{of}"
    score = f"{result['score']:.2f}{said_spread(result)}"
    print(f"{result['benchmark']}  {result['model']}  {score}  (n = {n})  {file}")


def said_spread(result: Mapping[str, Any], digits: int = 2) -> str:
    """The 95 % interval of a score, or its standard error where its scorer computes only that; empty without either."""
    if result.get("interval_95"):
        low, high = result["interval_95"]
        return f" (95 % interval {low:.{digits}f}-{high:.{digits}f})"
    return "" if result["stderr"] is None else f" (standard error {result['stderr']:.{digits}f})"


class _Sized:
    """An iterator with a length, which a progress bar needs."""

    def __init__(self, iterator: Iterator, length: int):
        self._iterator, self._length = iterator, length

    def __iter__(self) -> Iterator:
        return iter(self._iterator)

    def __len__(self) -> int:
        return self._length
