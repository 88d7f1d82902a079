"""The evaluations of a plan: which processes ask which models what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.run.descriptions import Description, command, described
from impart.errors import InputError
from impart.pair import load_pair
from reproduce.steps import Command, Step, Wanted, script


@dataclass(frozen=True)
class Merge:
    """How a model is made that is removed again after its evaluation."""

    command: Command
    masked: bool  # by a mask that needs an SVD of every matrix


def evaluations(
    wanted: Wanted,
    asked: Mapping[tuple[str, str], Sequence[str]],
    merges: Mapping[tuple[str, str], Merge],
) -> list[Step]:
    """Models share a few processes, and deltas over one base their engine; a merged model has a step of its own.

    `asked`: (pair, model) -> benchmarks whose result is missing; `merges`: (pair, model) -> how it is made.
    """
    found: list[Step] = []
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # (pair, benchmarks) -> models
    for (name, model), benchmarks in asked.items():
        if (name, model) in merges:
            found.append(of_merged(wanted, name, model, benchmarks, merges[name, model]))
        else:
            groups.setdefault((name, tuple(benchmarks)), []).append(model)
    for (name, benchmarks), models in groups.items():
        count = min(wanted.groups, len(models))
        found += [of_models(wanted, name, models[part::count], benchmarks) for part in range(count)]
    return found


def of_models(wanted: Wanted, name: str, models: Sequence[str], benchmarks: Sequence[str]) -> Step:
    """Models that are there, in one process for each script that asks."""
    return Step(
        "evaluate",
        name,
        counted(models, benchmarks),
        asks(wanted, name, models, benchmarks),
        results_of(wanted, name, models, benchmarks),
        benchmarks=tuple(benchmarks),
        models=len(models),
    )


def of_merged(wanted: Wanted, name: str, model: str, benchmarks: Sequence[str], merge: Merge) -> Step:
    """A model that is made first, where it is not there, and removed afterwards."""
    made = () if Path(model).is_dir() else (merge.command,)
    return Step(
        "merge",
        name,
        f"{Path(model).name} and {counted([model], benchmarks)}",
        (*made, *asks(wanted, name, [model], benchmarks)),
        results_of(wanted, name, [model], benchmarks),
        () if wanted.keep else (Path(model),),
        benchmarks=tuple(benchmarks),
        masked=merge.masked,
    )


def asks(wanted: Wanted, name: str, models: Sequence[str], benchmarks: Sequence[str]) -> tuple[Command, ...]:
    """The commands that ask these models these benchmarks of a pair."""
    pair = load_pair(name)
    held_out = (wanted.held_out or "") if wanted.split == "validation" else None
    how = {"dtype": pair.eval_dtype, "template": pair.template, "results_dir": results_folder(wanted, name)}
    groups = together([description(one) for one in benchmarks])
    return tuple(script(*command(group, models, **how, held_out=held_out)) for group in groups)


def results_folder(wanted: Wanted, name: str) -> Path:
    """Where the results of a pair's models are."""
    return wanted.runs / name / f"results_{wanted.split}"


def results_of(wanted: Wanted, name: str, models: Sequence[str], benchmarks: Sequence[str]) -> tuple[Path, ...]:
    folder = results_folder(wanted, name)
    return tuple(folder / Path(model).name / one / "0.json" for model in models for one in benchmarks)


def counted(models: Sequence[str], benchmarks: Sequence[str]) -> str:
    return f"{len(models)} model{'s' * (len(models) > 1)} on {', '.join(benchmarks)}"


def description(benchmark: str) -> Description:
    """What a benchmark says of itself."""
    known = described()
    if benchmark not in known:
        raise InputError(f"benchmark {benchmark!r} is not one of {', '.join(known)}, the scripts of eval/")
    return known[benchmark]


def together(benchmarks: Sequence[Description]) -> list[list[Description]]:
    """The benchmarks as one command each takes them: those that flags choose within a script, each other by itself."""
    groups: dict[tuple[Path, str], list[Description]] = {}
    for one in benchmarks:
        groups.setdefault((one.script, "" if one.arguments else one.name), []).append(one)
    return list(groups.values())
