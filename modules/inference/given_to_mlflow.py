"""MLflow changes a request before the model sees it; of moyun's models it is made to hand it over as it was given.

By itself MLflow 3 drops parameters that the signature lacks, and keys of the body that it doesn't know; refuses one
text where it expects a list of them; finds no column in a text or a list of texts; makes "5" of a 5 among the rows of
`instances`; and reads no CSV where a column may hold anything. It offers no way to choose otherwise. So three of its
functions are replaced, each by one that reads what belongs to moyun's signature and leaves all else to MLflow's own.
Where a later MLflow has no such function, it does there what it does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, wraps
from inspect import signature
from types import ModuleType
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import scoring_server

from ..config.base import shown
from .mlflow_input import BODY_FORMATS, COLUMN, EXAMPLE_BODY, column_of
from .signature import SIGNATURE


@cache
def hand_over_as_given() -> None:
    """Once a process."""
    replace(mlflow.pyfunc, "_validate_prediction_input", "input_schema", called)
    replace(scoring_server, "_parse_json_data", "input_schema", parsed_json)
    replace(scoring_server, "parse_csv_input", "schema", parsed_csv)


def replace(module: ModuleType, name: str, schema: str, ours: Callable[..., Any]) -> None:
    """schema: the parameter by which the function is told whose input it is."""
    if (theirs := getattr(module, name, None)) is None:
        return

    @wraps(theirs)
    def either(*arguments: Any, **named: Any) -> Any:
        if signature(theirs).bind(*arguments, **named).arguments.get(schema) != SIGNATURE.inputs:
            return theirs(*arguments, **named)
        try:
            return ours(*arguments, **named)
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    setattr(module, name, either)


def called(data: Any, params: Any, *_: object, **__: object) -> tuple[pd.DataFrame, Any]:
    """What `predict` is called with."""
    return frame_of(data), params


def parsed_json(data: Any, *_: object, **__: object) -> Any:
    """The body of a request, or the file of `mlflow models predict`; the same is refused as by the server."""
    body = data if isinstance(data, Mapping) else json.loads(data)
    if not isinstance(body, Mapping):
        raise ValueError(f"the body must be a JSON object, not {shown(body)}")
    for name in body:
        if name not in (*BODY_FORMATS, "params"):
            raise ValueError(f"{shown(name)} isn't known here; there is {', '.join(BODY_FORMATS)}, params")
    given = [name for name in BODY_FORMATS if name in body]
    if len(given) != 1:
        raise ValueError(f"body must have one of {', '.join(BODY_FORMATS)}, e.g. {EXAMPLE_BODY}")
    return scoring_server.ParsedJsonInput(column(column_of(body[given[0]], given[0])), body.get("params"), False)


def parsed_csv(csv_input: Any, *_: object, **__: object) -> pd.DataFrame:
    """CSV has no types: "5" is a text, and so are "NA" and an empty field."""
    return pd.read_csv(csv_input, dtype=str, keep_default_na=False)


def frame_of(given: Any) -> pd.DataFrame:
    """The column src_txt, unchecked, of what a Python caller gives: a table (whose index is kept), a text, texts, rows.

    A series, an array, and a table whose only column has no name are texts. Raises ValueError for anything else.
    """
    if isinstance(given, pd.DataFrame):
        if COLUMN not in given.columns and list(given.columns) != [0]:
            raise ValueError(f"inputs must have the column {COLUMN}, and these have {shown(list(given.columns))}")
        given = given[COLUMN if COLUMN in given.columns else 0]
    if isinstance(given, pd.Series):
        return column(given)
    given = plain(given)
    if isinstance(given, Mapping):
        given = {name: plain(values) for name, values in given.items()}
    return column([given] if isinstance(given, str) else column_of(given, "inputs"))


def column(texts: Any) -> pd.DataFrame:
    return pd.DataFrame({COLUMN: pd.Series(texts, dtype=object)})


def plain(values: Any) -> Any:
    """Arrays, series and tuples as lists."""
    if isinstance(values, np.ndarray | np.generic | pd.Series):
        return values.tolist()
    return list(values) if isinstance(values, tuple) else values
