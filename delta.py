"""The delta between a fine-tuned model and its base: takes its SVD, adds it back, or says what it holds.

--svd reads two checkpoints and writes the SVD of every linear layer's delta as an artifact; --merge reads a base and
any delta artifact and writes the fine-tuned checkpoint again; --info prints an artifact's contents and true sizes.

    python delta.py --svd --base_model "meta-llama/Llama-2-13b-hf" --finetuned_model "vanillaOVO/WizardMath-13B-V1.0" \\
      --dim 5120 --save_path "delta_weight_save_path.pt"
    python delta.py --merge --finetuned_model "vanillaOVO/WizardMath-13B-V1.0" --delta_path "path of the delta" \\
      --save_path "path to save the reconstructed model"
    python delta.py --push_to_hub owner/name "path of a delta, rebuilt model, merge or adapter" --results results
    python delta.py --info "path of the delta"         (--json: for programs)
    accelerate launch delta.py --svd ...      (splits the layers over the processes)
"""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from impart import processes
from impart.adapter import open_finetuned
from impart.architecture import is_attention
from impart.artifact import open_delta
from impart.card import CARD, with_scores
from impart.checkpoint import check_named, open_checkpoint
from impart.compress import compress, expected_work
from impart.config import Parser, add_run_flags
from impart.contents import contents, printed
from impart.costs import Work, tell
from impart.device import use_device
from impart.dtypes import choices, parse_dtype, short_name
from impart.encodings import empty
from impart.encodings import svd as svd_encoding
from impart.encodings.encoded import Encoded
from impart.errors import InputError, run
from impart.files import write_atomically
from impart.hub import upload
from impart.method import Matrix, Method
from impart.outputs import is_skipped, refuse_existing
from impart.overlay import open_base
from impart.recommended import recommended, rho
from impart.reconstruct import planned_tensors, write_model
from impart.report import Report, start_logging
from impart.sources import Origin, open_source

MLP_RANK_FACTOR = 1.45  # the release's: mlp matrices of Llama-2 hold that much more than square ones of the same rank


def main(arguments: Sequence[str]) -> None:
    flags = parse(arguments)
    start_logging(flags.quiet, flags.verbose)
    if flags.svd:
        svd(flags)
    elif flags.merge:
        merge(flags)
    elif flags.push_to_hub:
        push(flags)
    else:
        delta = open_delta(flags.delta_path)
        found = contents(delta)
        if flags.base_model:
            far = rho(delta, open_checkpoint(flags.base_model))
            found |= {"rho": far, "recommended": recommended(far)}
        print(json.dumps(found, indent=2) if flags.json else printed(found))


def parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser(__doc__)
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--svd", action="store_true", help="two checkpoints -> SVD delta")
    verb.add_argument("--merge", action="store_true", help="base + any delta -> checkpoint")
    verb.add_argument("--info", action="store_true", help="print what a delta holds")
    verb.add_argument("--push_to_hub", metavar="REPO", help="put a delta, rebuilt model, merge or adapter on the hub")
    parser.add_argument("--results", help="with --push_to_hub: folder of eval/'s results, for the card's scores")
    parser.add_argument("--json", action="store_true", help="what --info prints, as JSON")
    parser.add_argument("delta", nargs="?", help="the delta, as --delta_path")
    parser.add_argument(
        "--base_model",
        help="folder or hub id; --merge takes it from the delta when it is not given; with it, --info of an SVD delta "
        "says which method to take",
    )
    parser.add_argument("--finetuned_model", help="folder or hub id; --merge does without it")
    parser.add_argument(
        "--dim",
        type=int,
        help="rank kept of attention matrices; mlp matrices keep 1.45 times that; "
        "both at most min(m, n), which is the default",
    )
    parser.add_argument(
        "--weight_types", nargs="+", metavar="TYPE", help="with --svd: types to compress, or all; as sparsify.py has it"
    )
    parser.add_argument("--dtype", choices=choices(), default="fp16", help="of the stored factors (default fp16)")
    parser.add_argument("--save_path", "--save_pth", dest="save_path", help="folder that is written")
    parser.add_argument("--delta_path", "--delta_pth", dest="delta_path", help="folder of a delta")
    add_run_flags(parser)
    flags = parser.parse_intermixed_args(arguments)
    flags.delta_path, flags.dtype = flags.delta_path or flags.delta, short_name(flags.dtype)
    needed = {
        "svd": ("base_model", "finetuned_model", "save_path"),
        "merge": ("delta_path", "save_path"),
    }.get("svd" if flags.svd else "merge" if flags.merge else "", ("delta_path",))
    for name in needed:
        if getattr(flags, name) is None:
            raise InputError(f"--{name} is missing; `delta.py --help` shows the commands")
    if flags.dry_run and not (flags.svd or flags.merge):
        raise InputError("--dry_run goes with --svd and --merge; leave it out")
    if flags.json and not flags.info:
        raise InputError("--json goes with --info; leave it out")
    if flags.dim is not None and flags.dim < 1:
        raise InputError(f"--dim {flags.dim} must be at least 1: it is the rank that is kept")
    return flags


