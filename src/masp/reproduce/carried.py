"""What a table was made with, and which tables of earlier calls may stand beside those of this one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.adapters import portable, read_info
from masp.core.prompts import load_questions
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import cell_name
from masp.reproduce.specs import DATA
from masp.reproduce.tables import Results

Entry = Mapping[str, Any]
"""A table as `reproduce.json` holds it: a sheet, and what it was made with."""

SAYS = {
    "backbone": "another backbone",
    "seeds": "other seeds",
    "settings": "other settings",
    "data": "other data",
    "reading": "other questions or image sizes",
    "aspects": "other aspects",
    "answers": "another reading of the answers",
}
"""What has to agree → how its difference is said."""


@dataclass(frozen=True)
class Before:
    """What an earlier call left in the folder.

    Attributes:
        tables: all of its tables, each with what it was made with.
        datasets: what it says about each data set.
    """

    tables: tuple[Entry, ...] = ()
    datasets: Mapping[str, Any] | None = None


def made_with(results: Results, command: str) -> dict[str, Any]:
    """What the tables of this call are made with. Settings of other systems are in the command only."""
    job = results.job
    return {
        "command": command,
        "backbone": portable(job.config.backbone.id),
        "seeds": list(job.seeds),
        "settings": hashed(settings_of(job)),
        "data": {source.name: _fingerprint(results, source.name) for source in job.sources},
        "reading": hashed([load_questions(job.config.questions).fingerprint(), job.config.data.longest_side]),
        "answers": job.reading,
        "aspects": "" if job.adapter is None else hashed(dict(read_info(job.adapter).aspects_sha256 or {})),
    }


def settings_of(job: ReproduceConfig) -> dict[str, Any]:
    """The settings of the method and both stages; no place on this machine."""
    content = job.config.model_dump(mode="json")
    for stage in ("aspects", "prompt"):
        del content[stage]["store_dir"]
    return {name: content[name] for name in ("method", "aspects", "prompt")}


def read_before(file: Path) -> Before:
    """The tables in `reproduce.json`; where they do not say what they were made with, the file says it for all."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        datasets = dict(content["datasets"])
        common = {
            "command": content["command"],
            "backbone": content["backbone"],
            "seeds": content["seeds"],
            "settings": hashed(content["settings"]),
            "data": dict.fromkeys(datasets, ""),
            "answers": "score",  # the only reading there was
        }
        return Before(tuple({**common, **table} for table in content["tables"] if table["name"]), datasets)
    except (OSError, ValueError, KeyError, TypeError):
        return Before()


def disagreement(table: Entry, now: Mapping[str, Any]) -> str:
    """In what an earlier table was made otherwise than those of now; "" where it may stand beside them."""
    others = [words for key, words in SAYS.items() if key in table and not _agree(key, table[key], now[key])]
    return " and ".join(others)


def divided(
    tables: Sequence[Entry], job: ReproduceConfig, now: Mapping[str, Any]
) -> tuple[list[Entry], list[dict[str, str]]]:
    """The earlier tables of other experiments that are kept, and those that are left out, each with the reason."""
    kept, left_out = list[Entry](), list[dict[str, str]]()
    for table in tables:
        if table["name"].split("-")[0] in job.experiments:
            continue
        why = disagreement(table, now)
        if why:
            left_out.append({"name": table["name"], "command": table["command"], "why": f"it was made with {why}"})
        else:
            kept.append(table)
    return kept, left_out


def hashed(content: object) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _agree(key: str, before: Any, now: Any) -> bool:
    """Whether both are the same; a data set that one of them did not look at is taken by its name."""
    if key != "data":
        return bool(before == now)
    return before.keys() == now.keys() and all(
        "" in (before[name], now[name]) or before[name] == now[name] for name in now
    )


def _fingerprint(results: Results, dataset: str) -> str:
    outcome = results.outcomes.get(cell_name(dataset, DATA, results.job.seeds[0]))
    return "" if outcome is None else outcome.identity.get("data", "")
