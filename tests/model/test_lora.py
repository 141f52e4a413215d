"""Low-rank adapters: what is trained, what is merged, what is kept, and what is refused."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import datasets
import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load_file

from modules.checkpoint.adapter import Adapter, apply_adapter, read_adapter, save_adapter
from modules.checkpoint.loading import load_model, open_model, verify_model
from modules.checkpoint.weights import CheckpointError, StoredModel, heads_to_blocks, stored, weights_hash
from modules.config.data import DataConfig
from modules.config.loader import ConfigError, load_config
from modules.config.model import LoraConfig
from modules.config.training import TrainConfig
from modules.data.datamodule import TextDataModule
from modules.model.decoder import Decoder, meta_decoder
from modules.model.lora import adapted, add_lora, initial_adapters, lora_parameter_count
from modules.system.checksums import sha256_of
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.training.fit import make_module
from modules.training.lightning_module import LanguageModel
from pipelines.convert import convert
from pipelines.finetune import finetune
from pipelines.train import set_up_training
from tests.helpers.models import make_config, make_decoder, save_model

TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
IDS = torch.arange(1, 25)[None]


def with_random_adapters(decoder: Decoder, **changes: object) -> LoraConfig:
    """As after training: B isn't zero any more, and adapters make a clear difference."""
    config = LoraConfig(**({"rank": 3, "alpha": 6.0} | changes))  # type: ignore[arg-type]
    add_lora(decoder, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in adapted(decoder).values():
            module.lora_b.normal_(0, 0.3, generator=generator)
    return config


@pytest.fixture
def base(tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer) -> Path:
    return save_model(tmp_path / "base", decoder, tokenizer, {})


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_draws_the_same_dropout(recompute: str) -> None:
    gradients = []
    for mode in ("none", recompute):
        decoder = make_decoder(make_config(100))
        with_random_adapters(decoder, dropout=0.5, target_modules=TARGETS)
        decoder.train().transformer.activation_checkpointing = mode
        torch.manual_seed(3)
        decoder(IDS).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_starts_equal_to_the_base_bit_for_bit(decoder: Decoder) -> None:
    expected = decoder(IDS)
    names = set(decoder.state_dict())
    trainable = add_lora(decoder, LoraConfig(rank=4, dropout=0.5, target_modules=TARGETS), seed=0)
    assert torch.equal(decoder(IDS), expected)
    assert set(decoder.state_dict()) - names == set(trainable) == set(initial_adapters(decoder, 0))
    lora_a = decoder.transformer.layers[0].mlp.dense_4h_to_h.lora_a
    assert lora_a.shape == (4, 192)
    assert 0.9 < float(lora_a.abs().max()) * 192**0.5 < 1.0


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query_key_value"], 2 * 4 * (48 + 144)),
        (["attention.dense", "dense"], 2 * 4 * (48 + 48)),
        (TARGETS, 2 * 4 * (48 + 144 + 48 + 48 + 48 + 192 + 192 + 48)),
    ],
)
def test_the_formula_counts_what_is_trainable(decoder: Decoder, targets: list[str], expected: int) -> None:
    config = LoraConfig(rank=4, target_modules=targets)
    trainable = add_lora(decoder, config, seed=0)
    found = {name: parameter.numel() for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert list(found) == trainable
    assert sum(found.values()) == expected == lora_parameter_count(decoder.config, config)


def test_adapters_can_be_laid_out_before_there_is_memory(decoder: Decoder) -> None:
    config = LoraConfig(rank=4, target_modules=TARGETS)
    later = meta_decoder(decoder.config)
    names = add_lora(later, config, seed=7)
    assert all(parameter.is_meta for parameter in later.parameters())
    later.to_empty(device="cpu")
    later.load_state_dict(decoder.state_dict() | initial_adapters(later, seed=7))
    assert names == add_lora(decoder, config, seed=7)
    for (name, one), (other_name, other) in zip(later.named_parameters(), decoder.named_parameters(), strict=True):
        assert (name, one.requires_grad) == (other_name, other.requires_grad)
        assert torch.equal(one, other), name


def test_only_adapters_learn(decoder: Decoder, tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path) -> None:
    before = copy.deepcopy(decoder.state_dict())
    trainable = add_lora(decoder, LoraConfig(rank=4, target_modules=TARGETS), seed=0)
    start = copy.deepcopy(decoder.state_dict())
    module = LanguageModel(decoder.train(), TrainConfig(max_steps=3, warmup_steps=1, gradient_clip_val=0.1), 1e-2, 3)
    data = TextDataModule({"train": rows, "validation": rows}, tokenizer, DataConfig(sequence_length=96), batch_size=8)
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    after = decoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(torch.equal(after[name], start[name]) for name in trainable)
    assert {name for name, parameter in decoder.named_parameters() if parameter.grad is not None} <= set(trainable)
    state = trainer.optimizers[0].state
    assert {id(parameter) for parameter in state} == {id(decoder.get_parameter(name)) for name in trainable}


def merge(decoder: Decoder, config: LoraConfig) -> Decoder:
    """What convert and the end of a training run make of a decoder with adapters."""
    base = {name: tensor for name, tensor in decoder.state_dict().items() if "lora_" not in name}
    adapters = {name: tensor for name, tensor in decoder.state_dict().items() if "lora_" in name}
    heads = decoder.config.num_attention_heads
    for name in adapters:
        if name.endswith("query_key_value.lora_b"):
            adapters[name] = heads_to_blocks(adapters[name], heads)  # as in the file
    model = apply_adapter(StoredModel(decoder.config, stored(base)), Adapter(config, "", stored(adapters)), "")
    merged = meta_decoder(decoder.config)
    merged.load_state_dict({name: tensor.read() for name, tensor in model.weights.items()}, assign=True)
    return merged.eval()


@pytest.mark.parametrize("target", [*TARGETS, "attention.dense"])
@torch.no_grad()
def test_merged_logits_are_the_adapted_ones(decoder: Decoder, target: str) -> None:
    plain = decoder(IDS)
    names = set(decoder.state_dict())
    config = with_random_adapters(decoder, target_modules=[target])
    expected = decoder(IDS)
    assert float((expected - plain).abs().max()) > 0.1
    merged = merge(decoder, config)
    assert float((merged(IDS) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert set(merged.state_dict()) == names


@torch.no_grad()
def test_merging_keeps_each_matrixs_type_and_rounds_once(decoder: Decoder) -> None:
    decoder.bfloat16()
    config = with_random_adapters(decoder, target_modules=TARGETS)
    module = decoder.transformer.layers[1].attention.query_key_value
    assert module.lora_a.dtype == torch.float32
    assert decoder(IDS).dtype == torch.bfloat16
    update = module.lora_b @ module.lora_a * (config.alpha / config.rank)
    expected = (module.weight.float() + update).bfloat16()
    merged = merge(decoder, config)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(merged.transformer.layers[1].attention.query_key_value.weight, expected)


@torch.no_grad()
def test_dropout_is_for_training_alone(decoder: Decoder) -> None:
    with_random_adapters(decoder, dropout=0.5)
    assert torch.equal(decoder(IDS), decoder(IDS))
    decoder.train()
    assert not torch.equal(decoder(IDS), decoder(IDS))


# --- files ---


def saved(folder: Path, decoder: Decoder, config: LoraConfig, base: Path) -> Path:
    return save_adapter(folder, decoder.state_dict(), decoder.config, config, weights_hash(base), load_tokenizer(base))


def applied(base: Path, adapter: Adapter) -> dict[str, torch.Tensor]:
    model = apply_adapter(open_model(base), adapter, weights_hash(base))
    return {name: tensor.read() for name, tensor in model.weights.items()}


def test_an_adapter_on_its_base_is_the_merged_model(base: Path, tmp_path: Path) -> None:
    decoder = load_model(base)
    config = with_random_adapters(decoder, target_modules=TARGETS)
    folder = saved(tmp_path / "adapter", decoder, config, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "adapter.yaml"]
    name = "transformer.layers.0.attention.query_key_value.lora_b"
    in_file = load_file(folder / "adapter.safetensors")[name]
    assert torch.equal(in_file, heads_to_blocks(decoder.get_parameter(name), 4))
    found, expected = applied(base, read_adapter(folder)), merge(decoder, config).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(FileExistsError, match="an adapter is never overwritten"):
        saved(folder, decoder, config, base)


def test_an_adapter_is_refused_where_it_does_not_belong(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    decoder = load_model(base)
    config = with_random_adapters(decoder)
    adapter = read_adapter(saved(tmp_path / "adapter", decoder, config, base))
    other = save_model(tmp_path / "other", make_decoder(decoder.config, seed=5), tokenizer, {})
    with pytest.raises(CheckpointError, match=r"trained on other weights .* give the model folder that train\.init_fr"):
        applied(other, adapter)
    part = Adapter(config, weights_hash(base), dict(list(adapter.tensors.items())[1:]))
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.query_key_value\.lora_a is missing"):
        applied(base, part)


def test_a_damaged_adapter_is_named(base: Path, tmp_path: Path) -> None:
    decoder = load_model(base)
    folder = saved(tmp_path / "adapter", decoder, with_random_adapters(decoder), base)
    weights, facts = folder / "adapter.safetensors", folder / "adapter.yaml"
    sound, said = weights.read_bytes(), facts.read_text()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors differs from what was saved"):
        read_adapter(folder)
    weights.write_bytes(sound)
    for damage in (said.replace("rank: 3", "rank: -3"), said.replace("alpha", "beta"), "rank", "a: [", ""):
        facts.write_text(damage)
        with pytest.raises(CheckpointError, match=r"adapter\.yaml is damaged"):
            read_adapter(folder)
    facts.unlink()
    with pytest.raises(CheckpointError, match=r"is no adapter folder: adapter\.yaml is missing"):
        read_adapter(folder)


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


# --- what can be asked for ---


def test_an_unknown_target_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"called query; there is dense, dense_4h_to_h, dense_h_to_4h, query_key_val"):
        add_lora(decoder, LoraConfig(rank=1, target_modules=["dense", "query"]), seed=0)
    assert all(parameter.requires_grad for parameter in decoder.parameters())  # left as it was


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lora.rank=-1"], r"lora\.rank \(-1\) must be at least 0"),
        (["lora.alpha=0"], r"lora\.alpha \(0\.0\) must be a positive number"),
        (["lora.dropout=1"], r"lora\.dropout \(1\.0\) must be at least 0 and below 1"),
        (["lora.target_modules=[q_proj]"], r"lora\.target_modules \(q_proj\) must be of query_key_value, dense"),
        (["lora.target_modules=[dense]"], r"lora\.rank must be given, or no adapters are made"),
        (["lora.rank=8", "lora.target_modules=[]"], r"lora\.target_modules must name what gets adapters of rank 8"),
        (["lora.rank=8", "train.init_from=null", "model=tiny"], r"lora\.rank=8: adapters need a model to adapt"),
        (
            ["lora.rank=8", "trainer.devices=2", "trainer.strategy=fsdp", "trainer.tensor_parallel=2"],
            r"lora\.rank=8 and trainer\.tensor_parallel=2 exclude each other",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config("finetune", ["train.init_from=folder", *arguments])


# --- the whole way ---


def test_finetuning_with_adapters_gives_a_model_like_any_other(
    store: Path, tokenizer: Tokenizer, rows: datasets.Dataset
) -> None:
    config = make_config(tokenizer.vocab_size, hidden_size=96, num_attention_heads=4)
    base = save_model(store / "base", make_decoder(config), tokenizer, {})
    arguments = [
        "train.init_from=base", "lora.rank=4", "data.sequence_length=64", "train.schedule=constant",
        "train.learning_rate=1e-2", "train.warmup_steps=1", "train.max_steps=3", "train.validate_every_n_steps=2",
        "generation.max_new_tokens=4", "output_dir=out", "trainer.accelerator=cpu", "trainer.progress_bar=false",
        "tracking.log_system_metrics=false",
    ]  # fmt: skip
    result = finetune(load_config("finetune", arguments), rows)
    assert result.model is not None
    assert verify_model(result.model) == 0.0
    adapter = read_adapter(store / "out" / "adapter")
    tuned = load_tokenizer(result.model)
    assert adapter.tokenizer_sha256 == tokenizer.fingerprint
    assert adapter.prompt_template == tuned.prompt_template
    expected = applied(base, adapter)
    found = load_model(result.model).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["transformer.layers.0.attention.query_key_value.weight"],
                           load_model(base).transformer.layers[0].attention.query_key_value.weight)  # fmt: skip
    values = lora_parameter_count(config, LoraConfig(rank=4))
    assert sum(tensor.read().numel() for tensor in adapter.tensors.values()) == values
    assert (store / "out" / "adapter" / "adapter.safetensors").stat().st_size < 4 * values + 2000
    run = yaml.safe_load((result.model / "run.yaml").read_text(encoding="utf-8"))
    assert run["parent"]["weights_sha256"] == weights_hash(base) == adapter.base_weights_sha256
    assert run["config"]["lora"]["rank"] == 4
    checkpoint = store / "out" / "checkpoints" / "last.ckpt"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size < 12 * values + 100_000  # adapters and AdamW's two moments of them


def test_in_bf16_the_frozen_weights_are_and_the_adapters_are_not(
    store: Path, tokenizer: Tokenizer, rows: datasets.Dataset, decoder: Decoder
) -> None:
    save_model(store / "base", decoder, tokenizer, {})
    losses = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        arguments = [
            "train.init_from=base", "lora.rank=4", "data.sequence_length=64", "train.max_steps=3",
            "train.warmup_steps=1",
            f"trainer.precision={precision}", f"output_dir={precision}", "train.sample_prompts=[]",
            "trainer.accelerator=cpu", "trainer.progress_bar=false", "tracking.log_system_metrics=false",
        ]  # fmt: skip
        config = load_config("finetune", arguments)
        module = make_module(config, set_up_training(config, rows))
        types = {name.rpartition(".")[2]: parameter.dtype for name, parameter in module.named_parameters()}
        frozen = torch.bfloat16 if precision == "bf16-true" else torch.float32
        assert types == {"weight": frozen, "bias": frozen, "lora_a": torch.float32, "lora_b": torch.float32}
        result = finetune(config, rows)
        assert result.metrics
        losses[precision] = result.metrics["val/loss"]
        adapter = read_adapter(store / precision / "adapter")
        assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=1e-2)
    assert losses["bf16-true"] == pytest.approx(losses["32-true"], rel=1e-2)
