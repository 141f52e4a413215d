"""One turn: python -m benchmarks.worker MODULE:FUNCTION OPTIONS.json RESULT.json"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main(function: str, options: str, result: str) -> None:
    from .work import Work

    module, _, name = function.partition(":")
    given = json.loads(Path(options).read_text(encoding="utf-8"))
    found = getattr(import_module(module), name)(Work(**given["work"]), **given["options"])
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
