"""OpenAI's response_format, of completions and chat completions: any text, a JSON object, or JSON by a schema.

https://platform.openai.com/docs/guides/structured-outputs. A schema is kept whether it says strict or not.
"""

from __future__ import annotations

from typing import Any

from ....config.base import shown

FIELD = "response_format"
OBJECT = {"type": "object"}
SCHEMA = "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}}"


def schema_in(given: Any) -> dict[str, Any] | None:
    """The JSON schema that is asked for; None where any text will do. ValueError, which begins with the field, for
    anything else."""
    if given is None or given == {"type": "text"}:
        return None
    if given == {"type": "json_object"}:
        return OBJECT
    asked = given.get("json_schema") if isinstance(given, dict) else None
    if not isinstance(asked, dict) or given != {"type": "json_schema", "json_schema": asked}:
        kinds = f"{{'type': 'text'}}, {{'type': 'json_object'}} or {SCHEMA}"
        raise ValueError(f"{FIELD} must be {kinds}, not {shown(given)}")
    if unknown := sorted(asked.keys() - {"name", "description", "schema", "strict"}):
        raise ValueError(f"{FIELD} has {shown(unknown[0])} in its json_schema; give {SCHEMA}")
    if not isinstance(schema := asked.get("schema"), dict) or not isinstance(asked.get("strict"), bool | None):
        wrong = "strict" if isinstance(schema, dict) else "schema"
        raise ValueError(f"{FIELD} has the {wrong} {shown(asked.get(wrong))} in its json_schema; give {SCHEMA}")
    return schema
