"""The page at /: a prompt box, and the card of the model behind it. Its files are in web/."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ...config.generation import GenerationConfig, LimitsConfig
from ...config.schema import field_docs
from ...config.verse.forms import FORMS
from ...tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ...model.decoder import Decoder

WEB = Path(__file__).parent / "web"

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

PAGE_FILES = {
    "/" + ("" if path.name == "page.html" else path.name): (path.name, KINDS[path.suffix])
    for path in sorted(WEB.iterdir())
    if path.suffix in KINDS
}
"""Path → (file in web/, its media type)."""

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
"""Beginnings of verse, for a model that continues text and tells no prompts of its own; once the default of trainings,
they stand in older models' run.yaml."""

OF_BEAMS = ("num_beams", "length_penalty")
"""Generation parameters of beam search, which the server doesn't do."""

CHOICES = {"form": list(FORMS)}

FACT_CHARACTERS = 200
"""The most of a text on the card."""


def page_file(path: str) -> Response:
    """One of PAGE_FILES, with headers that keep the browser from loading or sending anything elsewhere."""
    name, kind = PAGE_FILES[path]
    return Response((WEB / name).read_bytes(), media_type=kind, headers=HEADERS)


def model_facts(
    name: str, decoder: Decoder, tokenizer: Tokenizer, limits: LimitsConfig, run: Mapping[str, Any]
) -> dict[str, Any]:
    """The model's card: what it is, and how it was made as far as `run` (read_provenance) says."""
    from ...model.decoder import parameter_count  # asked in the model's process, while the server's never needs torch

    architecture = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size")
    return {
        "name": name,
        "parameters": parameter_count(decoder.config),
        "architecture": {field: getattr(decoder.config, field) for field in architecture},
        "tokenizer": tokenizer.kind,
        "answers_alone": tokenizer.prompt_template is not None,
        "template": tokenizer.prompt_template,
        "task_templates": tokenizer.task_templates,
        "task": text_or_none(within(run, "config", "task", "name")) or last_part(within(run, "config", "data", "path")),
        "max_tokens": limits.max_new_tokens,
        "fields": list(request_fields()),
        "examples": example_prompts(run, verse=tokenizer.prompt_template is None),
        "run": {
            "run_id": text_or_none(run.get("run_id")),
            "commit": text_or_none(run.get("git.commit")),
            "dirty": run.get("git.dirty") == "true",
            "parent": last_part(within(run, "parent", "init_from") or run.get("parent")),
            "data": last_part(within(run, "config", "data", "path")),
            "rows": {key: n for key, n in mapping(run.get("rows")).items() if isinstance(n, int)},
            "scores": {key: value for key, value in mapping(run.get("metrics")).items() if finite(value)},
        },
    }


def request_fields() -> Iterator[dict[str, Any]]:
    """The parameters of a request for text, for the page's form: name, kind of value, default and meaning."""
    usual, docs = GenerationConfig(), field_docs(GenerationConfig)
    for entry in fields(GenerationConfig):
        renamed = entry.name == "max_new_tokens"  # and OpenAI has another default
        if entry.name not in OF_BEAMS:
            yield {
                "name": "max_tokens" if renamed else entry.name,
                "kind": str(entry.type).removesuffix(" | None"),
                "default": None if renamed else getattr(usual, entry.name),
                "choices": CHOICES.get(entry.name),
                "hint": " ".join(docs[entry.name].replace("`", "").split()),
            }


def example_prompts(run: Mapping[str, Any], verse: bool) -> list[str]:
    """The prompts that training sampled from: they are of the model's own kind."""
    prompts = within(run, "config", "train", "sample_prompts")
    own = [prompt for prompt in prompts if text_or_none(prompt)] if isinstance(prompts, list) else []
    if own and own != EXAMPLES:
        return own[:6]
    return EXAMPLES if verse else []


def mapping(value: Any) -> dict[str, Any]:
    """The entries whose keys are text; none of what is no mapping."""
    return {key: part for key, part in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def within(run: Mapping[str, Any], *path: str) -> Any:
    value: Any = run
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text_or_none(value: Any) -> str | None:
    return value[:FACT_CHARACTERS] if isinstance(value, str) and value else None


def last_part(path: Any) -> str | None:
    """The name at the end of a path: the page's readers needn't learn how this machine's folders are called."""
    found = text_or_none(path)
    if found is None or found.startswith("models:/"):
        return found
    parts = PurePath(found).parts
    return (parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]) if parts else None


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
