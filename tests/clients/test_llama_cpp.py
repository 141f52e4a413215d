"""llama.cpp's own server on the GGUF export, asked by OpenAI's client: the texts are moyun's."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from benchmarks.peer_llama_cpp import LlamaServer
from modules.config.loader import load_config
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.convert import convert
from tests.helpers.models import make_config, make_decoder, save_model

NEW = 8


@pytest.mark.server
def test_completions_chat_and_streams(store: Path, tokenizer: Tokenizer) -> None:
    tokenizer = tokenizer.with_prompt_template("问：{src_txt}\n答：")
    decoder = make_decoder(make_config(tokenizer.vocab_size, hidden_size=64))
    save_model(store / "model", decoder, tokenizer, {})
    convert(load_config("convert", ["source=model", "target=exported", "format=gguf", "dtype=float32"]))
    expected = TextGenerator(decoder, tokenizer)("白日依山尽，", temperature=0, max_new_tokens=NEW)["text"]
    server = LlamaServer(store / "exported" / "model.gguf")
    with openai.OpenAI(base_url=f"{server.server.listening_address}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="moyun", prompt="问：白日依山尽，\n答：", max_tokens=NEW, temperature=0
        )
        assert answer.choices[0].text == expected
        said = [{"role": "user", "content": "白日依山尽，"}]
        options = {"model": "moyun", "messages": said, "max_tokens": NEW, "temperature": 0}
        assert client.chat.completions.create(**options).choices[0].message.content == expected
        pieces = client.chat.completions.create(stream=True, **options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == expected
