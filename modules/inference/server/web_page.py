"""The page at /: a prompt box for people, and the card of the model behind it. Its files are in web/."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from starlette.responses import Response

from ...config.generation import LimitsConfig
from ...model.decoder import Decoder, parameter_count
from ...tokenizer.tokenizer import Tokenizer

WEB = Path(__file__).parent / "web"

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a text that the script made HTML of would be refused
    )
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

EXAMPLES = ["白日依山尽，", "床前明月光，", "春风"]

SHOWN = 200
"""Characters of a fact."""


def page_file(path: str) -> Response:
    """One of FILES. There is nothing in them that a browser may take from elsewhere, or send there."""
    name, kind = FILES[path]
    return Response((WEB / name).read_bytes(), media_type=kind, headers=HEADERS)


def model_facts(
    name: str, decoder: Decoder, tokenizer: Tokenizer, limits: LimitsConfig, run: Mapping[str, Any]
) -> dict[str, Any]:
    """The card: what the model is, and where it comes from as far as `run` (read_provenance) says."""
    architecture = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size")
    return {
        "name": name,
        "parameters": parameter_count(decoder.config),
        "architecture": {field: getattr(decoder.config, field) for field in architecture},
        "tokenizer": tokenizer.kind,
        "answers_alone": tokenizer.prompt_template is not None,
        "max_tokens": limits.max_new_tokens,
        "examples": examples(run),
        "run": {
            "run_id": text(run.get("run_id")),
            "commit": text(run.get("git.commit")),
            "dirty": run.get("git.dirty") == "true",
            "parent": last_part(within(run, "parent", "init_from") or run.get("parent")),
            "data": last_part(within(run, "config", "data", "path")),
            "rows": {key: n for key, n in mapping(run.get("rows")).items() if isinstance(n, int)},
            "scores": {key: value for key, value in mapping(run.get("metrics")).items() if finite(value)},
        },
    }


def examples(run: Mapping[str, Any]) -> list[str]:
    """The prompts that the training itself was watched by: they are of the model's own kind."""
    prompts = within(run, "config", "train", "sample_prompts")
    own = [prompt for prompt in prompts if text(prompt)] if isinstance(prompts, list) else []
    return own[:6] or EXAMPLES


def mapping(value: Any) -> dict[str, Any]:
    """With keys that are text."""
    return {key: part for key, part in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def within(run: Mapping[str, Any], *path: str) -> Any:
    value: Any = run
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text(value: Any) -> str | None:
    return value[:SHOWN] if isinstance(value, str) and value else None


def last_part(path: Any) -> str | None:
    """Of a path: whoever may read the page needn't learn how this machine's folders are called."""
    found = text(path)
    if found is None or found.startswith("models:/"):
        return found
    parts = PurePath(found).parts
    return (parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]) if parts else None


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
