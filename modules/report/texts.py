"""Names and texts as they are shown."""

from __future__ import annotations

import re

SHOWN_CHARACTERS = 400
"""Of a text."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls, half characters, and marks that turn the direction of the text around them."""
LABELS = {
    "perplexity_per_char": "Perplexity per character",
    "perplexity": "Perplexity per token",
    "end_of_text_rate": "Ended by itself",
    "bleu": "BLEU",
}


def label(name: str) -> str:
    """end_of_text_rate → Ended by itself, rougeL → ROUGE-L, slot_error_rate → Slot error rate."""
    if known := LABELS.get(name):
        return known
    words = re.sub(r"^(bleu|rouge)[_-]?", lambda found: found[1].upper() + "-", name).replace("_", " ")
    return words[:1].upper() + words[1:]


def shown(text: str) -> str:
    """What a reader can take in, and a browser show: cut, and without characters that aren't to be seen."""
    clean = UNPRINTABLE.sub("�", text)
    return clean if len(clean) <= SHOWN_CHARACTERS else f"{clean[:SHOWN_CHARACTERS]}…"
