"""Which architectures go through every step: the table of configs/README.md, from small random models of transformers.

    python benchmarks/architectures.py                       (all of them, some minutes)
    python benchmarks/architectures.py --only Llama GptOss

Of each family three models are made and saved, a base and two that differ from it in every parameter. What is printed
has been checked on them: the SVD at full rank gives the fine-tuned model back to rounding, an ImPart delta rebuilds
what base + dW is, in a folder that transformers loads without a missing weight, a merge of both halves is the sum of
the halves, and sparse GPTQ quantizes all matrices; how many of them by calibration is counted.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as `python benchmarks/architectures.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import impart  # noqa: F401 - which says what packages are missing

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import delta as delta_script
from benchmarks.families import FAMILIES, FUSED, SIZES
from impart.artifact import open_delta
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.coverage import of_delta
from impart.errors import InputError
from merge import merge
from quantize import sparse_llama
from sparsify import sparsify, sparsify_quant

AS_RUN = ", as run"  # experts in 3-D tensors, as transformers runs them
HEADER = ("architecture", "compressed", "whole", "SVD", "ImPart", "merge", "quantized by calibration")
IMPART = ("method=impart", "preprune_ratio=0.3", "C=1")
GRID = ("grid=paper", "accounting=paper")
TOKENS = 32 * 48
TEXT = ("nsamples=32", "seqlen=48", "batch=32")


@dataclass(frozen=True)
class Models:
    """The folder of one architecture, and in it the models that were made and the SVD of the pair."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def one(self) -> Path:
        return self.folder / "one"

    @property
    def two(self) -> Path:
        return self.folder / "two"

    @property
    def svd(self) -> Path:
        return self.folder / "svd"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=names(), choices=names(), metavar="NAME", help=", ".join(names()))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(line(HEADER), line(["---"] * len(HEADER)), sep="\n", flush=True)
    for name in parser.parse_args(arguments).only:
        with tempfile.TemporaryDirectory() as folder:
            print(line(row(name, Path(folder))), flush=True)


def names() -> list[str]:
    """The rows of the table."""
    return [*FAMILIES, *(f"{family}{AS_RUN}" for family in FUSED)]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row(name: str, folder: Path) -> tuple[str, ...]:
    """One architecture through every step."""
    models = made(name, folder)
    pair = ("--base_model", models.base, "--finetuned_model", models.one)
    called(delta_script, "--svd", "--dtype", "fp32", *pair, "--save_path", models.svd)
    found = of_delta(open_delta(models.svd))
    sizes = (f"{sum(found.compressed.values()):,}", f"{sum(found.whole.values()):,}")
    return (name, *sizes, exactly(models), rebuilt(models), merged(models), quantized(models))


def made(name: str, folder: Path) -> Models:
    """Base and two fine-tuned models in bfloat16, with a tokenizer of as many words as the vocabulary has."""
    family = name.removesuffix(AS_RUN)
    torch.manual_seed(0)
    model = small_model(family)
    start = {key: torch.randn(value.shape) * 0.1 + (value.ndim == 1) for key, value in model.named_parameters()}
    models = Models(folder)
    for path, scale in ((models.base, 0.0), (models.one, 0.01), (models.two, 0.01)):
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(start[key] + scale * torch.randn(value.shape))
        model.to(torch.bfloat16).save_pretrained(path, save_original_format=name == family)
        words(path)
    return models


def small_model(family: str) -> Any:
    """A model of the family with two layers of width 64."""
    settings = FAMILIES[family]
    common = {} if "text_config" in settings else SIZES
    config = getattr(transformers, f"{family}Config")(**{**common, **settings})
    for kind in ("CausalLM", "Seq2SeqLM", "MaskedLM"):
        with contextlib.suppress(ValueError):  # no such head
            return getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    raise ValueError(f"transformers has no language model of {family}")


