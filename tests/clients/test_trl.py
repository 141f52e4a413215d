"""The losses of preferences, and their gradients, are TRL's on the same batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("trl")
import datasets
import transformers

from modules.config.loader import load_config
from modules.config.preferences.preference import PreferenceConfig
from modules.config.training import TrainConfig
from modules.data.encoding import Documents
from modules.data.packing import make_step
from modules.data.preferences.pair_packing import Pairs
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.preferences.preference_model import PreferenceModel
from pipelines.convert import convert
from tests.helpers.models import make_config, make_decoder, save_model

ROWS = [
    {"prompt": "白日依山尽，", "chosen": "黄河入海流。", "rejected": "春眠不觉晓"},
    {"prompt": "床前明月光，", "chosen": "疑是", "rejected": "地上霜，举头望明月。低头思故乡"},
    {"prompt": "春", "chosen": "眠不觉晓，处处闻啼鸟。", "rejected": "山"},
]


@pytest.fixture
def decoders(store: Path, tokenizer: Tokenizer) -> tuple[Decoder, Decoder]:
    """The model that is trained, and the one that training starts from; beside them their exports."""
    made = []
    for name, seed in (("policy", 1), ("start", 2)):
        decoder = make_decoder(make_config(tokenizer.vocab_size), seed, spread=2.0)
        save_model(store / name, decoder, tokenizer, {})
        convert(load_config("convert", [f"source={name}", f"target=hf-{name}", "format=huggingface"]))
        made.append(decoder)
    return made[0], made[1]


def loaded(name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(f"hf-{name}", attn_implementation="eager").eval()


def arguments(kind: Any, **more: Any) -> Any:
    return kind(
        output_dir="trl", per_device_train_batch_size=3, max_length=90, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, **more,
    )  # fmt: skip


def documents_of(texts: list[tuple[list[int], int]]) -> Documents:
    """texts: (ids, ids of the prompt), chosen and rejected in turn."""
    lengths = [len(ids) for ids, _ in texts]
    nothing = np.zeros(len(texts), np.int32)
    return Documents(
        ids=np.concatenate([np.array(ids, np.int32) for ids, _ in texts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=np.array([prompt for _, prompt in texts], np.int32),
        characters=nothing,
        ended=nothing,
        lost_bytes=nothing,
        rows=len(texts) // 2,
        rows_cut=0,
        rows_split=0,
    )


def ours(
    decoder: Decoder, texts: list[tuple[list[int], int]], config: PreferenceConfig, start: Decoder | None, tokens: int
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a step, whose passes have up to so many tokens."""
    module = PreferenceModel(decoder, TrainConfig(max_steps=1), 1e-3, 1, preference=config)
    pairs = Pairs.of(documents_of(texts), whole_texts=config.loss == "orpo")
    if start:
        reference = [log_probability(start, ids, prompt) for ids, prompt in texts]
        pairs = Pairs.of(pairs, reference=np.array(reference, np.float32).reshape(-1, 2))
    step = make_step(pairs, np.arange(len(pairs)), tokens)
    module.pairs = len(pairs)
    module.chosen_tokens = sum(batch.chosen_tokens for batch in step.micro_batches)  # type: ignore[attr-defined]
    decoder.zero_grad()
    total = 0.0
    for batch in step.micro_batches:
        loss = module._step(batch) / len(pairs)
        loss.backward()
        total += loss.item()
    return total, decoder.word_embeddings.weight.grad.clone()  # type: ignore[union-attr]


@torch.no_grad()
def log_probability(decoder: Decoder, ids: list[int], prompt: int) -> float:
    scores = decoder(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    return float(scores.gather(1, torch.tensor(ids[1:])[:, None])[prompt - 1 :].sum())


@pytest.mark.parametrize("tokens", [10_000, 40], ids=["a pass", "several passes"])
def test_dpo(decoders: tuple[Decoder, Decoder], tokens: int) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=loaded("policy"),
        ref_model=loaded("start"),
        args=arguments(DPOConfig, beta=0.3, disable_dropout=True),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=transformers.AutoTokenizer.from_pretrained("hf-policy"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer._compute_loss(trainer.model, dict(batch), return_outputs=False)
    expected.backward()
    texts = []
    for side in zip(
        *(part.chunk(2) for part in (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])),
        strict=True,
    ):
        texts.append(
            [(ids[mask > 0].tolist(), int((mask - answer).sum())) for ids, mask, answer in zip(*side, strict=True)]
        )
    flat = [text for pair in zip(*texts, strict=True) for text in pair]
    policy, start = decoders
    loss, gradient = ours(policy, flat, PreferenceConfig("dpo", 0.3), start, tokens)
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert_same(gradient, trainer.model)


@pytest.mark.parametrize("tokens", [10_000, 40], ids=["a pass", "several passes"])
def test_orpo(decoders: tuple[Decoder, Decoder], tokens: int) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = orpo.ORPOTrainer(
        model=loaded("policy"),
        args=arguments(orpo.ORPOConfig, beta=0.3, disable_dropout=True),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=transformers.AutoTokenizer.from_pretrained("hf-policy"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    expected.backward()
    texts = []
    for side in ("chosen", "rejected"):
        columns = (batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels"))
        texts.append(
            [(ids[m > 0].tolist(), int((labels[m > 0] < 0).sum())) for ids, m, labels in zip(*columns, strict=True)]
        )
    flat = [text for pair in zip(*texts, strict=True) for text in pair]
    loss, gradient = ours(decoders[0], flat, PreferenceConfig("orpo", 0.3), None, tokens)
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert_same(gradient, trainer.model)


def assert_same(gradient: torch.Tensor, model: Any) -> None:
    theirs = model.get_input_embeddings().weight.grad[: len(gradient)]
    assert float((gradient - theirs).norm() / theirs.norm()) < 1e-4
