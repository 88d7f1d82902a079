"""Model cards: the README.md of a delta, a rebuilt model, a merge or an adapter, with the hub's YAML head."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from impart.hub import is_hub_id

CARD = "README.md"
SCORES = "## Scores\n"  # of the section that `with_scores` writes
Relation = Literal["adapter", "finetune", "merge"]  # the hub's words for what a model is of its base


@dataclass(frozen=True)
class Card:
    """What a card says. `base`: as the command named it, folder or hub id, or several of a merge."""

    title: str
    text: str
    base: str | Sequence[str]
    relation: Relation
    tags: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    library: str | None = None

    def write(self, folder: Path) -> None:
        """README.md in the folder."""
        (folder / CARD).write_text(self.rendered())

    def rendered(self) -> str:
        """Markdown with the head that the hub reads; a base that is a folder of this machine is not in the head."""
        bases = [self.base] if isinstance(self.base, str) else list(self.base)
        ids = [found for found in map(hub_id_of, bases) if found]
        head: dict[str, Any] = {"library_name": self.library} if self.library else {}
        if ids:
            head |= {"base_model": ids[0] if len(ids) == 1 else ids, "base_model_relation": self.relation}
        head["tags"] = ["impart", "delta-compression", *self.tags]
        rows = "".join(
            f"| {key} | {_cell(value)} |\n" for key, value in {"base": ", ".join(bases), **self.facts}.items()
        )
        command = shlex.join(("python", *sys.argv))
        return (
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {self.title}\n\n{self.text}\n\n"
            f"| | |\n|---|---|\n{rows}\nMade by\n\n```bash\n{command}\n```\n"
        )


def delta_card(name: str, manifest: Mapping[str, Any], linear: int) -> Card:
    """Of an artifact. `linear`: bytes of the linear layers' delta with its headers."""
    total = linear + sum(extra["bytes"] for extra in manifest["extras"].values())
    dense = sum(2 * entry["shape"][0] * entry["shape"][1] for entry in manifest["matrices"].values())
    return Card(
        title=name,
        text=f"The difference between a fine-tuned model and its base, as a {manifest['kind']} delta. "
        f"`python delta.py --merge --delta_path {name} --save_path OUT` makes the model of it again; "
        f"`python serve/serve.py {name}` serves it as it is.",
        base=manifest["base"]["source"],
        relation="adapter",
        tags=[manifest["method"]],
        facts={
            "fine-tuned model": manifest["finetuned"]["source"],
            "method": manifest["method"],
            "settings": _settings(manifest["settings"]),
            "seed": manifest["seed"],
            "bytes of the linear layers": f"{linear:,} of {dense:,} (ratio {dense / max(linear, 1):.2f})",
            "bytes of the model": f"{total:,} of {manifest['finetuned']['bytes']:,}",
        },
    )


def rebuilt_card(name: str, manifest: Mapping[str, Any], base: str) -> Card:
    """Of base + delta as a checkpoint."""
    facts = {"fine-tuned model": manifest["finetuned"]["source"], "method": manifest["method"]}
    return Card(
        title=name,
        text="A fine-tuned model, rebuilt from its base and a compressed delta.",
        base=base,
        relation="finetune",
        tags=[manifest["method"]],
        facts={**facts, "settings": _settings(manifest["settings"]), "seed": manifest["seed"]},
        library="transformers",
    )


def hub_id_of(source: str) -> str | None:
    """The hub id that a model's name means: the id itself, or that of the cache folder that it names; else None."""
    path = Path(source).expanduser()
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{path.resolve()}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return source if is_hub_id(source) and not path.exists() else None


def with_scores(card: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The card with a table of these results of eval/, in place of the one that it may have."""
    rows = "".join(
        f"| {result['benchmark']} | {result['score']:.2f} | {result['n']} | {result['seed']} |\n" for result in results
    )
    table = f"{SCORES}\n| benchmark | score, % | items | seed |\n|---|---|---|---|\n{rows}" if rows else ""
    return "\n".join(part for part in (card.partition(f"\n{SCORES}")[0], table) if part)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