def words(folder: Path) -> None:
    """A tokenizer that gives every number below the size of the vocabulary its own token."""
    plain = Tokenizer(models.WordLevel({str(number): number for number in range(SIZES["vocab_size"])}, unk_token="0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="0").save_pretrained(folder)


def exactly(models: Models) -> str:
    """Whether base + SVD at full rank is the fine-tuned model, to one step of bfloat16."""
    out = models.folder / "exact"
    called(delta_script, "--merge", "--delta_path", models.svd, "--save_path", out)
    base, one, again = map(open_checkpoint, (models.base, models.one, out))
    whole = all(near(again.tensor(name), one.tensor(name).float(), base.tensor(name)) for name in one.names())
    return said(whole and again.names() == one.names(), "exact")


def rebuilt(models: Models) -> str:
    """Whether an ImPart delta rebuilds base + dW, and transformers loads it without a missing weight."""
    path, out = models.folder / "impart", models.folder / "rebuilt"
    called(sparsify, f"svd_dir={models.svd}", f"save_dir={path}", "compression_ratio=4", *IMPART)
    called(delta_script, "--merge", "--delta_path", path, "--save_path", out)
    artifact, base, again = open_delta(path), open_checkpoint(models.base), open_checkpoint(out)
    equal = all(
        near(again.tensor(name), base.tensor(name).float() + artifact.reconstruct(name), base.tensor(name))
        for name in artifact.names()
    )
    return said(equal and loads(out), "exact")


def loads(folder: Path) -> bool:
    """Whether transformers finds every weight of its model in a folder."""
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    _, found = cls.from_pretrained(folder, output_loading_info=True)
    return not found["missing_keys"] and not found["mismatched_keys"]


def merged(models: Models) -> str:
    """Whether task arithmetic with 0.5 is base + half of each delta, experts included."""
    out = models.folder / "merged"
    both = (f"--model=a={models.one}", f"--model=b={models.two}")
    called(merge, "--merge_method=ta_0.5", f"--ptm_pth={models.base}", *both, f"--save_pth={out}")
    base, one, two, found = map(open_checkpoint, (models.base, models.one, models.two, out))
    floating = [name for name in base.names() if base.dtype(name).is_floating_point]
    return said(all(near(found.tensor(name), half(one, two, name), base.tensor(name)) for name in floating), "exact")


def half(one: Checkpoint, two: Checkpoint, name: str) -> torch.Tensor:
    """base + (one - base) / 2 + (two - base) / 2."""
    return (one.tensor(name).float() + two.tensor(name).float()) / 2


def quantized(models: Models) -> str:
    """How many matrices of an ImPart delta are quantized by calibration, or in brackets why none is."""
    text, sparse, out = (models.folder / name for name in ("text.txt", "sparse", "quantized"))
    text.write_text(" ".join(map(str, torch.randint(3, SIZES["vocab_size"], (2 * TOKENS,)).tolist())))
    flags = ("--saved_delta_path", sparse, "--save_compressed_delta_dir", out)
    try:
        called(sparsify_quant, f"svd_dir={models.svd}", f"save_dir={sparse}", "compression_ratio_qt=8", *IMPART, *GRID)
        called(sparse_llama, models.one, text, *flags, *TEXT)
    except InputError as error:
        reason = str(error).replace(repr(str(models.one)), "it")
        return f"none ({reason.split(';')[0].split(' (')[0][:100]})"
    rows = json.loads((out / "report.json").read_text())["matrices"]
    calibrated = sum(not one.get("rounded_to_nearest") for one in rows)
    return f"{calibrated} of {len(open_delta(out).names())}"


def near(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether values in bfloat16 are the expected ones but for rounding, which goes by the base's values as well."""
    room = 2.0**-7 * torch.maximum(expected.abs(), base.float().abs()) + 1e-6
    return bool(((found.float() - expected).abs() <= room).all())


def said(holds: bool, word: str) -> str:
    return word if holds else f"NOT {word}"


def called(script: Any, *arguments: object) -> None:
    """Runs a script of this suite here, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main([*map(str, arguments), "--quiet"])


if __name__ == "__main__":
    main(sys.argv[1:])
