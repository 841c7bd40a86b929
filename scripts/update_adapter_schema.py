"""Write docs/adapter.schema.json and the table of docs/reference/adapters.md from `AdapterInfo` (`make docs`)."""

import json
from typing import Any

from generated import ROOT, table, update
from masp.adapters.info import AdapterInfo

SCHEMA = ROOT / "docs" / "adapter.schema.json"
DOCUMENT = ROOT / "docs" / "reference" / "adapters.md"
SCRIPT = "scripts/update_adapter_schema.py"


def schema() -> dict[str, Any]:
    """JSON schema of adapter.json as it is written; what is filled in at run time has no default in it."""
    content = AdapterInfo.model_json_schema(mode="serialization")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "adapter.json of masp"}
    return {**content, **head}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def fields() -> str:
    """Every field with its meaning; records of their own follow, each with theirs."""
    content = schema()
    parts = [_table(content)]
    for name, record in content["$defs"].items():
        if name.endswith("Record"):
            parts.append(f"`{name}`: {record['description'].partition(chr(10))[0]}\n\n{_table(record)}")
    return "\n\n".join(parts)


def _table(record: dict[str, Any]) -> str:
    rows = [(f"`{name}`", _meaning(field)) for name, field in record["properties"].items()]
    return table(("field", "meaning"), rows)


def _meaning(field: dict[str, Any]) -> str:
    records = sorted({name for name in _references(field) if name.endswith("Record")})
    return field["description"] + "".join(f" (`{name}`)" for name in records)


def _references(field: object) -> list[str]:
    """Names of the records that a field holds, however deep."""
    if isinstance(field, dict):
        own = [str(field["$ref"]).rpartition("/")[2]] if "$ref" in field else []
        return own + [name for value in field.values() for name in _references(value)]
    return [name for value in field for name in _references(value)] if isinstance(field, list) else []


if __name__ == "__main__":
    stale = not SCHEMA.is_file() or SCHEMA.read_text(encoding="utf-8") != text()
    SCHEMA.write_text(text(), encoding="utf-8")
    stale = update(DOCUMENT, "fields", SCRIPT, fields()) or stale
    print("docs/reference/adapters.md and its schema", "written" if stale else "were current")
