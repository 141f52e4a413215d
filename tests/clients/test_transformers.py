"""transformers writes what moyun writes, on the export to Hugging Face's layout: by its models, its pipeline, its chat
template, and when it has saved the model and loaded it again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers

from modules.config.loader import load_config
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.convert import convert
from tests.checkpoint.formats.test_huggingface import decoder_of, stored_model
from tests.helpers.models import make_config, save_model

TEMPLATE = "问：{src_txt}\n答："
NEW = 12


@pytest.fixture(params=[None, TEMPLATE], ids=["plain", "template"])
def ours(request: pytest.FixtureRequest, store: Path, tokenizer: Tokenizer) -> TextGenerator:
    """The model, and its export in exported/."""
    tokenizer = tokenizer.with_prompt_template(request.param)
    decoder = decoder_of(stored_model(make_config(tokenizer.vocab_size)))
    save_model(store / "model", decoder, tokenizer, {})
    convert(load_config("convert", ["source=model", "target=exported", "format=huggingface"]))
    return TextGenerator(decoder, tokenizer)


def greedy(generator: TextGenerator, text: str) -> str:
    found: str = generator(text, return_full_text=False, temperature=0, max_new_tokens=NEW)["text"]
    return found


def test_models_and_their_pipeline_write_the_same(ours: TextGenerator) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained("exported").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    settings = transformers.GenerationConfig.from_pretrained("exported", max_new_tokens=NEW, do_sample=False)
    template = ours.tokenizer.prompt_template or "{src_txt}"
    for text in ("白日依山尽，", "春"):
        expected = greedy(ours, text)
        assert len(set(expected)) > 3, "too dull a text to tell two functions apart"
        asked = template.replace("{src_txt}", text)
        ids = tokenizer(asked, return_tensors="pt")
        written = model.generate(**ids, generation_config=settings)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == expected
        writer = transformers.pipeline("text-generation", model="exported", device="cpu")
        (found,) = writer(asked, generation_config=settings, return_full_text=False)
        assert found["generated_text"] == expected


def test_what_it_saves_and_loads_again_writes_the_same(ours: TextGenerator) -> None:
    expected = greedy(ours, "春")
    transformers.AutoModelForCausalLM.from_pretrained("exported").save_pretrained("again")
    transformers.AutoTokenizer.from_pretrained("exported").save_pretrained("again")
    convert(load_config("convert", ["source=again", "target=back"]))
    from modules.checkpoint.loading import load_model
    from modules.tokenizer.tokenizer import load_tokenizer

    assert greedy(TextGenerator(load_model("back"), load_tokenizer("back")), "春") == expected
    settings = transformers.GenerationConfig.from_pretrained("again", max_new_tokens=NEW, do_sample=False)
    asked = (ours.tokenizer.prompt_template or "{src_txt}").replace("{src_txt}", "春")
    (found,) = transformers.pipeline("text-generation", model="again", device="cpu")(
        asked, generation_config=settings, return_full_text=False
    )
    assert found["generated_text"] == expected


def test_its_pipeline_takes_a_conversation(ours: TextGenerator) -> None:
    writer = transformers.pipeline("text-generation", model="exported", device="cpu")
    settings = transformers.GenerationConfig.from_pretrained("exported", max_new_tokens=NEW, do_sample=False)
    said = [{"role": "user", "content": "春"}]
    if ours.tokenizer.prompt_template is None:
        with pytest.raises(ValueError, match="chat_template is not set"):
            writer(said, generation_config=settings)
        return
    (found,) = writer(said, generation_config=settings)
    assert found["generated_text"][-1] == {"role": "assistant", "content": greedy(ours, "春")}
