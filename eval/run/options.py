"""The flags that all benchmark scripts share, as one frozen dataclass."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.engine.models import model_name
from eval.run.descriptions import PAPER, Description
from eval.run.prompts import ALIASES, TEMPLATES
from impart.companions import is_plain_name
from impart.config import Parser
from impart.dtypes import choices, short_name
from impart.errors import InputError
from impart.pretrained import add_trust_flag
from impart.report import start_logging

BACKENDS = ("auto", "vllm", "hf")
SCORINGS = {
    PAPER: "paper: the rule as described (default)",
    "release": "release: as the authors' code has it",
    "math_verify": "math_verify: the package of that name reads the answer and compares it by algebra",
}


@dataclass(frozen=True)
class Options:
    """What the command line of a benchmark script says."""

    models: tuple[str, ...]  # checkpoint folders, hub ids or delta artifacts; none only with `--rescore FILE`
    dtype: str
    backend: str
    data: Path | None
    limit: int | None
    subset: str | None
    results_dir: Path
    name: str | None
    seed: int
    base_model: str | None
    tensor_parallel: int | None
    max_model_len: int | None
    gpu_memory: float
    batch_size: int
    rescore: bool
    rescore_file: Path | None
    chat_template: str | None
    overwrite: bool
    scoring: str = PAPER  # of benchmarks with several rules
    bos: bool = False  # of IFEval: whether prompts begin with a begin-of-sequence token
    weak_sandbox: bool = False  # of benchmarks that run programs

    @property
    def model(self) -> str | None:
        """The model, where it is one; a run of several has options of its own for each."""
        return self.models[0] if self.models else None


def benchmark_parser(doc: str | None, benchmark: Description) -> Parser:
    """What every script of this kind of benchmark takes; a script adds its own flags.

    MODELs, DTYPE (or TEMPLATE, and DTYPE as a flag), as the description says, and the shared flags.
    """
    parser = Parser(doc)
    template_second = benchmark.second == "template"
    second = "TEMPLATE, the same as --chat_template," if template_second else "DTYPE"
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="checkpoint folder, hub id, or delta artifact; deltas over one base share an engine. "
        f"{second} may follow the last one",
    )
    parser.add_argument(
        "--dtype",
        choices=choices("auto"),
        default="auto",
        help="fp16, bf16, fp32, or auto: the checkpoint's own (default)",
    )
    parser.set_defaults(template_second=template_second)
    parser.add_argument(
        "--backend", default="auto", choices=BACKENDS, help="auto: vllm where it is installed, else hf (default)"
    )
    parser.add_argument("--data", type=Path, help="local file with the items (else IMPART_DATA, else the hub)")
    parser.add_argument("--limit", type=int, help="only the first N items")
    parser.add_argument("--subset", help="only these items: ids, positions FIRST-LAST, FIELD=VALUE, comma-separated")
    parser.add_argument(
        "--results_dir",
        "--results-dir",
        type=Path,
        default=Path("results"),
        help="results/<model>/<benchmark>/<seed>.json go here (default: results)",
    )
    parser.add_argument("--name", help="the model's name in the results (default: last part of MODEL)")
    parser.add_argument("--seed", type=int, default=0, help="names the result file, seeds the engine (default: 0)")
    parser.add_argument("--base_model", "--base-model", help="base model of a delta artifact, where it has moved")
    parser.add_argument("--tensor_parallel", "--tensor-parallel", type=int, help="GPUs per model (default: all)")
    parser.add_argument(
        "--max_model_len",
        "--max-model-len",
        type=int,
        help="longest prompt + answer in tokens (default: the model's positions, at most 8192)",
    )
    parser.add_argument(
        "--gpu_memory",
        "--gpu-memory",
        type=float,
        default=0.9,
        help="share of each GPU's memory that vLLM may take (default: 0.9)",
    )
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=int,
        default=64,
        help="prompts at a time of the hf backend (default: 64); vLLM batches by itself",
    )
    parser.add_argument(
        "--rescore",
        nargs="?",
        const="",
        metavar="FILE",
        help="score the saved completions or those of FILE (jsonl of id, completion); generate nothing",
    )
    if len(benchmark.scorings) > 1:
        parser.add_argument(
            "--scoring",
            default=PAPER,
            choices=benchmark.scorings,
            help="; ".join(SCORINGS[name] for name in benchmark.scorings),
        )
    parser.add_argument(
        "--chat_template",
        "--chat-template",
        metavar="auto|none|NAME",
        help="auto: the tokenizer's own; none: the bare text; NAME: one of eval/run/prompts.py "
        "(default: the paper's choice for the benchmark)",
    )
    add_trust_flag(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing result")
    return parser


def add_weak_sandbox(parser: Parser) -> None:
    """The flag of benchmarks that run generated programs."""
    parser.add_argument(
        "--weak_sandbox",
        "--weak-sandbox",
        action="store_true",
        default=os.environ.get("IMPART_WEAK_SANDBOX") == "yes",
        help="run generated programs where the system cannot close the sandbox, too: they may read your files "
        "(default: IMPART_WEAK_SANDBOX=yes, else an error)",
    )


def read_options(parser: Parser, arguments: Sequence[str]) -> Options:
    """The shared flags of a command line, for scripts that have no others."""
    return options_from(parse(parser, arguments))


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; flags may stand anywhere around MODELs and DTYPE or TEMPLATE, which is split off."""
    given = parser.parse_intermixed_args(arguments)
    given.template = None
    *models, last = given.models or [None]
    seconds = ("auto", *TEMPLATES, *ALIASES) if given.template_second else choices("auto")
    if models and last in seconds:
        given.models = models
        setattr(given, "template" if given.template_second else "dtype", last)
    elif models and "/" not in last and not Path(last).exists():
        parser.error(f"invalid choice: {last!r} is no model's folder or hub id, and none of {', '.join(seconds)}")
    given.models = tuple(given.models)
    given.dtype = short_name(given.dtype)
    return given


def options_from(given: argparse.Namespace) -> Options:
    """The shared flags of a parsed command line, checked; starts the log."""
    start_logging()
    if not given.models and not given.rescore:
        raise InputError("MODEL is missing: a checkpoint folder, a hub id or a delta artifact")
    _refuse_equal_names(given)
    for name, low in (("limit", 1), ("tensor_parallel", 1), ("max_model_len", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(given, name)
        if value is not None and value < low:
            raise InputError(f"--{name} {value} is out of range; it must be at least {low}")
    if given.name is not None and not is_plain_name(given.name):
        raise InputError(f"--name {given.name!r} names a folder of --results_dir: give a plain name, without slashes")
    if not 0 < given.gpu_memory <= 1:
        raise InputError(f"--gpu_memory {given.gpu_memory} is out of range; it is a share, above 0 and at most 1")
    rescore_file = Path(given.rescore) if given.rescore else None
    if rescore_file and not rescore_file.is_file():
        raise InputError(f"--rescore {rescore_file}: no such file; without FILE, write --rescore after MODEL")
    values = {key: value for key, value in vars(given).items() if key in Options.__dataclass_fields__}
    return Options(**{**values, "rescore": given.rescore is not None, "rescore_file": rescore_file})


def _refuse_equal_names(given: argparse.Namespace) -> None:
    """InputError for models whose results would have one name, and for a flag that is of one model beside several."""
    if len(given.models) > 1 and (given.name or given.rescore):
        raise InputError(f"--{'name' if given.name else 'rescore FILE'} is of one model, but several are given")
    names = [model_name(model) for model in given.models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(
            f"two models are called {twice!r}, and their results would have one file name; run them one by one "
            "with --name"
        )
