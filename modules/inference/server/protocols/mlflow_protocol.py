"""MLflow's scoring protocol (POST /invocations), as `mlflow models serve` has it for the model in pyfunc.py.

https://mlflow.org/docs/latest/deployment/deploy-model-locally#json-input: one of inputs, instances, dataframe_split
and dataframe_records with the column src_txt, and params. Answers are {"predictions": [{"text": …}, …]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....config.base import shown
from ....config.generation import LimitsConfig
from ..engine import Event
from ..requests import PARAMETERS, CompletionRequest, RequestError, bad, check_known, check_text, parse_parameters

EXAMPLE_BODY = '{"inputs": {"src_txt": ["白日依山尽，"]}}'
BODY_FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")
COLUMN = "src_txt"
PARAMS = ("max_new_tokens", *(name for name in PARAMETERS if name != "logit_bias"))
"""Those of signature.PARAMS; MLflow has no parameter that is a mapping."""


def parse_invocation(body: Mapping[str, Any], limits: LimitsConfig, full: bool) -> CompletionRequest:
    """What a body of /invocations asks for. Raises RequestError for anything that can't be done as asked.

    full: each text is to begin with its prompt, as of a model that continues text.
    """
    check_known(body, (*BODY_FORMATS, "params"))
    given = [name for name in BODY_FORMATS if name in body]
    if len(given) != 1:
        raise bad("body", f"must have one of {', '.join(BODY_FORMATS)}, e.g. {EXAMPLE_BODY}")
    texts = column_of(body[given[0]], given[0])
    for row, text in enumerate(texts):
        check_text(f"{COLUMN} {row}", text)
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise bad("params", f"must be an object, e.g. {{'max_new_tokens': 32}}, not {shown(params)}")
    check_known(params or {}, PARAMS)
    config = parse_parameters(params or {}, {})
    if "max_new_tokens" not in (params or {}):  # a default of nobody's choosing isn't over the limit
        config.max_new_tokens = min(config.max_new_tokens, limits.max_new_tokens)
    return CompletionRequest(texts, config, echo=full, new_tokens="max_new_tokens")


def column_of(content: Any, name: str) -> list[Any]:
    """The values of src_txt, unchecked, in any of the four forms; other columns are ignored, as MLflow does."""
    if name == "dataframe_split":
        return column_of_split(content)
    if isinstance(content, dict) and name != "dataframe_records":
        texts = content.get(COLUMN)
        if isinstance(texts, str | list):
            return [texts] if isinstance(texts, str) else texts
    elif isinstance(content, list):
        if all(isinstance(row, dict) and COLUMN in row for row in content):
            return [row[COLUMN] for row in content]
        if name != "dataframe_records" and not any(isinstance(row, dict | list) for row in content):
            return content  # the one column, without its name
    raise bad(name, f"must have the column {COLUMN}, e.g. {EXAMPLE_BODY}, not {shown(content)}")


def column_of_split(content: Any) -> list[Any]:
    """{"columns": ["src_txt", …], "data": [["春", …], …]}, with pandas's "index" or without."""
    if not isinstance(content, dict) or set(content) - {"columns", "data", "index"}:
        raise bad("dataframe_split", f"must have columns and data, not {shown(content)}")
    names, data = content.get("columns"), content.get("data")
    if not isinstance(names, list) or COLUMN not in names:
        raise bad("dataframe_split", f"must have columns with '{COLUMN}' among them, not {shown(names)}")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        raise bad("dataframe_split", f"must have data of {len(names)} values a row, [['春'], …], not {shown(data)}")
    place = names.index(COLUMN)
    return [row[place] for row in data]


def predictions(ends: Sequence[Event]) -> dict[str, Any]:
    """The answer."""
    return {"predictions": [{"text": end.text} for end in ends]}


def mlflow_error(problem: RequestError) -> dict[str, Any]:
    """The body of an error, as MLflow's scoring server writes it."""
    code = {
        400: "INVALID_PARAMETER_VALUE",
        401: "UNAUTHENTICATED",
        503: "TEMPORARILY_UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
    name = code.get(problem.status, "INTERNAL_ERROR" if problem.status == 500 else "BAD_REQUEST")
    return {"error_code": name, "message": str(problem)}
