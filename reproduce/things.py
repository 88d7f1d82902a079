"""The lines of a table's script -> the cells of the table, and the steps that are missing to fill them.

A line names one thing to have, its words as a shell would split them:

    base PAIR [RATIO] [drawn]                           the base model as it is; drawn: a line of the figure, no row
    finetuned PAIR [RATIO] [drawn]                      the fine-tuned model as it is
    sparse ROW PAIR [RATIO] [key=value ...] [as NAME]   a sparse delta per seed, by configs/rows/ROW.yaml
    quantized ROW PAIR [RATIO] [...] [as NAME]          a quantized delta per seed
    single PAIR                                         each model of a merging set on its own benchmark
    merged ROW PAIR METHOD MASK [SPARSITY]              a merged model per seed, removed after its evaluation

Without RATIO the pair's compression_ratio (compression_ratio_qt) is taken; METHOD is a name in the pair's merge_methods
or a method string like ta_0.5; MASK is none or a method. `as` names the row of the table, which is ROW otherwise. The
first four may end with `on BENCHMARK`, before `as`, to ask that one in the place of the pair's.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impart.config import keys_of
from impart.errors import InputError
from impart.method import Method
from impart.pair import Pair, as_overrides, load_pair, pair_file, value_text
from impart.yaml_text import parse_yaml
from quantize.calibration import TEXT_KEYS
from quantize.one_step import one_step_methods
from quantize.settings import Config, load_config
from reproduce.evaluations import Merge, description, evaluations, results_folder
from reproduce.rows import (
    NOMINAL_SIZE,
    RATIO_KEYS,
    check_mergeable,
    configs,
    facts,
    given_label,
    needs_information,
    relative,
    row_content,
    row_file,
    row_files,
    settings_in_name,
)
from reproduce.steps import DRAWN, Cell, Command, Step, Wanted, script
from sparsify.settings import load_settings, methods

log = logging.getLogger(__name__)

WHOLE = {"base": ("backbone", "Backbone"), "finetuned": ("fine_tuned", "Fine-tuned")}  # kind -> row and its label
ALLOCATED = ".sparse"  # end of the name of the sparse delta that a quantized one is made of


class Plan:
    """Cells and missing steps, filled by `add`."""

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self.cells: list[Cell] = []
        self.made_by: dict[tuple[str, str], dict[str, Any]] = {}  # (pair, name below RUNS/pair) -> what decides it
        self._steps: dict[Path, Step] = {}  # by their first target
        self._asked: dict[tuple[str, str], list[str]] = {}  # (pair, model) -> benchmarks whose result is missing
        self._merges: dict[tuple[str, str], Merge] = {}

    def add(self, words: Sequence[str]) -> None:
        """Plans what one line names; InputError for a line that names nothing."""
        kind, *rest = words
        adders = {
            "base": self._whole,
            "finetuned": self._whole,
            "sparse": self._delta,
            "quantized": self._delta,
            "single": self._single,
            "merged": self._merged,
        }
        if kind not in adders:
            raise InputError(f"{' '.join(words)!r}: {kind!r} is no kind of thing; known: {', '.join(adders)}")
        try:
            adders[kind](kind, rest)
        except (ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{' '.join(words)!r} is no line of a plan ({error}); see reproduce/things.py") from error

    def steps(self) -> list[Step]:
        """Every missing step, evaluations included. A delta whose results are all there is not made again."""
        asked = {model for _, model in self._asked}
        deltas = [step for step in self._steps.values() if made_for(step) in asked]
        read = {path for step in deltas for path in step.reads}
        before = [step for step in self._steps.values() if read & {step.targets[0], step.targets[0].parent}]
        return [*before, *deltas, *evaluations(self.wanted, self._asked, self._merges)]

    def pairs(self) -> list[str]:
        """The pairs that are planned."""
        return list(dict.fromkeys(cell.pair for cell in self.cells))

    # Things

    def _whole(self, kind: str, words: Sequence[str]) -> None:
        row, label = WHOLE[kind]
        words, on = _clause(words, "on")
        if words[-1] == "drawn":
            label, words = DRAWN, words[:-1]
        name, *ratios = words
        pair = load_pair(name)
        model = pair.base_model if kind == "base" else pair.ftm_dir
        if model is None:
            raise InputError(f"{pair_file(name)} has no ftm_dir")
        ratio = ratios[0] if ratios else value_text(pair.compression_ratio or "")
        self.made_by[name, Path(model).name] = {"model": model}
        self._ask((row, label), name, pair, ratio, model, self._benchmarks(pair, on))

    def _single(self, kind: str, words: Sequence[str]) -> None:
        (name,) = words
        pair = merging_pair(name)
        for model, benchmark in zip(pair.models.values(), pair.benchmarks, strict=True):
            self.made_by[name, Path(model).name] = {"model": model}
            self._ask(("single", "the single models"), name, pair, "", model, [benchmark])

    def _delta(self, kind: str, words: Sequence[str]) -> None:
        words, row_name = _clause(words, "as")
        words, on = _clause(words, "on")
        row, name, *more = words
        pair = load_pair(name)
        given = dict(word.split("=", 1) for word in more if "=" in word)
        ratios = [word for word in more if "=" not in word]
        ratio = ratios[0] if ratios else value_text(getattr(pair, RATIO_KEYS[kind]) or "")
        if ratio in ("", "none"):
            raise InputError(f"{pair_file(name)} has no {RATIO_KEYS[kind]} or list of ratios, and the line names none")
        if not ratio.replace(".", "", 1).isdecimal():
            raise InputError(f"{ratio!r} is no compression ratio, which RATIOS or the pair's file gives as a number")
        settings = {**pair.rows.get(row, {}), **{key: parse_yaml(text, f"{key}={text}") for key, text in given.items()}}
        label = row_name or given_label(row)
        plan_delta = self._sparse if kind == "sparse" else self._quantized
        for seed, folder in plan_delta(name, pair, row, float(ratio), settings):
            self._ask((row_name or row, label), name, pair, ratio, str(folder), self._benchmarks(pair, on))
            log.debug("%s: seed %d", folder, seed)

    def _sparse(
        self, name: str, pair: Pair, row: str, ratio: float, settings: Mapping[str, Any]
    ) -> list[tuple[int, Path]]:
        planned = []
        method = planned_method("sparse", row, name, ratio, settings)
        named = settings_in_name(pair, row, method, settings)
        for seed in self._seeds(method):
            folder = self.wanted.runs / name / f"{row}_cr{value_text(ratio)}{named}_seed{seed}"
            # A saved SVD has the linear weights only: other types are taken from the two models.
            read = self._read_by(name, pair, row, method.needs_svd and "weight_types" not in settings)
            step = (
                *script("sparsify/sparsify.py", *configs(name, row), *as_overrides({**settings, **read})),
                f"compression_ratio={value_text(ratio)}",
                f"seed={seed}",
                f"save_dir={folder}",
                f"log_dir={self.wanted.runs / name / 'logs'}",
                *self._threads(),
            )
            of_text = self.made_by[name, read["information"].name] if "information" in read else {}
            self.made_by[name, folder.name] = facts(pair, method, seed) | of_text
            self._make("sparsify", name, folder, step, read, ratio=ratio)
            planned.append((seed, folder))
        return planned

    def _quantized(
        self, name: str, pair: Pair, row: str, ratio: float, settings: Mapping[str, Any]
    ) -> list[tuple[int, Path]]:
        if pair.calibration is None or pair.ftm_dir is None:
            raise InputError(f"{pair_file(name)} needs ftm_dir and calibration for {row}")
        one_step = one_step_methods().get(row_content(row).get("method", ""))
        ratio_text, planned = f"compression_ratio_qt={value_text(ratio)}", []
        calibrated = distillation_of(pair, one_step) if one_step else pair.calibration_settings
        method = planned_method("quantized", row, name, ratio, {**settings, **(calibrated if one_step else {})})
        named = settings_in_name(pair, row, method, settings)
        for seed in self._seeds(method):
            folder = self.wanted.runs / name / f"{row}_qt{value_text(ratio)}{named}_seed{seed}"
            quantize = [
                *script("quantize/sparse_llama.py", pair.ftm_dir, pair.calibration),
                *("--save_compressed_delta_dir", str(folder), *self._threads()),
            ]
            removes: tuple[Path, ...] = ()
            read: dict[str, Path] = {}
            if one_step:
                read = self._read_by(name, pair, row, svd=False)
                models = [f"baseModel={pair.base_model}", ratio_text, f"seed={seed}"]
                keys = {**settings, **calibrated, **read}
                quantize += ["--config", str(row_file(row)), *models, *as_overrides(keys)]
            else:
                sparse = folder.with_name(folder.name + ALLOCATED)
                if not is_there(folder):
                    self._allocation(name, pair, row, method, sparse, settings, ratio, seed)
                quantize += ["--saved_delta_path", str(sparse), *as_overrides(calibrated)]
                removes = (sparse,)
            text = {"calibration": pair.calibration, **calibrated}
            self.made_by[name, folder.name] = facts(pair, method, seed) | text
            self._make("quantize", name, folder, tuple(quantize), read, removes=removes, ratio=ratio)
            planned.append((seed, folder))
        return planned

    def _allocation(
        self,
        name: str,
        pair: Pair,
        row: str,
        method: Method,
        folder: Path,
        settings: Mapping[str, Any],
        ratio: float,
        seed: int,
    ) -> None:
        """The sparse delta that a quantized one is made of."""
        read = self._read_by(name, pair, row, method.needs_svd)
        step = (
            *script("sparsify/sparsify_quant.py", *configs(name, row), *as_overrides({**settings, **read})),
            f"compression_ratio_qt={value_text(ratio)}",
            f"seed={seed}",
            f"save_dir={folder}",
            *self._threads(),
        )
        # Its values are in 16 bit until they are quantized.
        self._make("sparsify", name, folder, step, read, ratio=ratio / 8)

    def _merged(self, kind: str, words: Sequence[str]) -> None:
        row, name, method, mask, *more = words
        pair = merging_pair(name)
        text = pair.merge_methods.get(method, method)
        sparsity = (
            more[0] if more else value_text(pair.sparsities.get(f"{method}_{mask}", "")) if mask != "none" else ""
        )
        if mask != "none" and not sparsity:
            raise InputError(f"{pair_file(name)} has no sparsities.{method}_{mask}, and the line names none")
        settings = [f"merge_method={text}", f"mask={mask}", *([f"sparsity={sparsity}"] if sparsity else [])]
        check_mergeable(name, settings, pair.hidden_size or NOMINAL_SIZE)
        seeds = self.wanted.seeds[:1] if mask == "none" else self.wanted.seeds
        for seed in seeds:
            folder = self.wanted.runs / name / f"{text}_{mask}{f'_{sparsity}' if sparsity else ''}_seed{seed}"
            merge = script("merge/merge.py", "--config", str(relative(pair_file(name))), *settings)
            merge += (f"seed={seed}", f"save_pth={folder}", *self._threads())
            masked = mask != "none" and methods("sparse")[mask].needs_svd
            self._merges[name, str(folder)] = Merge(merge, masked)
            keys = {"preprune_ratio": pair.preprune_ratio, "C": pair.C} if mask != "none" else {}
            models = {"base_model": pair.base_model, "models": pair.models}
            made = {"merge_method": text, "mask": mask, "sparsity": sparsity, "seed": seed, **keys, **models}
            self.made_by[name, folder.name] = made
            self._ask((row, given_label(row)), name, pair, "", str(folder), pair.benchmarks)

    def _read_by(self, name: str, pair: Pair, row: str, svd: bool) -> dict[str, Path]:
        """What is made of a pair once for all rows and this one reads, by the keys that name it."""
        read = {"svd_dir": self._svd(name, pair)} if svd else {}
        return read | ({"information": self._information(name, pair)} if needs_information(row) else {})

    def _svd(self, name: str, pair: Pair) -> Path:
        """The SVD of a pair's delta."""
        folder = self.wanted.runs / name / "svd"
        models = ("--base_model", pair.base_model, "--finetuned_model", str(pair.ftm_dir))
        step = (*script("delta.py", "--svd", *models, "--save_path", str(folder)), *self._threads())
        self.made_by[name, folder.name] = {"base_model": pair.base_model, "ftm_dir": pair.ftm_dir}
        self._make("svd", name, folder, step, {})
        return folder

    def _information(self, name: str, pair: Pair) -> Path:
        """The file of what errors of each matrix of a pair's fine-tuned model cost."""
        if pair.calibration is None or pair.ftm_dir is None:
            raise InputError(f"{pair_file(name)} needs ftm_dir and calibration for a row that needs_information")
        file = self.wanted.runs / name / "information.json"
        text = {key: value for key, value in pair.distillation_settings.items() if key in TEXT_KEYS}
        flags = [word for key, value in text.items() for word in (f"--{key}", value_text(value))]
        step = script(
            "quantize/information.py", pair.ftm_dir, pair.calibration, "--out", str(file), *flags, *self._threads()
        )
        self.made_by[name, file.name] = {"ftm_dir": pair.ftm_dir, "calibration": pair.calibration, **text}
        self._add(Step("information", name, file.name, (step,), (file,)))
        return file

    # What all things have in common

    def _ask(
        self, row: tuple[str, str], name: str, pair: Pair, ratio: str, model: str, benchmarks: Sequence[str]
    ) -> None:
        """Cells of the table, and the questions whose answers are missing."""
        results = results_folder(self.wanted, name)
        how = {"dtype": pair.eval_dtype, "template": pair.template, "items": self.wanted.held_out}
        self.made_by[name, results.name] = how
        for benchmark in benchmarks:
            result = results / Path(model).name / benchmark / "0.json"
            self.cells.append(Cell(*row, name, benchmark, ratio, result))
            known = description(benchmark)
            if not any(result.parents[1].joinpath(other, result.name).is_file() for other in (benchmark, *known.also)):
                missing = self._asked.setdefault((name, model), [])
                missing += [benchmark] if benchmark not in missing else []

    def _benchmarks(self, pair: Pair, on: str = "") -> list[str]:
        if on:
            return [on]
        return pair.benchmarks[:1] if self.wanted.only_first else pair.benchmarks

    def _seeds(self, method: Method) -> tuple[int, ...]:
        return self.wanted.seeds if method.seeded else self.wanted.seeds[:1]

    def _threads(self) -> tuple[str, str]:
        return "--threads", str(self.wanted.threads)

    def _make(
        self, stage: str, name: str, folder: Path, command: Command, read: Mapping[str, Path], **more: Any
    ) -> None:
        """The step that makes a delta or an SVD, unless it is there."""
        made, reads = (folder / "delta.json",), tuple(read.values())
        self._add(Step(stage, name, folder.name, (command,), made, reads=reads, **more))

    def _add(self, step: Step) -> None:
        if not step.targets[0].exists():
            self._steps.setdefault(step.targets[0], step)


