"""The prompt template of an adapter: it goes with it, and where it isn't known convert says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from modules.checkpoint.adapter import save_adapter
from modules.checkpoint.loading import load_model
from modules.checkpoint.weights import CheckpointError, weights_hash
from modules.config.loader import ConfigError, load_config
from modules.system.checksums import sha256_of
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pipelines.convert import convert
from tests.helpers.models import make_config, make_decoder, save_model
from tests.model.test_lora import with_random_adapters

TEMPLATE = "问：{src_txt}\n答："


def converted(store: Path, *arguments: str) -> Tokenizer:
    """The tokenizer of what convert makes of base and adapter."""
    convert(load_config("convert", ["source=base", "adapter=adapter", "target=merged", *arguments]))
    return load_tokenizer(store / "merged")


def saved_with_template(store: Path, tokenizer: Tokenizer) -> Path:
    base = save_model(store / "base", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    decoder = load_model(base)
    config, tuned = with_random_adapters(decoder), tokenizer.with_prompt_template(TEMPLATE)
    return save_adapter(store / "adapter", decoder.state_dict(), decoder.config, config, weights_hash(base), tuned)


def forget(folder: Path, *keys: str) -> None:
    """As an earlier moyun wrote it."""
    facts = yaml.safe_load((folder / "adapter.yaml").read_text(encoding="utf-8"))
    (folder / "adapter.yaml").write_text(yaml.safe_dump({k: v for k, v in facts.items() if k not in keys}))


def test_the_prompt_template_goes_with_the_adapter(store: Path, tokenizer: Tokenizer) -> None:
    saved_with_template(store, tokenizer)
    assert converted(store).fingerprint == tokenizer.with_prompt_template(TEMPLATE).fingerprint


def test_what_else_decides_about_prompts_goes_with_it_too(store: Path, tokenizer: Tokenizer) -> None:
    """Templates of tasks, and the most of a source; to PEFT's layout and back."""
    base = save_model(store / "base", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    decoder = load_model(base)
    config, tasks = with_random_adapters(decoder), {"translate": "{src_txt}\n今译："}
    tuned = tokenizer.with_prompt_template(TEMPLATE, tasks).with_source_limit(7)
    save_adapter(store / "adapter", decoder.state_dict(), decoder.config, config, weights_hash(base), tuned)
    assert converted(store).fingerprint == tuned.fingerprint
    convert(load_config("convert", ["source=base", "adapter=adapter", "target=peft", "format=peft"]))
    convert(load_config("convert", ["source=base", "adapter=peft", "target=again"]))
    assert load_tokenizer(store / "again").fingerprint == tuned.fingerprint


def test_another_template_may_be_given(store: Path, tokenizer: Tokenizer) -> None:
    saved_with_template(store, tokenizer)
    assert converted(store, r"prompt_template=题：{src_txt}\n").prompt_template == "题：{src_txt}\n"
    with pytest.raises(ConfigError, match=r"prompt_template \('题'\) must hold \"\{src_txt\}\" exactly once"):
        load_config("convert", ["source=base", "target=other", "prompt_template=题"])


def test_an_adapter_of_an_earlier_moyun_says_that_its_template_is_unknown(
    store: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(saved_with_template(store, tokenizer), "tokenizer_sha256", "prompt_template")
    assert converted(store).fingerprint == tokenizer.fingerprint
    shown = " ".join(capsys.readouterr().out.split())
    assert "the adapter doesn't tell the prompt template that it was trained with: the source's is kept (none)" in shown
    assert "prompt_template='…{src_txt}…'" in shown


def test_an_adapter_of_an_earlier_moyun_beside_its_model_has_that_ones_template(
    store: Path, tokenizer: Tokenizer
) -> None:
    adapter = saved_with_template(store, tokenizer)
    facts = {"adapter_sha256": sha256_of(adapter / "adapter.safetensors")}
    tuned = tokenizer.with_prompt_template(TEMPLATE)
    save_model(store / "model", load_model(store / "base"), tuned, facts)
    forget(adapter, "tokenizer_sha256", "prompt_template")
    assert converted(store).prompt_template == TEMPLATE


def test_an_adapter_of_another_tokenizer_is_refused(store: Path, tokenizer: Tokenizer) -> None:
    saved_with_template(store, tokenizer)
    other = train_tokenizer([chr(0x5000 + n) for n in range(tokenizer.vocab_size - 257)] * 2)
    assert other.vocab_size == tokenizer.vocab_size
    shutil.rmtree(store / "base")
    save_model(store / "base", make_decoder(make_config(tokenizer.vocab_size)), other, {})
    with pytest.raises(CheckpointError, match="trained with another tokenizer than the source's"):
        converted(store)
    assert not (store / "merged").exists()
