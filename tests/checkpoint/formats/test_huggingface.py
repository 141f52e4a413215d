from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoint.formats import huggingface
from modules.checkpoint.weights import CheckpointError, StoredModel, stored
from modules.config.generation import GenerationConfig
from modules.config.model import ModelConfig
from modules.model.decoder import Decoder
from modules.model.sampling import generate
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder

DATA = ROOT / "tests" / "files" / "modelscope"
CORPUS = ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "the quick brown fox, the quick brown dog\n"] * 3
TEXTS = ["白日依山尽，", "the quick 龘\n fox", " <|endoftext|>[SEP]<0x41>", "Hello  白 world, it's (ok)."]
TINY = {"vocab_size": 99, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind == "character" or kind == "bpe":
        return train_tokenizer(CORPUS, kind, vocab_size=420)  # type: ignore[arg-type]
    if kind == "byte_level_bpe":
        write_gpt2_tokenizer(folder)
        return load_tokenizer(folder)
    return load_tokenizer(DATA / "base")


def write_gpt2_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt as GPT-2's, with config.json saying where a text ends."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    (folder / "config.json").write_text('{"eos_token_id": 0, "bos_token_id": 0}')


def stored_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> StoredModel:
    decoder = make_decoder(config, spread=8)
    # So that greedy text doesn't repeat its last token for ever: tied embeddings that outweigh all else do.
    decoder.word_embeddings.weight.data.div_(8)
    decoder.position_embeddings.weight.data.mul_(3)
    return StoredModel(config, stored(decoder.to(dtype).state_dict()))


def decoder_of(model: StoredModel) -> Decoder:
    decoder = Decoder(model.config).eval()
    decoder.load_state_dict({name: tensor.read() for name, tensor in model.weights.items()})
    return decoder


def greedy(decoder: Decoder, prompt: list[int], end: int) -> list[int]:
    config = GenerationConfig(max_new_tokens=64, temperature=0)
    return [token for _, token in generate(decoder, [prompt], config, end) if token is not None]


def assert_same_function(decoder: Decoder, theirs: Any, prompt: list[int], end: int) -> None:
    """Logits within 1e-5, and the same 64 greedy tokens (fewer where a text ends)."""
    ids = torch.tensor([prompt])
    theirs.eval()
    with torch.no_grad():
        assert (theirs(ids).logits - decoder(ids)).abs().max() < 1e-5
    mask = torch.ones_like(ids)
    written = theirs.generate(ids, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=end)
    expected = greedy(decoder, prompt, end)
    assert len(set(expected)) > 5, "too dull a text to tell two functions apart"
    assert [token for token in written[0, len(prompt) :].tolist() if token != end] == expected


def assert_same_weights(one: StoredModel, other: StoredModel) -> None:
    assert one.config == other.config
    assert list(one.weights) == list(other.weights)
    for name, tensor in one.weights.items():
        copy = other.weights[name]
        assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(copy.read(), tensor.read()), name


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("character", "gelu"), ("bpe", "gelu_new"), ("bert", "gelu_new"), ("byte_level_bpe", "gelu")],
)
def test_transformers_loads_what_is_written_and_what_it_saves_again_comes_back(
    transformers: ModuleType, kind: str, activation: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(kind, tmp_path / "source").with_prompt_template("问：{src_txt}")
    model = stored_model(make_config(tokenizer.vocab_size + 3, hidden_act=activation, layer_norm_eps=1e-3))
    notes = huggingface.write(tmp_path / "out", model, tokenizer)
    assert len(notes) == 1
    assert "问：" in notes[0]

    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert (theirs.config.eos_token_id, theirs.config.bos_token_id) == (
        tokenizer.end_of_text_id,
        tokenizer.start_ids[0],
    )
    prompt = tokenizer.start_ids + tokenizer.encode(TEXTS[0])
    assert_same_function(decoder_of(model), theirs, prompt, tokenizer.end_of_text_id)

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = tokenizer.start_ids + tokenizer.encode(text)
        assert auto(text, split_special_tokens=True)["input_ids"] == ids
        assert auto.decode([*ids, auto.eos_token_id], skip_special_tokens=True) == tokenizer.decode(ids)
    assert set(auto(TEXTS[0])) == {"input_ids", "attention_mask"}, "token types would be added to the embeddings"
    assert auto.model_max_length == 96
    theirs.save_pretrained(tmp_path / "again")
    auto.save_pretrained(tmp_path / "again")
    batch = auto([TEXTS[0], TEXTS[0][:2]], padding=True, return_tensors="pt")
    alone = auto(TEXTS[0][:2], return_tensors="pt")
    both = theirs.generate(**batch, max_new_tokens=8, do_sample=False)[1, batch["input_ids"].shape[1] :]
    assert both.tolist() == theirs.generate(**alone, max_new_tokens=8, do_sample=False)[0, -len(both) :].tolist()

    for folder in (tmp_path / "out", tmp_path / "again"):
        assert_same_weights(model, huggingface.read(folder))
        again = load_tokenizer(folder)
        assert (again.fingerprint, again.prompt_template) == (tokenizer.fingerprint, "问：{src_txt}")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        huggingface.write(tmp_path / "out", model, tokenizer)


@pytest.mark.parametrize("kind", ["character", "bpe", "bert", "byte_level_bpe"])
def test_without_a_template_special_tokens_in_a_text_are_text(
    transformers: ModuleType, kind: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(kind, tmp_path / "source")
    assert huggingface.write(tmp_path / "out", stored_model(make_config(tokenizer.vocab_size)), tokenizer) == []
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert auto.chat_template is None
    for text in TEXTS:
        assert auto(text)["input_ids"] == tokenizer.start_ids + tokenizer.encode(text)


TEMPLATES = ["问：{src_txt}\n答：", "{src_txt}", "Q {src_txt}answer", 'say "{src_txt}" {{x}} \\n\n\n', "{src_txt}  "]
SAID = ["白日依山尽，", "  two words ", "“引”'s ##x", "end\n", "{{ x }} {% y %} \\"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["character", "bpe", "bert", "byte_level_bpe"])
def test_the_chat_template_makes_moyuns_prompts(
    transformers: ModuleType, kind: str, template: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(kind, tmp_path / "source").with_prompt_template(template)
    model = stored_model(make_config(tokenizer.vocab_size))
    (note,) = huggingface.write(tmp_path / "out", model, tokenizer)
    assert "apply_chat_template applies it" in note
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    auto.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint == tokenizer.fingerprint
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")

    def ids(*messages: tuple[str, str]) -> list[int]:
        said = [{"role": role, "content": content} for role, content in messages]
        found: list[int] = auto.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
        assert again.apply_chat_template(said)["input_ids"] == found
        return found

    before, after = (tokenizer.encode(part) for part in template.split("{src_txt}"))
    end, start = tokenizer.end_of_text_id, tokenizer.start_ids
    for text in SAID:
        assert ids(("user", text)) == tokenizer.encode_prompt(text)
        assert auto(text)["input_ids"] == start + tokenizer.encode(text)
    one, two, answer = SAID[0], SAID[2], SAID[1]
    expected = [*start, *before, *tokenizer.encode(f"请答\n{one}"), *after, *tokenizer.encode(answer), end]
    expected += [*before, *tokenizer.encode(two), *after]
    assert ids(("system", "请答"), ("user", one), ("assistant", answer), ("user", two)) == expected
    wrong_ones = [[("tool", one)], [("user", one), ("system", two)], [("user", one)] * 2, [("assistant", one)]]
    for wrong in wrong_ones:
        with pytest.raises(Exception, match="user and assistant take turns, after one system message at most"):
            ids(*wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_keep_every_bit(
    transformers: ModuleType, tokenizer: Tokenizer, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = stored_model(make_config(tokenizer.vocab_size), dtype)
    assert huggingface.write(tmp_path / "out", model, tokenizer, shard_bytes=50_000) == []
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].startswith("model-00001-of-")
    assert_same_weights(model, huggingface.read(tmp_path / "out"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == dtype
    assert torch.equal(theirs.transformer.wte.weight, model.weights["word_embeddings.weight"].read())


def test_words_join_as_in_our_own_decoding(transformers: ModuleType, tmp_path: Path) -> None:
    words = [*"天생，。,'()t“”-", "hello", "##ld", "##생", "##天", "[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    bert = load_tokenizer(tmp_path)
    huggingface.write(tmp_path / "out", stored_model(make_config(bert.vocab_size)), bert)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (auto.pad_token, auto.unk_token) == ("[PAD]", "[UNK]")
    for first in range(len(words)):
        for second in range(len(words)):
            ids = [first, second, words.index("hello")]
            assert auto.decode(ids, skip_special_tokens=True) == bert.decode(ids), [words[i] for i in ids]


def test_jieba_is_kept_apart_so_that_no_other_ids_come_out(transformers: ModuleType, tmp_path: Path) -> None:
    jieba_bpe = load_tokenizer(DATA / "megatron_tp1")
    notes = huggingface.write(tmp_path / "out", stored_model(make_config(jieba_bpe.vocab_size)), jieba_bpe)
    assert len(notes) == 1
    assert "jieba" in notes[0]
    with pytest.raises(ValueError, match="tokenizer"):
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").fingerprint == jieba_bpe.fingerprint
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id) == (None, jieba_bpe.end_of_text_id)


@pytest.fixture(scope="module")
def theirs(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that transformers made, with weights spread out so that every part matters."""
    folder = tmp_path_factory.mktemp("theirs")
    save_theirs(transformers, folder)
    return folder


def save_theirs(transformers: ModuleType, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**TINY, initializer_range=0.1, bos_token_id=0, eos_token_id=0, **options)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
        model.transformer.wte.weight.div_(5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_what_transformers_saves_is_read(transformers: ModuleType, activation: str, tmp_path: Path) -> None:
    model = save_theirs(transformers, tmp_path, activation_function=activation, layer_norm_epsilon=1e-3, n_inner=128)
    ours = huggingface.read(tmp_path)
    assert (ours.config.hidden_dropout_prob, ours.config.attention_probs_dropout_prob) == (0.1, 0.1)
    assert_same_function(decoder_of(ours), model, [0, 5, 17, 98, 3, 3, 41], 0)


def test_older_files_are_read_too(theirs: Path, tmp_path: Path) -> None:
    """No prefix, a spelt-out head, causal masks, a pickle: all of it in the field."""
    expected = huggingface.read(theirs)
    weights = {n.removeprefix("transformer."): t for n, t in load_file(theirs / "model.safetensors").items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 96, 96).bool(), "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    (tmp_path / "config.json").write_text((theirs / "config.json").read_text())
    torch.save(weights | masks | {"lm_head.weight": weights["wte.weight"]}, tmp_path / "pytorch_model.bin")
    assert_same_weights(expected, huggingface.read(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(weights)
    parts = {f"{half}.bin": names[half::2] for half in (0, 1)}
    for file, inside in parts.items():
        torch.save({name: weights[name] for name in inside}, tmp_path / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_weights(expected, huggingface.read(tmp_path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is another architecture; .*'gpt2'"),
        ({"activation_function": "relu"}, "activation_function 'relu' .*gelu_new"),
        ({"n_inner": 64}, r"n_inner 64 .*n_embd \(128\)"),
        ({"n_head": None}, "n_head must be given"),
        ({"n_head": 5}, "num_attention_heads"),
        ({"resid_pdrop": "0.1"}, "resid_pdrop must be numbers"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_layer": 3}, r"h\.2\.attn\.c_attn\.bias is missing"),
        ({"n_layer": 1}, r"h\.1\.attn\.c_attn\.bias is not part"),
        ({"n_positions": 95}, r"wpe\.weight is \(96, 32\), not \(95, 32\)"),
    ],
)
def test_another_architecture_is_named(theirs: Path, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    config = json.loads((theirs / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(theirs / "model.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        huggingface.read(tmp_path)


def test_a_head_of_its_own_and_missing_files_are_named(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        huggingface.read(tmp_path)
    (tmp_path / "config.json").write_text((theirs / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin"):
        huggingface.read(tmp_path)
    weights = load_file(theirs / "model.safetensors")
    head = weights["transformer.wte.weight"].clone()
    head[7, 7] += 1e-6
    save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        huggingface.read(tmp_path)
    save_file(weights | {"transformer.ln_f.bias": torch.zeros(32, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_f\.bias is torch\.int8"):
        huggingface.read(tmp_path)
    wte = weights["transformer.wte.weight"].clone()
    save_file(weights | {"wte.weight": wte}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wte\.weight is there with and without"):
        huggingface.read(tmp_path)


def test_dropouts_that_differ_are_said(theirs: Path, tmp_path: Path) -> None:
    config = json.loads((theirs / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"embd_pdrop": 0.3}))
    with pytest.warns(UserWarning, match=r"embd_pdrop 0\.3 is left out"):
        found = huggingface.read_config(tmp_path / "config.json")
    assert found.hidden_dropout_prob == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        huggingface.read_config(theirs / "config.json")
