"""Dialogue acts and the texts that people gave them: ConvLab's templates of CrossWOZ (Zhu et al. 2020, TACL 8).

A template is an utterance of the training dialogues whose values were replaced by the name of the intent that they
come from ("[Inform+酒店+价格]", numbered where the act has that intent more than once). The published SC-LSTM scores
are of such delexicalised texts, with all texts of one act as references.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from .corpus import Corpus, Example, is_text
from .packages import Package

_FOLDER = "convlab/nlg/template/crosswoz"
_SIDES = {"用户": f"{_FOLDER}/auto_user_template_nlg.json", "系统": f"{_FOLDER}/auto_system_template_nlg.json"}
_PLACEHOLDER = re.compile(r"\[[^\[\]]+\]")
_VALUES = "Inform+", "Recommend+"
_FACILITY = "酒店设施"


def read_templates(contents: Sequence[bytes], counts: Counter[str]) -> list[Example]:
    """Source: the side and its intents, numbered as their placeholders are. Left out: texts without an act, and those
    whose placeholders aren't the act's (a value that stood twice in the utterance, or inside of another)."""
    examples = []
    for side, content in zip(_SIDES, contents, strict=True):
        for act, texts in json.loads(content).items():
            counts["read"] += len(texts)
            distinct = list(dict.fromkeys(texts))
            counts["copies in an act"] += len(texts) - len(distinct)
            if not act:
                counts["without an act"] += len(distinct)
                continue
            intents = list(numbered(act.split("*")))
            slots = [f"[{intent}]" for intent in intents if has_value(intent)]
            source = f"{side}：{'；'.join(intents)}"
            whole = "*".join(sorted(set(act.split("*"))))
            for text in distinct:
                if not is_text(text) or sorted(set(_PLACEHOLDER.findall(text))) != sorted(slots):
                    counts["other placeholders"] += 1
                    continue
                examples.append(Example(source, text.strip(), whole, {"side": side, "slots": slots}))
    return examples


def numbered(intents: Sequence[str]) -> Iterator[str]:
    """Intents that stand more than once get a number from 1 up."""
    total, seen = Counter(intents), Counter[str]()
    for intent in intents:
        seen[intent] += 1
        yield f"{intent}{seen[intent]}" if total[intent] > 1 else intent


def has_value(intent: str) -> bool:
    """Whether the texts of the act say a value of this intent, by the rule that the templates were made with."""
    return (intent.startswith(_VALUES) or _FACILITY in intent) and not intent.rstrip("0123456789").endswith("无")


DATA_TO_TEXT = Corpus(
    name="data_to_text",
    licence="Apache-2.0",
    package=Package(
        "convlab",
        "3.0.1",
        "convlab-3.0.1.tar.gz",
        "911ee742a84885542db9404d82cb9162c37aa22e38f569ba6d8735aaf8677c2b",
        "Apache-2.0",
        backend="setuptools.build_meta",
    ),
    members=tuple(_SIDES.values()),
    prose=False,
    read=read_templates,
)