def merging_pair(name: str) -> Pair:
    """The pair of that name; InputError for one that is no set of models to merge."""
    pair = load_pair(name)
    if not pair.models:
        raise InputError(f"{pair_file(name)} names no models to merge; configs/tiny/merging/pair.yaml shows how")
    return pair


def _clause(words: Sequence[str], keyword: str) -> tuple[Sequence[str], str]:
    """The words without `keyword WORD` at their end, and the WORD; empty where they do not end so."""
    return (words[:-2], words[-1]) if keyword in words[-2:-1] else (words, "")


def planned_method(kind: str, row: str, name: str, ratio: float, settings: Mapping[str, Any]) -> Method:
    """The method of a row for a pair, with all its keys; InputError where they contradict each other."""
    overrides = [*as_overrides(settings), f"{RATIO_KEYS[kind]}={value_text(ratio)}"]
    if kind == "quantized" and row_content(row).get("method") in one_step_methods():
        _, found = load_config(row_files(name, row)[:1], overrides)
        assert found is not None  # a one-step method is named
        return found
    return load_settings(kind, row_files(name, row), [*overrides, "save_dir=x"]).method


def distillation_of(pair: Pair, method: type[Method]) -> dict[str, Any]:
    """The pair's distillation_settings but for keys that only other methods read."""
    others = {key for cls in one_step_methods().values() for key in keys_of(cls)} - {*keys_of(method), *keys_of(Config)}
    return {key: value for key, value in pair.distillation_settings.items() if key not in others}


def made_for(step: Step) -> str:
    """The folder that a step makes, or of the quantized delta that it makes the allocation of."""
    return str(step.targets[0].parent).removesuffix(ALLOCATED)


def is_there(folder: Path) -> bool:
    """Whether a delta is finished."""
    return (folder / "delta.json").exists()
