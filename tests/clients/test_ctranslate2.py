"""CTranslate2 converts a model's export to Hugging Face's layout, loads it, and writes what moyun writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
import ctranslate2
import transformers

from modules.checkpoint.formats import huggingface
from modules.config.generation import GenerationConfig
from modules.model.sampling import generate
from tests.checkpoint.formats.test_huggingface import decoder_of, stored_model, tokenizer_of
from tests.helpers.models import make_config

NEW = 24


@pytest.mark.parametrize("template", [None, "问：{src_txt}\n答："], ids=["plain", "template"])
@pytest.mark.parametrize("padding", [0, 5], ids=["", "more ids than tokens"])
@pytest.mark.parametrize("kind", ["character", "bpe", "bert", "byte_level_bpe"])
def test_it_writes_the_same(kind: str, padding: int, template: str | None, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path / "source").with_prompt_template(template)
    model = stored_model(make_config(tokenizer.vocab_size + padding, hidden_act="gelu_new"))
    huggingface.write(tmp_path / "exported", model, tokenizer)
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "exported"))
    converter.convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type="float32")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    prompt = tokenizer.encode_prompt("白日依山尽，")
    (found,) = generator.generate_batch(
        [auto.convert_ids_to_tokens(prompt)],
        max_length=NEW,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    greedy = GenerationConfig(max_new_tokens=NEW, temperature=0)
    written = generate(decoder_of(model), [prompt], greedy, tokenizer.end_of_text_id)
    expected = [token for _, token in written if token is not None]
    assert len(set(expected)) > 4, "too dull a text to tell two functions apart"
    assert found.sequences_ids[0] == expected
