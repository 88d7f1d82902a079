"""How close models stay to the fine-tuned one on unlabelled text: settings are chosen by it where there are no labels.

    python eval/closeness.py FINETUNED c4 DELTA... --nsamples 32 --seqlen 512 --base_model BASE
    python eval/closeness.py assets/tiny/code assets/tiny/data/code_validation.jsonl DELTA... --text_field prompt

Text is calibration text (quantize/sparse_llama.py): c4, wikitext2, or a .txt, .jsonl or .json file. Printed for every
MODEL, a delta or a checkpoint, the nearest first:

    KL              of its next token's distribution from the fine-tuned model's, in nats per token
    output change   of the last layer: sum of squared differences over sum of squares, by which DAREx takes its q
    same token      share of places where both find the same next token most likely
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/closeness.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from eval.engine.models import ModelSource
from impart.checkpoint import open_checkpoint
from impart.config import Parser
from impart.errors import InputError, run
from impart.pretrained import add_trust_flag
from impart.report import progress, start_logging, table
from impart.tokenizer import load_tokenizer
from quantize.calibration import add_text_flags, model_tokens, text_config


@dataclass(frozen=True)
class Closeness:
    """Of one model to the fine-tuned one, over all places of the text."""

    kl: float  # nats per token
    change: float
    agreement: float


@torch.inference_mode()
def closeness(model: Any, finetuned: Any, sequences: Tensor) -> Closeness:
    """Of two causal models of transformers on token ids (count, length)."""
    kl = change = energy = agreement = 0.0
    for ids in progress(list(sequences), what="comparing", unit="sequence"):
        wanted, found = (output(one, ids) for one in (finetuned, model))
        difference = found.hidden.to(wanted.hidden.device) - wanted.hidden
        change += float(difference.square().sum())
        energy += float(wanted.hidden.square().sum())
        theirs, ours = wanted.log_p, found.log_p.to(wanted.log_p.device)
        kl += float((theirs.exp() * (theirs - ours)).sum(-1).mean())
        agreement += float((theirs.argmax(-1) == ours.argmax(-1)).float().mean())
    return Closeness(kl / len(sequences), change / energy, agreement / len(sequences))


@dataclass(frozen=True)
class Output:
    """The last layer's output (length, d) and the next token's log-probabilities (length, vocabulary), in fp32."""

    hidden: Tensor
    log_p: Tensor


def output(model: Any, ids: Tensor) -> Output:
    """Of one sequence of token ids (length,)."""
    found = model(input_ids=ids[None].to(model.device), use_cache=False, output_hidden_states=True)
    return Output(found.hidden_states[-1][0].float(), found.logits[0].float().log_softmax(-1))


def loaded(source: ModelSource, tokenizer: Any, dtype: str, length: int) -> Any:
    """The model as the engine hf loads it, for sequences of `length` tokens."""
    from eval.engine.hf import HfModel  # seconds of import that tables and plans do without

    return HfModel(source.weights(), tokenizer, dtype=dtype, max_model_len=length, batch_size=1)


def measured(sources: Sequence[ModelSource], finetuned: Any, sequences: Tensor) -> Iterator[Closeness]:
    """One after another, beside the HfModel `finetuned`: two models are in memory at a time."""
    for source in sources:
        model = loaded(source, finetuned.tokenizer, finetuned.dtype, sequences.shape[1])
        rows, wanted = (len(one.model.get_output_embeddings().weight) for one in (model, finetuned))
        if rows != wanted:
            raise InputError(f"{source.source!r} has {rows} output rows, and the fine-tuned model {wanted}: no pair")
        yield closeness(model.model, finetuned.model, sequences)
        model.close()


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("finetuned", help="fine-tuned model: folder or hub id")
    parser.add_argument("dataset", help="unlabelled text: c4, wikitext2, or a .txt, .jsonl or .json file")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="delta artifacts, checkpoint folders or hub ids")
    parser.add_argument("--base_model", help="of deltas whose base is not where they were made")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: the fine-tuned model's own")
    add_text_flags(parser)
    add_trust_flag(parser)
    given = parser.parse_args(arguments)
    start_logging()
    checkpoint, tuned = open_checkpoint(given.finetuned), ModelSource(given.finetuned)
    sources = [ModelSource(model, given.base_model) for model in given.models]
    sequences = model_tokens(given.dataset, text_config(given), checkpoint)
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.source)
    finetuned = loaded(tuned, tokenizer, given.dtype or tuned.dtype, given.seqlen)
    found = sorted(zip(measured(sources, finetuned, sequences), given.models, strict=True), key=lambda one: one[0].kl)
    rows = [[name, f"{of.kl:.4f}", f"{of.change:.4f}", f"{100 * of.agreement:.1f} %"] for of, name in found]
    print(table(rows, ("nearest first", "KL", "output change", "same token")))


if __name__ == "__main__":
    run(main)
