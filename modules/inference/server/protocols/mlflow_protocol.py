"""MLflow's scoring protocol (POST /invocations), as `mlflow models serve` has it for the model in pyfunc.py.

https://mlflow.org/docs/latest/deployment/deploy-model-locally#json-input: one of inputs, instances, dataframe_split
and dataframe_records with the column src_txt, and params. Answers are {"predictions": [{"text": …}, …]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....config.base import shown
from ....config.generation import LimitsConfig
from ...mlflow_input import BODY_FORMATS, COLUMN, EXAMPLE_BODY, column_of
from ..model_process.messages import Event
from ..requests import PARAMETERS, CompletionRequest, RequestError, bad, check_known, check_text, parse_parameters


def parse_invocation(body: Mapping[str, Any], limits: LimitsConfig, full: bool) -> CompletionRequest:
    """What a body of /invocations asks for. Raises RequestError for anything that can't be done as asked.

    full: each text is to begin with its prompt, as of a model that continues text.
    """
    check_known(body, (*BODY_FORMATS, "params"))
    given = [name for name in BODY_FORMATS if name in body]
    if len(given) != 1:
        raise bad("body", f"must have one of {', '.join(BODY_FORMATS)}, e.g. {EXAMPLE_BODY}")
    try:
        texts = column_of(body[given[0]], given[0])
    except ValueError as error:
        field, _, what = str(error).partition(" ")
        raise bad(field, what) from None
    for row, text in enumerate(texts):
        check_text(f"{COLUMN} {row}", text)
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise bad("params", f"must be an object, e.g. {{'max_new_tokens': 32}}, not {shown(params)}")
    check_known(params or {}, ("max_new_tokens", *PARAMETERS))
    config = parse_parameters(params or {}, {})
    if "max_new_tokens" not in (params or {}):  # a default of nobody's choosing isn't over the limit
        config.max_new_tokens = min(config.max_new_tokens, limits.max_new_tokens)
    return CompletionRequest(texts, config, echo=full, new_tokens="max_new_tokens")


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
