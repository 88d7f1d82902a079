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
QUANTIZED = ("compression_ratio_qt=8", "preprune_ratio=0.3", "C=1", "grid=compact", "accounting=paper")
TOKENS = 32 * 48


@dataclass(frozen=True)
class Models:
    """The folders of one family's models."""

    base: Path
    one: Path
    two: Path

    def given(self) -> tuple[str, str]:
        """The pair, as the keys of the sparsification."""
        return f"base_model={self.base}", f"ftm_dir={self.one}"


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
    pair = made(name, folder)
    svd = folder / "svd"
    called(
        delta_script,
        "--svd",
        "--dtype",
        "fp32",
        "--base_model",
        pair.base,
        "--finetuned_model",
        pair.one,
        "--save_path",
        svd,
    )
    found = of_delta(open_delta(svd))
    sizes = (f"{sum(found.compressed.values()):,}", f"{sum(found.whole.values()):,}")
    return (
        name,
        *sizes,
        exactly(pair, svd, folder),
        rebuilt(pair, folder),
        merged(pair, folder),
        quantized(pair, folder),
    )


def made(name: str, folder: Path) -> Models:
    """Base and two fine-tuned models in bfloat16, with a tokenizer of as many words as the vocabulary has."""
    family = name.removesuffix(AS_RUN)
    torch.manual_seed(0)
    model = small_model(family)
    start = {key: torch.randn(value.shape) * 0.1 + (value.ndim == 1) for key, value in model.named_parameters()}
    pair = Models(folder / "base", folder / "one", folder / "two")
    for path, scale in ((pair.base, 0.0), (pair.one, 0.01), (pair.two, 0.01)):
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(start[key] + scale * torch.randn(value.shape))
        model.to(torch.bfloat16).save_pretrained(path, save_original_format=name == family)
        words(path)
    return pair


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


def exactly(pair: Models, svd: Path, folder: Path) -> str:
    """Whether base + SVD at full rank is the fine-tuned model, to one step of bfloat16."""
    called(delta_script, "--merge", "--delta_path", svd, "--save_path", folder / "exact")
    base, one, again = (open_checkpoint(path) for path in (pair.base, pair.one, folder / "exact"))
    whole = all(near(again.tensor(name), one.tensor(name).float(), base.tensor(name)) for name in one.names())
    return said(whole and again.names() == one.names(), "exact")


def rebuilt(pair: Models, folder: Path) -> str:
    """Whether an ImPart delta rebuilds base + dW, and transformers loads it without a missing weight."""
    path = folder / "impart"
    called(
        sparsify, *pair.given(), f"save_dir={path}", "compression_ratio=4", "preprune_ratio=0.3", "C=1", "method=impart"
    )
    called(delta_script, "--merge", "--delta_path", path, "--save_path", folder / "rebuilt")
    artifact, base, again = open_delta(path), open_checkpoint(pair.base), open_checkpoint(folder / "rebuilt")
    equal = all(
        near(again.tensor(name), base.tensor(name).float() + artifact.reconstruct(name), base.tensor(name))
        for name in artifact.names()
    )
    return said(equal and loads(folder / "rebuilt"), "exact")


def loads(folder: Path) -> bool:
    """Whether transformers finds every weight of its model in a folder."""
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    _, found = cls.from_pretrained(folder, output_loading_info=True)
    return not found["missing_keys"] and not found["mismatched_keys"]


def merged(pair: Models, folder: Path) -> str:
    """Whether task arithmetic with 0.5 is base + half of each delta, experts included."""
    out = folder / "merged"
    called(
        merge,
        "--merge_method=ta_0.5",
        f"--ptm_pth={pair.base}",
        f"--model=a={pair.one}",
        f"--model=b={pair.two}",
        f"--save_pth={out}",
    )
    base, one, two, found = (open_checkpoint(path) for path in (pair.base, pair.one, pair.two, out))
    floating = [name for name in base.names() if base.dtype(name).is_floating_point]
    return said(all(near(found.tensor(name), half(one, two, name), base.tensor(name)) for name in floating), "exact")


def half(one: Checkpoint, two: Checkpoint, name: str) -> torch.Tensor:
    """base + (one - base) / 2 + (two - base) / 2."""
    return (one.tensor(name).float() + two.tensor(name).float()) / 2


def quantized(pair: Models, folder: Path) -> str:
    """How many matrices of an ImPart delta are quantized by calibration, or in brackets why none is."""
    text = folder / "text.txt"
    text.write_text(" ".join(map(str, torch.randint(3, SIZES["vocab_size"], (2 * TOKENS,)).tolist())))
    sparse, out = folder / "sparse", folder / "quantized"
    called(sparsify_quant, *pair.given(), f"save_dir={sparse}", "method=impart", *QUANTIZED)
    keys = ("nsamples=32", "seqlen=48", "batch=8")
    flags = ("--saved_delta_path", sparse, "--save_compressed_delta_dir", out)
    try:
        called(sparse_llama, pair.one, text, *flags, *keys)
    except InputError as error:
        return f"none ({str(error).split(';')[0].split(' (')[0][:100]})"
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
