"""Adapters both ways between moyun and PEFT, on a model's export to Hugging Face's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ["HF_HUB_OFFLINE"] = "1"
peft = pytest.importorskip("peft")
import transformers  # noqa: E402

from modules.checkpoint.adapter import read_adapter, save_adapter  # noqa: E402
from modules.checkpoint.loading import load_model, open_model  # noqa: E402
from modules.checkpoint.weights import CheckpointError, weights_hash  # noqa: E402
from modules.config.loader import ConfigError, load_config  # noqa: E402
from modules.config.model import LoraConfig  # noqa: E402
from modules.model.lora import adapted, add_lora  # noqa: E402
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer  # noqa: E402
from pipelines.convert import convert  # noqa: E402
from tests.helpers.models import make_config, make_decoder, save_model  # noqa: E402

TEMPLATE = "问：{src_txt}\n答："
IDS = torch.arange(1, 25)[None]
ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@pytest.fixture
def base(store: Path, tokenizer: Tokenizer) -> Path:
    """A model folder, and beside it its export."""
    folder = save_model(store / "base", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    convert(load_config("convert", ["source=base", "target=exported", "format=huggingface"]))
    return folder


def theirs() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained("exported").eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS)
    return getattr(found, "logits", found)


def refused(message: str, *arguments: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message):
        convert(load_config("convert", ["source=exported", "adapter=from_peft", "target=merged", *arguments]))
    assert not Path("merged").exists()


@pytest.mark.parametrize("targets", [["query_key_value"], ["dense", "dense_4h_to_h"], ALL], ids="+".join)
def test_peft_loads_an_adapter_of_moyuns(base: Path, targets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    decoder = load_model(base)
    config = LoraConfig(rank=3, alpha=6.5, target_modules=targets)
    add_lora(decoder, config, seed=1)
    for module in adapted(decoder).values():
        torch.nn.init.normal_(module.lora_b, 0, 0.3)
    tuned = load_tokenizer(base).with_prompt_template(TEMPLATE)
    save_adapter(base.parent / "adapter", decoder.state_dict(), decoder.config, config, weights_hash(base), tuned)
    plain = logits(decoder := decoder.eval()), logits(theirs())
    convert(load_config("convert", ["source=base", "adapter=adapter", "target=to_peft", "format=peft"]))
    shown = capsys.readouterr().out
    assert repr(TEMPLATE) in shown
    assert f"{sum(tensor.read().numel() for tensor in read_adapter('adapter').tensors.values()):,} in float32" in shown
    assert "PeftModel.from_pretrained(model, 'to_peft')" in " ".join(shown.split())
    found = logits(peft.PeftModel.from_pretrained(theirs(), "to_peft"))
    assert (found - plain[0]).abs().max() < 1e-4
    assert (found - plain[1]).abs().max() > 0.01

    ours, again = read_adapter("adapter"), read_adapter("to_peft")
    assert (again.base_weights_sha256, again.tokenizer_sha256) == (ours.base_weights_sha256, ours.tokenizer_sha256)
    assert again.prompt_template == TEMPLATE
    for folder in ("adapter", "to_peft"):
        convert(load_config("convert", ["source=base", f"adapter={folder}", f"target=merged_{folder}"]))
    one, other = (open_model(f"merged_{folder}").weights for folder in ("adapter", "to_peft"))
    assert all(torch.equal(tensor.read(), other[name].read()) for name, tensor in one.items())
    assert load_tokenizer("merged_to_peft").prompt_template == TEMPLATE


def made_by_peft(**options: Any) -> torch.Tensor:
    """Saves an adapter on the export; returns the logits with it."""
    torch.manual_seed(2)
    options = {
        "r": 4,
        "lora_alpha": 10,
        "target_modules": ["c_attn", "c_proj", "c_fc"],
        "fan_in_fan_out": True,
    } | options
    model = peft.get_peft_model(theirs(), peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    found = logits(model)
    model.save_pretrained("from_peft")
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(c_attn|mlp\.c_proj)"},
        {"use_rslora": True, "r": 3},
    ],
    ids=str,
)
def test_moyun_loads_an_adapter_of_pefts(
    base: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = made_by_peft(**options)
    for source in ("base", "exported"):
        convert(load_config("convert", [f"source={source}", "adapter=from_peft", f"target=merged_{source}"]))
        assert (logits(load_model(f"merged_{source}")) - expected).abs().max() < 1e-4
    assert (logits(load_model(base)) - expected).abs().max() > 0.01
    shown = " ".join(capsys.readouterr().out.split())
    assert "the adapter doesn't tell the prompt template" in shown
    assert "the adapter doesn't tell which weights it was trained on" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias=all is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.*lm_head.* is not supported"),
        ({"rank_pattern": {"c_attn": 2}}, "rank_pattern=.* is not supported"),
        ({"alpha_pattern": {"c_attn": 2}}, "alpha_pattern=.* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa is not supported, as it changes the base's own"),
        ({"target_modules": ["wte", "c_attn"]}, r"wte\.lora_.* is no adapter of a layer's matrix; moyun adapts"),
        ({"layers_to_transform": [1]}, r"transformer\.layers\.0\.attention\.query_key_value\.lora_a is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(base: Path, options: dict[str, Any], message: str) -> None:
    made_by_peft(**options)
    refused(message)


def test_damage_is_named(base: Path) -> None:
    made_by_peft()
    weights, config = Path("from_peft/adapter_model.safetensors"), Path("from_peft/adapter_config.json")
    tensors, options = load_file(weights), json.loads(config.read_text())
    for change, message in (
        ({"r": 5}, r"lora_a is \(4, 48\), not \(5, 48\)"),
        ({"r": "x"}, "r and lora_alpha must be numbers, not 'x' and 10"),
        ({"lora_alpha": 0}, r"alpha \(0.0\) must be a positive number"),
        ({"peft_type": "IA3"}, "peft_type=IA3 is not supported"),
        ({"something_new": {"a": 1}}, r"something_new=\{'a': 1\} is not supported"),
    ):
        config.write_text(json.dumps(options | change))
        refused(message)
    config.write_text(json.dumps(options))
    name = "base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    refused(r"layers\.1\.mlp\.dense_h_to_4h\.lora_b is missing")
    weights.write_bytes(weights.read_bytes()[:-9])
    refused(r"adapter_model\.safetensors is damaged")
    weights.unlink()
    refused(r"adapter_model\.safetensors is missing")


def test_an_adapter_is_needed(base: Path) -> None:
    with pytest.raises(ConfigError, match="format=peft writes an adapter as it is: give adapter=FOLDER"):
        load_config("convert", ["source=base", "target=new", "format=peft"])
