"""lm-evaluation-harness finds what moyun's own scoring finds: through the server, and in the Hugging Face export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from modules.checkpoint.formats import huggingface
from modules.checkpoint.weights import StoredModel, stored
from modules.evaluation.likelihood import score
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, served

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.server

TEXTS = ["白日依山尽，黄河入海流。", "春", "a驫b", "床前明月光，疑是地上霜。"]
PAIRS = [("白日依山尽，", "黄河入海流。"), ("春", "眠"), ("床前明月光，", "疑是地上霜。"), ("", "春眠不觉晓")]


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size))


@pytest.fixture(scope="module")
def server(small: Decoder, tokenizer: Tokenizer) -> Iterator[Served]:
    with served(small, tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def exported(small: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    huggingface.write(folder, StoredModel(small.config, stored(small.state_dict())), tokenizer)
    return folder


def through_the_server(server: Served, exported: Path, **options: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model="small",
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(exported),
        max_length=server.generator.decoder.config.max_position_embeddings,
        max_retries=1,
        **options,
    )


def in_transformers(exported: Path, **options: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=2, **options)


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]  # type: ignore[arg-type]


def of_pairs(server: Served) -> list[float]:
    """The log-likelihood of each second text after the first."""
    generator, found = server.generator, []
    for context, text in PAIRS:
        ids = generator.tokenizer.encode_prompt(context)
        (scores,) = generator.score_ids([[*ids, *generator.tokenizer.encode(text)]])
        found.append(sum(entry.logprob or 0 for entry in scores[len(ids) :]))
    return found


def of_texts(server: Served) -> list[float]:
    """The log-likelihood of each text without its end, which lm-evaluation-harness doesn't count."""
    generator = server.generator
    tokenizer = generator.tokenizer
    whole = score(generator.decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": TEXTS})).nll
    ended = generator.score_ids([[*tokenizer.encode_prompt(text), tokenizer.end_of_text_id] for text in TEXTS])
    return [-nll - (scores[-1].logprob or 0) for nll, scores in zip(whole, ended, strict=True)]


@pytest.mark.parametrize("concurrent", [1, 4])
def test_log_likelihoods_of_the_server(server: Served, exported: Path, concurrent: int) -> None:
    harness = through_the_server(server, exported, add_bos_token=True, batch_size=2, num_concurrent=concurrent)
    found = harness.loglikelihood(asked("loglikelihood", PAIRS))
    assert [value for value, _ in found] == pytest.approx(of_pairs(server), abs=1e-3)
    assert [greedy for _, greedy in found] == [False] * len(PAIRS)

    # What the model itself would write is greedy.
    likeliest = [(text, server.alone(text, temperature=0.0, max_new_tokens=1)) for text in "春夏山水花月风雨"]
    whole = [pair for pair in likeliest if pair[1].isalnum()]
    assert whole
    assert all(greedy for _, greedy in harness.loglikelihood(asked("loglikelihood", whole)))


def test_rolling_log_likelihoods_of_the_server(server: Served, exported: Path) -> None:
    found = through_the_server(server, exported).loglikelihood_rolling(
        asked("loglikelihood_rolling", [(t,) for t in TEXTS])
    )
    assert found == pytest.approx(of_texts(server), abs=1e-3)


def test_texts_of_the_server(server: Served, exported: Path) -> None:
    harness = through_the_server(server, exported, add_bos_token=True)
    options = {"until": ["。", "\n"], "max_gen_toks": 20}
    found = harness.generate_until(asked("generate_until", [(text, options) for text in TEXTS]))
    stop = ["。", "\n", "<|endoftext|>"]
    assert found == [server.alone(text, temperature=0.0, max_new_tokens=20, stop=stop) for text in TEXTS]


def test_the_exports_numbers_are_the_same(server: Served, exported: Path) -> None:
    pytest.importorskip("accelerate")
    found = in_transformers(exported).loglikelihood(asked("loglikelihood", PAIRS))
    assert [value for value, _ in found] == pytest.approx(of_pairs(server), abs=1e-3)
    rolling = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert in_transformers(exported, add_bos_token=False).loglikelihood_rolling(rolling) == pytest.approx(
        of_texts(server), abs=1e-3
    )
    options = {"until": ["。", "\n"], "max_gen_toks": 20, "do_sample": False}
    texts = in_transformers(exported).generate_until(asked("generate_until", [(text, options) for text in TEXTS]))
    assert texts == [server.alone(text, temperature=0.0, max_new_tokens=20, stop=["。", "\n"]) for text in TEXTS]