@dataclass(frozen=True, kw_only=True)
class Svd(Method):
    """The leading singular triplets of every delta, dense."""

    name: ClassVar = "svd"
    label: ClassVar = "SVD"
    dim: int | None  # rank kept of attention matrices, None: all
    dtype: str

    def rank(self, name: str, m: int, n: int) -> int:
        """Number of triplets that `--dim` keeps of a matrix."""
        if self.dim is None:
            return min(m, n)
        return min(m, n, self.dim if is_attention(name) else int(MLP_RANK_FACTOR * self.dim))

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        triplets = matrix.triplets(self.rank(matrix.name, *matrix.shape))
        return empty.write(matrix.shape) if triplets is None else svd_encoding.write(*triplets, parse_dtype(self.dtype))

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        itemsize = parse_dtype(self.dtype).itemsize
        return sum(((m + n) * itemsize + 4) * self.rank(name, m, n) for name, (m, n) in shapes.items())


def svd(flags: Namespace) -> None:
    """Both models, checked -> SVD per matrix -> artifact -> what was written."""
    method = Svd(dim=flags.dim, dtype=flags.dtype)
    if is_skipped(flags.save_path, flags.skip_existing, kind="svd", settings=method.settings()):
        return
    refuse_existing(Path(flags.save_path), flags.overwrite, (flags.base_model, flags.finetuned_model))
    device = use_device(flags.device, flags.threads)
    origin = Origin(base_model=flags.base_model, ftm_dir=flags.finetuned_model, weight_types=flags.weight_types)
    source = open_source(origin, method, device, force=flags.force)
    if flags.dry_run:
        tell(flags.save_path, expected_work(source, method), device)
        return
    delta = compress(
        source,
        method,
        flags.save_path,
        kind="svd",
        seed=None,
        overwrite=flags.overwrite,
        report=Report(vars(flags)),
    )
    if delta is not None:
        print(printed(contents(delta)))
    processes.leave()


def merge(flags: Namespace) -> None:
    """base + delta -> checkpoint; the fine-tuned model, when given, supplies what lies outside the compressed set."""
    processes.refuse_several("rebuilding a model")
    if is_skipped(flags.save_path, flags.skip_existing):
        return
    inputs = (flags.delta_path, flags.base_model, flags.finetuned_model)
    refuse_existing(Path(flags.save_path), flags.overwrite, inputs)
    device, delta = use_device(flags.device, flags.threads), open_delta(flags.delta_path)
    check_named(flags.finetuned_model)
    base = open_base(delta, flags.base_model)
    finetuned = open_finetuned(flags.finetuned_model, base) if flags.finetuned_model else None
    delta.check_base(base)
    delta.verify()
    if flags.dry_run:
        written = sum(spec.nbytes for spec in planned_tensors(delta, base, finetuned))
        tell(flags.save_path, Work([delta.shape(name) for name in delta.names()], written), device)
        return
    write_model(delta, base, flags.save_path, finetuned=finetuned, device=device, overwrite=flags.overwrite)
    print(f"{flags.save_path}: {base.source} + {delta.path} ({delta.manifest['method']})")


def push(flags: Namespace) -> None:
    """The folder's card with its scores -> the hub."""
    folder = Path(flags.delta_path).expanduser()
    card = folder / CARD
    if not card.is_file():
        raise InputError(f"{flags.delta_path!r} has no {CARD}; name a delta, model or adapter that this suite made")
    if flags.results:
        found = results_of(Path(flags.results), folder.resolve().name)
        write_atomically(card, with_scores(card.read_text(), found).encode())
    print(upload(folder, flags.push_to_hub))


def results_of(results: Path, model: str) -> list[dict]:
    """What eval/ wrote about a model of this name: results/<model>/<benchmark>/<seed>.json."""
    return [json.loads(file.read_text()) for file in sorted((results / model).glob("*/*.json"))]


if __name__ == "__main__":
    run(main)
