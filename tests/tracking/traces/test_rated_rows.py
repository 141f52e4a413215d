"""prepare source=traces: rows of what a real store has of served requests, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.tracing.client import TracingClient

from modules.config.data import PrepareConfig
from modules.config.loader import ConfigError, load_config
from modules.data.quarantine import DataError
from modules.inference.server.records.ratings import Rating
from modules.inference.server.records.transcript import AnswerRecord
from modules.system.jsonl import read_jsonl
from modules.tracking.reuse.stage_key import stage_key
from modules.tracking.traces import rated_rows
from modules.tracking.traces.model_links import ModelLinks
from modules.tracking.traces.rated_rows import Example, rows_of, rows_of_traces, turns_of
from modules.tracking.traces.trace_sender import TraceSender
from modules.tracking.traces.trace_store import TraceStore
from pipelines.prepare import prepare
from tests.helpers.served_records import answer_record

POEMS = ["春眠不觉晓", "白日依山尽", "床前明月光", "红豆生南国", "空山不见人", "千山鸟飞绝"]

Rated = tuple[AnswerRecord, Sequence[dict[str, Any]]]


@pytest.fixture
def send(store: Path) -> Callable[..., None]:
    """Sends answers with their ratings to an experiment of the store."""
    uri = f"sqlite:///{store / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)

    def sends(*answers: Rated, experiment: str = "moyun") -> None:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        sender = TraceSender(TraceStore(TracingClient(uri), number, ModelLinks("runs:/none/model")), 1.0)
        for record, ratings in answers:
            sender.answered(record)
            for rating in ratings:
                sender.rate(Rating(record.id, **rating))
        sender.close(60)
        assert not sender.waiting

    return sends


def rows_with(*arguments: str) -> list[dict[str, Any]]:
    served = rows_of_traces(load_config("prepare", ["source=traces", *arguments]))
    assert served
    return served.rows


UP, DOWN = {"value": "up"}, {"value": "down"}


def corrected(text: str, value: str = "down") -> dict[str, Any]:
    return {"value": value, "correction": text}


def test_liked_and_corrected_texts_become_rows_and_no_others(send: Callable[..., None]) -> None:
    send(
        (answer_record([POEMS[0]], ["甲"]), [UP]),
        (answer_record([POEMS[1]], ["乙"]), [DOWN]),
        (answer_record([POEMS[2]], ["丙"]), [corrected("丙丙")]),
        (answer_record([POEMS[3]], ["丁"]), []),
    )
    assert rows_with() == [
        {"src_txt": POEMS[0], "tgt_txt": "甲", "ratings": ["up"], "rejected": []},
        {"src_txt": POEMS[2], "tgt_txt": "丙丙", "ratings": ["corrected"], "rejected": ["丙"]},
    ]
    assert [row["tgt_txt"] for row in rows_with("take=corrected")] == ["丙丙"]
    assert [row["tgt_txt"] for row in rows_with("take=all")] == ["甲", "丙丙", "丁"]


def test_the_last_word_on_a_text_counts(send: Callable[..., None]) -> None:
    send(
        (answer_record([POEMS[0]], ["甲"]), [DOWN, UP]),
        (answer_record([POEMS[1]], ["乙"]), [UP, DOWN]),
        (answer_record([POEMS[2]], ["丙"]), [corrected("一"), corrected("二")]),
    )
    assert [(row["src_txt"], row["tgt_txt"]) for row in rows_with()] == [(POEMS[0], "甲"), (POEMS[2], "二")]


def test_of_one_prompt_no_rating_is_lost(send: Callable[..., None]) -> None:
    send(
        (answer_record(texts=["甲"]), [UP]),
        (answer_record(texts=["乙"]), [DOWN]),
        (answer_record(texts=["甲"]), [DOWN]),
        (answer_record(texts=["丙"]), [corrected("甲")]),
        (answer_record(["秋"], texts=["丁"]), [DOWN]),
    )
    assert rows_with() == [
        {"src_txt": "春", "tgt_txt": "甲", "ratings": ["up", "down", "corrected"], "rejected": ["乙", "丙"]}
    ]


def test_each_text_of_an_answer_is_rated_by_itself(send: Callable[..., None]) -> None:
    record = answer_record(["春", "秋"], ["甲", "乙", "丙", "丁"])
    send((record, [UP | {"index": 1}, DOWN | {"index": 0}, UP | {"index": 2}]))
    assert [(row["src_txt"], row["tgt_txt"], row["rejected"]) for row in rows_with()] == [
        ("春", "乙", ["甲"]),
        ("秋", "丙", []),
    ]


def test_single_questions_are_pairs_whichever_way_they_were_asked(send: Callable[..., None]) -> None:
    send(
        (answer_record(["春"], ["甲"]), [UP]),
        (answer_record(texts=["乙"], messages=[("user", "秋")]), [UP]),
        (answer_record(["春"], ["丙"], endpoint="invocations"), []),
    )
    assert [(row["src_txt"], row["tgt_txt"]) for row in rows_with()] == [("春", "甲"), ("秋", "乙")]


def test_one_conversation_makes_conversations_of_all(send: Callable[..., None]) -> None:
    turns = [("system", "用五言"), ("user", "春"), ("assistant", "眠"), ("user", "秋")]
    send((answer_record(["冬"], ["甲"]), [UP]), (answer_record(texts=["乙"], messages=turns), [UP]))
    roles = [[(message["role"], message["content"]) for message in row["messages"]] for row in rows_with()]
    assert roles == [[("user", "冬"), ("assistant", "甲")], [*turns, ("assistant", "乙")]]


def test_what_can_be_no_row_is_left_out_and_counted(send: Callable[..., None]) -> None:
    send(
        (answer_record([[5, 6]], ["甲"]), [UP]),
        (answer_record([""], ["乙"]), [UP]),
        (answer_record(["春"], [" "]), [UP]),
        (answer_record(texts=["乙"], messages=[("user", "春"), ("assistant", ""), ("user", "秋")]), [UP]),
        (answer_record(["春"], ["半"], finish=None, outcome="disconnected"), [UP]),
        (answer_record(["春"], ["长"], finish="length"), [UP]),
        (answer_record(["秋"], ["不"]), [DOWN]),
        (answer_record(["冬"], ["无"]), []),
    )
    served = rows_of_traces(load_config("prepare", ["source=traces"]))
    assert served
    assert [row["tgt_txt"] for row in served.rows] == ["长"]
    assert served.facts["traces"] == {
        "traces": 8,
        "asked in token ids": 1,
        "without a prompt or a text": 3,
        "broken off": 1,
        "cut off by max_tokens": 1,
        "thumbs down without a correction": 1,
        "not rated": 1,
    }


def test_traces_of_other_makers_are_counted(send: Callable[..., None]) -> None:
    send((answer_record(), [UP]))
    mlflow.set_experiment("moyun")
    with mlflow.start_span("of another maker"):
        pass
    mlflow.flush_trace_async_logging()
    served = rows_of_traces(load_config("prepare", ["source=traces"]))
    assert served
    assert served.facts["traces"] == {"traces": 1, "traces of other makers": 1}


def test_a_reviewers_word_in_mlflow_counts_too(send: Callable[..., None]) -> None:
    send((answer_record(["春"], ["甲"]), []), (answer_record(["秋"], ["乙"]), []))
    experiment = MlflowClient().get_experiment_by_name("moyun")
    assert experiment
    first, second = TracingClient().search_traces(locations=[experiment.experiment_id], order_by=["timestamp_ms ASC"])
    mlflow.log_feedback(trace_id=first.info.trace_id, name="user_feedback", value=True)
    mlflow.log_expectation(trace_id=second.info.trace_id, name="expected_response", value="乙乙")
    assert {row["tgt_txt"] for row in rows_with()} == {"甲", "乙乙"}


def test_more_traces_than_a_page_are_all_read(send: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.tracking.traces.rated_rows.PAGE", 2)
    send(*[(answer_record([poem], [f"答{poem}"]), [UP]) for poem in POEMS])
    assert [row["src_txt"] for row in rows_with()] == POEMS


def test_rows_of_many_traces_look_at_each_example_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at all of them for each row, which a hundred thousand traces would never come to the end of."""
    looks = Mock(side_effect=json.dumps)
    monkeypatch.setattr(rated_rows, "json", Mock(dumps=looks))
    examples = [Example(turns_of(str(number % 40)), f"答{number}", "stop", number % 3 != 0) for number in range(240)]
    rows = rows_of(examples, "good", Counter())
    assert len(rows) == 160
    assert rows[0]["rejected"] == ["答81", "答201"]
    assert looks.call_count <= 3 * len(examples)


