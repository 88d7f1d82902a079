"""Fisher information of linear weights on calibration text: what an error of a matrix costs.

    python quantize/information.py FINETUNED c4 --out information.json --nsamples 32 --seqlen 512
    python sparsify/sparsify.py --config configs/rows/impart.yaml information=information.json ...

Of an error E of one matrix, independent from entry to entry, the answers' distribution moves by
KL = 1/2 F norm(E)^2 nats per token, to second order, where F is the mean over the matrix's entries of the squared
gradient of log p(token), tokens being drawn from the model itself.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as `python quantize/information.py`: import from the repository root, not from quantize/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from impart.architecture import linear_names
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.config import Parser, add_device_flags
from impart.device import use_device
from impart.errors import run
from impart.files import user_path
from impart.outputs import refuse_existing
from impart.pretrained import add_trust_flag
from impart.report import progress, start_logging
from quantize.calibration import add_text_flags, digest, model_tokens, text_config
from quantize.whole_model import frozen_model, linear_module
from sparsify.information import write_information


def fisher_information(
    finetuned: Checkpoint,
    matrices: Sequence[str],
    sequences: Sequence[Tensor],
    *,
    seed: int,
    device: torch.device,
) -> Mapping[str, float]:
    """F of each of these matrices, on sequences of token ids (length,).

    Holds the model, the activations of one sequence and one matrix's gradient in memory. `seed`: of the drawn tokens.
    """
    model = frozen_model(finetuned, device)
    sums, predicted = dict.fromkeys(matrices, 0.0), 0

    def add(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        # The square of a mean over the tokens is 1 / tokens of their mean square, as they are drawn independently.
        sums[name] += predicted * float(weight.grad.float().square().mean()) / len(sequences)
        weight.grad = None

    for name in matrices:
        weight = linear_module(model, name, "the information is taken of the gradients of").weight
        weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(add, name))
    draw = torch.Generator(device).manual_seed(seed)
    for ids in progress(sequences, what="taking gradients", unit="sequence"):
        predicted = len(ids) - 1
        own_tokens_loss(model, ids.to(device), draw).backward()
    return sums


def own_tokens_loss(model: nn.Module, ids: Tensor, draw: torch.Generator) -> Tensor:
    """Mean of -log p over one token for each place but the last of ids (length,), drawn from p itself."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
    return cross_entropy(logits, drawn)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("finetuned", help="fine-tuned model: folder or hub id")
    parser.add_argument("dataset", help="calibration text: c4, wikitext2, or a .txt, .jsonl or .json file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file that is written")
    add_text_flags(parser)
    add_device_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_trust_flag(parser)
    given = parser.parse_args(arguments)
    start_logging()
    refuse_existing(given.out, given.overwrite)
    device, finetuned = use_device(given.device, given.threads), open_checkpoint(given.finetuned)
    sequences = model_tokens(given.dataset, text_config(given), finetuned)
    information = fisher_information(
        finetuned,
        linear_names(finetuned),
        list(sequences),
        seed=given.seed,
        device=device,
    )
    facts = {"finetuned": given.finetuned, "fingerprint": finetuned.fingerprint(), "tokens": digest(sequences)}
    write_information(user_path(given.out), information, facts)
    print(f"{given.out}: {len(information)} matrices, from {len(sequences)} sequences of {sequences.shape[1]} tokens")


if __name__ == "__main__":
    run(main)
