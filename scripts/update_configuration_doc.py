"""Write the tables of docs/reference/configuration.md from the settings' own descriptions (`make docs`)."""

from collections.abc import Iterator
from typing import Any

from generated import ROOT, table, update
from masp.core.config import MethodConfig, RunConfig

DOCUMENT = ROOT / "docs" / "reference" / "configuration.md"
SCRIPT = "scripts/update_configuration_doc.py"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text", "null": "null"}
KINDS["object"] = "names with two numbers each"


def content() -> str:
    """Every section with its settings, in the order of the file."""
    schema = RunConfig.model_json_schema()
    return "\n\n".join(_sections(schema, schema, ""))


def variants() -> str:
    """What the two variants fill in where a setting of the method is left at null."""
    paper, released = (MethodConfig(variant=name).resolved().model_dump() for name in ("paper", "released"))
    differ = [name for name in paper if paper[name] != released[name] and name != "variant"]
    rows = [(f"`method.{name}`", f"`{paper[name]}`", f"`{released[name]}`") for name in differ]
    return table(("setting", "paper", "released"), rows)


def _sections(schema: dict[str, Any], section: dict[str, Any], name: str) -> Iterator[str]:
    plain = {key: field for key, field in section["properties"].items() if "$ref" not in field}
    if plain:
        rows = [
            (f"`{_joined(name, key)}`", _values(field, schema), _written(field.get("default")), _meaning(field))
            for key, field in plain.items()
        ]
        about = section.get("description", "").partition("\n")[0]
        yield f"### {name or 'At the top level'}\n\n{about}\n\n" + table(
            ("setting", "values", "default", "meaning"), rows
        )
    for key, field in section["properties"].items():
        if "$ref" in field:
            yield from _sections(schema, _resolved(field, schema), _joined(name, key))


def _meaning(field: dict[str, Any]) -> str:
    return field["description"] + (" ↻" if field.get("may_change_on_resume") else "")


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _resolved(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _values(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a setting may be: names, a range, or a kind."""
    if "anyOf" in field:
        return " or ".join(_values(option, schema) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return "list of " + _values(field.get("items", {"type": "string"}), schema)
    if field.get("type") == "object" and field.get("additionalProperties", {}).get("type") == "integer":
        return f"names with a {_values(field['additionalProperties'], schema)} each"
    bounds = " and ".join(f"{sign} {field[key]}" for key, sign in BOUNDS.items() if key in field)
    return f"{KINDS[field['type']]} {bounds}".strip()


def _written(value: object) -> str:
    """A default as YAML has it."""
    if isinstance(value, list):
        return "all six" if len(value) == 6 else f"`{value}`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    changed = [update(DOCUMENT, "variants", SCRIPT, variants()), update(DOCUMENT, "settings", SCRIPT, content())]
    print("docs/reference/configuration.md", "written" if any(changed) else "was current")