# --- refusals ---


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=nowhere"], "there is no experiment nowhere in sqlite:.*experiment=NAME"),
        (["experiment=empty"], "experiment empty has no traces of served requests: .*source=./traces"),
        (["experiment=others"], "experiment others has no traces of served requests, only 1 of other makers"),
        ([], r"experiment moyun gives no rows with take=good \(1 traces, 1 not rated\).*take=all"),
        (["take=corrected"], r"gives no rows with take=corrected \(1 traces, 1 without a correction\)"),
        (["experiment=gone"], "experiment gone was deleted: `MLFLOW_TRACKING_URI=.* brings it back"),
    ],
)
def test_where_there_are_no_rows_it_is_said_what_to_do(
    send: Callable[..., None], dry_run: bool, arguments: list[str], message: str
) -> None:
    client = MlflowClient()
    send((answer_record(), []))
    client.create_experiment("empty")
    client.delete_experiment(client.create_experiment("gone"))
    mlflow.set_experiment("others")
    with mlflow.start_span("of another maker"):
        pass
    mlflow.flush_trace_async_logging()
    mlflow.set_experiment("moyun")
    config = load_config("prepare", ["source=traces", f"dry_run={dry_run}", *arguments])
    with pytest.raises(DataError, match=message):
        prepare(config)
    assert not Path("prepared").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=moyun"], "experiment=moyun goes with source=traces alone"),
        (["source=full", "take=all"], "take=all goes with source=traces alone"),
        (["source=trace"], "did you mean traces?"),
        (["source=traces", "take=some"], "take=some"),
    ],
)
def test_keys_without_effect_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("prepare", arguments)
    assert message in str(refused.value)


