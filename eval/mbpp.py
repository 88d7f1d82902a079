"""MBPP: short functions to write, one greedy answer each. EvalPlus' 378 items with its base tests, or the public file.

    python eval/mbpp.py MODEL fp16                           # results/<model>/mbpp/0.json and 0.jsonl
    python eval/mbpp.py MODEL fp16 --data MbppPlus.jsonl     # EvalPlus' file, where it cannot be downloaded
    python eval/mbpp.py MODEL fp16 --data mbpp.jsonl         # another benchmark: results/<model>/mbpp_public/0.json

EvalPlus' file is taken from --data, MBPP_OVERRIDE_PATH, MbppPlus.jsonl in IMPART_DATA, or EvalPlus' own cache and
download. The public file (974 items, of which the test split 11-510 is scored; or the 427 sanitized ones) is asked and
scored in the same way with its own assertions, and its results carry another name, because it is another set.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python eval/mbpp.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.engine.models import ModelSource
from eval.run.benchmark import Benchmark, run_models
from eval.run.descriptions import Description
from eval.run.mbpp_items import EVALPLUS, chosen_file, evalplus_items, public_items
from eval.run.options import Options, add_weak_sandbox, benchmark_parser, read_options
from eval.run.prompts import ChatTemplate
from eval.scoring.programs import sandbox_layers
from impart.errors import InputError, run
from impart.tokenizer import load_tokenizer

MBPP = Description(
    "mbpp",
    "MBPP",
    items=378,
    answer_tokens=150,
    scoring="pass@1: EvalPlus' base tests pass in the sandbox",
    source=None,  # the package evalplus downloads them, where there is no local file
)
BENCHMARKS = (MBPP,)


def mbpp(options: Options) -> Benchmark:
    """The set that the options choose, in the prompt form that EvalPlus chooses for the model."""
    try:
        from eval.scoring.mbpp import MAX_TOKENS, asked, judge_evalplus, judge_public, public_prompt, stops
    except ImportError as error:
        raise InputError(f"MBPP needs the package evalplus ({error}): pip install evalplus") from error
    layers = sandbox_layers(options.weak_sandbox)
    source, path = chosen_file(options)
    chat = chat_template(options)
    settings = {
        "template": "none" if chat is None else "evalplus chat",
        "tests": "base" if source is EVALPLUS else "test_list",
    }
    if source is EVALPLUS:
        items, problems = evalplus_items(path, options)
        prompts = [item["prompt"] for item in items.items]
        judge = functools.partial(judge_evalplus, problems=problems, direct=chat is None, layers=layers)
    else:
        items = public_items(source, path, options)
        prompts = [public_prompt(item) for item in items.items]
        judge = functools.partial(judge_public, direct=chat is None, layers=layers)
    return Benchmark(
        source.benchmark,
        items.items,
        [asked(prompt, chat) for prompt in prompts],
        MAX_TOKENS,
        stops(direct=chat is None),
        judge,
        settings | {"data_sha256": items.sha256},
    )


def chat_template(options: Options) -> ChatTemplate | None:
    """The tokenizer's chat template where EvalPlus would use it; None for a direct completion."""
    if options.chat_template not in (None, "auto", "none"):
        raise InputError(
            f"--chat_template {options.chat_template}: EvalPlus knows auto (the tokenizer's own, if it has "
            "one) and none"
        )
    if options.chat_template == "none" or options.model is None:
        return None
    tokenizer = load_tokenizer(ModelSource(options.model, options.base_model).tokenizer_folder)
    return ChatTemplate(tokenizer) if tokenizer.chat_template else None


def main(arguments: Sequence[str]) -> None:
    parser = benchmark_parser(__doc__, MBPP)
    add_weak_sandbox(parser)
    options = read_options(parser, arguments)
    run_models(lambda one: [mbpp(one)], options)


if __name__ == "__main__":
    run(main)
