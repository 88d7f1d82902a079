"""AlpacaEval's judge: any OpenAI-compatible endpoint, asked and averaged by the package alpaca_eval.

The annotator is the package's own `weighted_alpaca_eval_gpt4_turbo` (its prompt, one token, the probabilities of m and
M) with another model behind it. What it needs is checked with one real request before anything is generated.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from impart.errors import InputError
from impart.files import write_atomically

log = logging.getLogger(__name__)

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
# Of the 805 instructions as a JSON list: df_gamed.csv counts them by position.
OFFICIAL_SHA256 = "c5770d532bf3f697768ed9a57a05d8b58b2617321ca65070620f059676e7c99a"
LENGTH_CONTROLLED, PLAIN = "length_controlled_winrate", "win_rate"


@dataclass(frozen=True)
class Judge:
    """Which model is asked for verdicts, and where."""

    model: str
    url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI itself
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the request: logit_bias, top_logprobs, extra_body, ...

    @property
    def address(self) -> str:
        return self.url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"

    @property
    def key(self) -> str | None:
        """OPENAI_API_KEY; a server of one's own mostly asks for none."""
        return os.environ.get("OPENAI_API_KEY") or ("none" if self.url or os.environ.get("OPENAI_BASE_URL") else None)

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "annotator": ANNOTATOR, "options": dict(self.options)}

    @property
    def name(self) -> str:
        """What its verdicts are stored under: another model or other options are another judge."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        return f"{self.model.rstrip('/').rsplit('/', 1)[-1]}-{digest[:8]}"


def annotator_config(judge: Judge) -> dict[str, Any]:
    """The package's annotator with this judge's model and options."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    packaged = yaml.safe_load((EVALUATORS_CONFIG_DIR / ANNOTATOR / "configs.yaml").read_text())[ANNOTATOR]
    # Its client would take a name with "instruct" for a model without chat, and look up a price for every answer.
    kwargs = {
        **packaged["completions_kwargs"],
        "requires_chatml": True,
        "price_per_token": 0.0,
        **judge.options,
        "model_name": judge.model,
    }
    # The template's path would be taken relative to our folder.
    return {
        **packaged,
        "completions_kwargs": kwargs,
        "prompt_template": str(EVALUATORS_CONFIG_DIR / packaged["prompt_template"]),
    }


def check_judge(judge: Judge) -> None:
    """One real request of the kind that gives a verdict. InputError says what is missing."""
    try:
        import alpaca_eval  # noqa: F401
        import openai
    except ImportError as error:
        raise InputError(f"AlpacaEval needs the package alpaca_eval ({error}): pip install alpaca-eval") from error
    if judge.key is None:
        raise InputError(
            "the judge has no key: set OPENAI_API_KEY for OpenAI, or give --judge_url of a server that speaks "
            "its protocol, such as http://localhost:8000/v1 of `vllm serve JUDGE`"
        )
    where = f"the judge {judge.model!r} at {judge.address}"
    kwargs = dict(annotator_config(judge)["completions_kwargs"])
    for name in ("model_name", "requires_chatml", "num_procs", "price_per_token"):
        kwargs.pop(name, None)
    try:
        client = openai.OpenAI(api_key=judge.key, base_url=judge.address, max_retries=1, timeout=60)
        answer = client.chat.completions.create(
            model=judge.model, messages=[{"role": "user", "content": "Answer with one letter: m or M."}], **kwargs
        )
    except openai.AuthenticationError as error:
        raise InputError(f"{where} refuses the key in OPENAI_API_KEY: {_reason(error)}") from error
    except openai.NotFoundError as error:
        raise InputError(f"{where} does not exist: {_reason(error)}; give --judge_model") from error
    except openai.APIConnectionError as error:
        raise InputError(f"{where} cannot be reached ({error}); check --judge_url and that the server is up") from error
    except (openai.OpenAIError, TypeError) as error:
        raise InputError(
            f"{where} refuses the request: {_reason(error)}; a vLLM server needs --max-logprobs of at least "
            f"{kwargs.get('top_logprobs')}, and --judge_options changes what is asked for"
        ) from error
    logprobs = answer.choices[0].logprobs
    if not (logprobs and logprobs.content and logprobs.content[0].top_logprobs):
        raise InputError(
            f"{where} returns no token probabilities (logprobs), which the verdict is read from; take another"
        )
    if not {"m", "M"} & {token.token for token in logprobs.content[0].top_logprobs}:
        log.warning("%s has neither m nor M among its likeliest tokens; its verdicts may not be readable", where)