# --- the whole of prepare ---


def prepared(*arguments: str) -> tuple[Path, dict[str, Any]]:
    config: PrepareConfig = load_config("prepare", ["source=traces", "tracking.log_system_metrics=false", *arguments])
    made = prepare(config)
    return made.folder, made.manifest


def test_a_prepared_folder_has_the_rows_their_ratings_and_where_they_come_from(send: Callable[..., None]) -> None:
    send(*[(answer_record([poem], [f"答{poem}"]), [UP]) for poem in POEMS], experiment="served")
    folder, manifest = prepared("experiment=served", "validation_fraction=0.2", "test_fraction=0.2")
    assert folder == Path("prepared/traces")
    rows = [row for path in sorted(folder.glob("*.jsonl.gz")) for row in read_jsonl(path)]
    assert sorted(row["src_txt"] for row in rows) == sorted(POEMS)
    assert all(row["ratings"] == ["up"] and row["rejected"] == [] for row in rows)
    assert manifest["columns"] == ["src_txt", "tgt_txt", "ratings", "rejected"]
    assert (manifest["source"], manifest["experiment"], manifest["take"]) == ("traces", "served", "good")
    assert manifest["traces"] == {"traces": len(POEMS)}
    assert prepared("experiment=served", "validation_fraction=0.2", "test_fraction=0.2")[1] == manifest


def test_a_folder_of_other_ratings_is_not_overwritten(send: Callable[..., None]) -> None:
    answers = [answer_record([poem], [f"答{poem}"]) for poem in POEMS]
    send(*[(answer, [UP]) for answer in answers])
    prepared()
    send(*[(answer, [DOWN]) for answer in answers[:1]])
    with pytest.raises(DataError, match="prepared/traces holds other data than traces gives now"):
        prepared()


def test_a_folder_of_that_name_is_read_by_its_path(send: Callable[..., None]) -> None:
    Path("traces").mkdir()
    lines = [json.dumps({"src_txt": poem}) for poem in POEMS]
    Path("traces/train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = load_config("prepare", ["source=./traces", "tracking.log_system_metrics=false", "output_dir=own"])
    assert prepare(config).manifest["columns"] == ["src_txt"]


def test_main_never_takes_earlier_rows_for_those_of_now(store: Path) -> None:
    Path("traces").mkdir()
    key, why = stage_key("prepare", load_config("prepare", ["source=traces"]), {})
    assert (key, why) == (None, "there may be other traces by now")
