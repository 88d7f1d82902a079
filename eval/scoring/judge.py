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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from impart.errors import InputError, reason_of

log = logging.getLogger(__name__)

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"


@dataclass(frozen=True)
class Judge:
    """Which model is asked for verdicts, and where."""

    model: str
    url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI itself
    # Of the request: logit_bias, top_logprobs, extra_body and the like.
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"

    @property
    def key(self) -> str | None:
        """OPENAI_API_KEY, else a placeholder where the judge is a server of one's own, which mostly asks for none."""
        return os.environ.get("OPENAI_API_KEY") or ("none" if self.url or os.environ.get("OPENAI_BASE_URL") else None)

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "annotator": ANNOTATOR, "options": dict(self.options)}

    @property
    def name(self) -> str:
        """The name under which its verdicts are stored; another model or other options make another judge."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        return f"{self.model.rstrip('/').rsplit('/', 1)[-1]}-{digest[:8]}"


def annotator_config(judge: Judge) -> dict[str, Any]:
    """The package's annotator with this judge's model and options."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    packaged = yaml.safe_load((EVALUATORS_CONFIG_DIR / ANNOTATOR / "configs.yaml").read_text())[ANNOTATOR]
    # The client takes a name with "instruct" for a model without chat, and looks up a price for every answer.
    kwargs = {
        **packaged["completions_kwargs"],
        "requires_chatml": True,
        "price_per_token": 0.0,
        **judge.options,
        "model_name": judge.model,
    }
    # A relative path to the template would be looked up in our folder.
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
        raise InputError(f"{where} refuses the key in OPENAI_API_KEY: {reason_of(error)}") from error
    except openai.NotFoundError as error:
        raise InputError(f"{where} does not exist: {reason_of(error)}; give --judge_model") from error
    except openai.APIConnectionError as error:
        raise InputError(f"{where} cannot be reached ({error}); check --judge_url and that the server is up") from error
    except (openai.OpenAIError, TypeError) as error:
        raise InputError(
            f"{where} refuses the request: {reason_of(error)}; a vLLM server needs --max-logprobs of at least "
            f"{kwargs.get('top_logprobs')}, and --judge_options changes what is asked for"
        ) from error
    logprobs = answer.choices[0].logprobs
    if not (logprobs and logprobs.content and logprobs.content[0].top_logprobs):
        raise InputError(
            f"{where} returns no token probabilities (logprobs), which the verdict is read from; take another"
        )
    if not {"m", "M"} & {token.token for token in logprobs.content[0].top_logprobs}:
        log.warning("%s has neither m nor M among its likeliest tokens; its verdicts may not be readable", where)


@contextlib.contextmanager
def annotator_folder(judge: Judge) -> Iterator[str]:
    """A temporary folder in the form from which alpaca_eval reads an annotator."""
    with tempfile.TemporaryDirectory(prefix="judge-") as top:
        folder = Path(top) / judge.name
        folder.mkdir()
        config, client = annotator_config(judge), folder / "client.yaml"
        # Without a key in the file the client takes OPENAI_API_KEY, so that the key is never written to a disk.
        address = {"base_url": judge.address} | ({} if os.environ.get("OPENAI_API_KEY") else {"api_key": judge.key})
        client.write_text(yaml.safe_dump({"default": [address]}))
        config["completions_kwargs"]["client_config_path"] = str(client)
        (folder / "configs.yaml").write_text(yaml.safe_dump({judge.name: config}))
        yield str(folder)