def compare(
    judge: Judge,
    outputs: Sequence[dict],
    references: Sequence[dict],
    name: str,
    verdicts: Path,
    metric: str,
    gamed: Path | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """(alpaca_eval's metrics, one annotation per pair in order). Verdicts are kept in the file `verdicts` and reused."""
    import openai
    from alpaca_eval.main import evaluate

    verdicts.parent.mkdir(parents=True, exist_ok=True)
    forget_unread(verdicts)
    length_controlled = metric == LENGTH_CONTROLLED
    with annotator_folder(judge) as folder, gamed_baselines(gamed if length_controlled else None), _quiet():
        try:
            board, annotations = evaluate(
                model_outputs=[{**output, "generator": name} for output in outputs],
                reference_outputs=list(references),
                annotators_config=folder,
                name=name,
                output_path=None,
                precomputed_leaderboard=None,
                is_return_instead_of_print=True,
                is_cache_leaderboard=False,
                sort_by=metric,
                fn_metric=f"get_{'length_controlled_winrate' if length_controlled else 'winrate'}",
                metric_kwargs={"save_weights_dir": None} if length_controlled else None,  # else into the package
                annotation_kwargs={"is_ordered": True, "chunksize": 32},
                caching_path=verdicts,
                Annotator=_annotator_class(),
            )
        except openai.OpenAIError as error:
            raise InputError(
                f"the judge {judge.model!r} failed: {_reason(error)}; the answers and the verdicts so far are "
                "kept, run the same command again"
            ) from error
        except (KeyError, ValueError, TypeError) as error:
            if forget_unread(verdicts):
                raise
            raise InputError(
                f"the judge {judge.model!r} gave no readable verdict: neither m nor M was among its likeliest "
                f"tokens in any of {len(outputs)} comparisons; the answers are kept, take another judge"
            ) from error
    return dict(board.loc[name]), annotations


def _annotator_class() -> type:
    """The package's annotator; it fails where all stored verdicts are whole numbers, which come back as integers."""
    from alpaca_eval.annotators import PairwiseAnnotator

    class Annotator(PairwiseAnnotator):
        def load_(self, path=None) -> None:
            super().load_(path)
            if self.df_annotations is not None:
                self.df_annotations = self.df_annotations.astype({self.annotation_key: float})

    return Annotator


def forget_unread(verdicts: Path) -> int:
    """Removes the verdicts that could not be read, so that they are asked for again; how many are left."""
    if not verdicts.is_file():
        return 0
    rows = [row for row in json.loads(verdicts.read_text()) if row["preference"] is not None and row["preference"] >= 0]
    if rows:
        write_atomically(verdicts, json.dumps(rows, indent=2).encode())
    else:
        verdicts.unlink()
    return len(rows)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """alpaca_eval tells the root logger several things about every request; its warnings and errors still come."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def annotator_folder(judge: Judge) -> Iterator[str]:
    """The folder in the form that alpaca_eval reads an annotator from, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="judge-") as top:
        folder = Path(top) / judge.name
        folder.mkdir()
        config, client = annotator_config(judge), folder / "client.yaml"
        # Without a key in the file the client takes OPENAI_API_KEY, which so never reaches a disk.
        address = {"base_url": judge.address} | ({} if os.environ.get("OPENAI_API_KEY") else {"api_key": judge.key})
        client.write_text(yaml.safe_dump({"default": [address]}))
        config["completions_kwargs"]["client_config_path"] = str(client)
        (folder / "configs.yaml").write_text(yaml.safe_dump({judge.name: config}))
        yield str(folder)


@contextlib.contextmanager
def gamed_baselines(file: Path | None) -> Iterator[None]:
    """Lets the length-controlled model read `file` where it would ask the hub for df_gamed.csv."""
    from alpaca_eval.metrics import glm_winrate

    asked = glm_winrate.hf_hub_download
    if file is not None:
        glm_winrate.hf_hub_download = lambda **_: str(file)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = asked


def chosen_metric(wanted: str, official: bool, gamed: Path | None) -> str:
    """Length-controlled where it can be computed, else plain; a wish that cannot be met is an InputError."""
    if wanted == PLAIN:
        return PLAIN
    problem = (
        _gamed_problem(gamed)
        if official
        else ("it counts the 805 official instructions by position, and these are not they, or not the first of them")
    )
    if problem is None:
        return LENGTH_CONTROLLED
    if wanted == LENGTH_CONTROLLED:
        raise InputError(f"--metric {LENGTH_CONTROLLED}: {problem}; or take --metric {PLAIN}")
    log.warning(
        "the length-controlled win rate cannot be computed: %s. Reporting the plain win rate, as alpacaeval_plain",
        problem,
    )
    return PLAIN


def is_official(instructions: Sequence[str]) -> bool:
    """Whether these are AlpacaEval's 805 instructions in their order."""
    return hashlib.sha256(json.dumps(list(instructions)).encode()).hexdigest() == OFFICIAL_SHA256


def _gamed_problem(gamed: Path | None) -> str | None:
    """Why the verdicts on the gamed baselines cannot be read, which the length-controlled model is regularised with."""
    if gamed is not None:
        return None if gamed.is_file() else f"--df_gamed {gamed} does not exist"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(repo_id="tatsu-lab/alpaca_eval", filename="df_gamed.csv", repo_type="dataset")
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError and OSError: offline and not in the cache
        return (
            f"df_gamed.csv of the data set tatsu-lab/alpaca_eval cannot be fetched from the hub "
            f"({type(error).__name__}); give it with --df_gamed FILE"
        )
    return None


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
