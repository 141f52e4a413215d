"""A prompt template as a Jinja template for chats, which transformers, vLLM and llama.cpp apply.

One turn becomes a prompt as moyun makes it. For several, start ids come first; each user's text stands in the template,
each answer ends with end-of-text, and a system message stands on a line of its own before the first user's text.
"""

from __future__ import annotations

import json

from ...tokenizer.prompt_template import split_template

ROLES = "user and assistant take turns, after one system message at most"
SYSTEM, CONTENT = "ns.system", "message['content']"


def chat_template(template: str | None, start: str, end: str, seam: str = "") -> str:
    """start, end: the special tokens as text; seam: what stands between the parts that moyun encodes one by one."""
    before, after = (literal(part) for part in split_template(template))
    part = literal(seam)
    return "".join(
        [
            shown(literal(start)),
            "{%- set ns = namespace(system='', last='assistant') -%}",
            "{%- for message in messages -%}",
            "{%- if message['role'] == 'user' and ns.last == 'assistant' -%}",
            shown(before, part, SYSTEM, CONTENT, part, after),
            "{%- set ns.system = '' -%}",
            "{%- set ns.last = 'user' -%}",
            "{%- elif message['role'] == 'assistant' and ns.last == 'user' -%}",
            shown(part, CONTENT, literal(end)),
            "{%- set ns.last = 'assistant' -%}",
            "{%- elif message['role'] in ['system', 'developer'] and loop.first -%}",
            "{%- set ns.system = " + CONTENT + " + '\\n' -%}",
            "{%- else -%}",
            "{{ raise_exception(" + literal(ROLES) + ") }}",
            "{%- endif -%}",
            "{%- endfor -%}",
        ]
    )


def shown(*expressions: str) -> str:
    """Jinja that writes the expressions one after the other; empty texts are left out."""
    told = " + ".join(expression for expression in expressions if expression != '""')
    return "{{ " + told + " }}" if told else ""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
