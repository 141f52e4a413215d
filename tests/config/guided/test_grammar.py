"""What a JSON schema or a regular expression must be: known before a model is loaded, within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modules.config.base import ConfigError
from modules.config.generation import GenerationConfig
from modules.config.guided import grammar
from modules.config.guided.grammar import LONGEST, fault_of
from modules.config.loader import load_config
from tests.helpers.models import ROOT

PERSON = {"type": "object", "properties": {"名": {"type": "string"}}, "required": ["名"]}
INSIDE = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "array", "contains": {}}}}}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("json_schema", json.dumps(PERSON)),
        ("json_schema", "{}"),
        ("json_schema", '{"$ref": "#/$defs/x", "$defs": {"x": {"enum": ["春", null]}}}'),
        ("regex", "[一-龥]{5}，"),
        ("regex", r"\d+|春\n夏"),
        ("regex", "a" * LONGEST),
    ],
)
def test_what_llguidance_takes_has_no_fault(key: str, text: str) -> None:
    assert fault_of(key, text) is None


@pytest.mark.parametrize(
    ("key", "text", "fault"),
    [
        ("json_schema", "春", "isn't JSON (Expecting value: line 1 column 1 (char 0)); give a JSON schema, e.g."),
        ("json_schema", "[]", 'isn\'t a JSON object; give a JSON schema, e.g. {"type": "object"}'),
        ("json_schema", "true", "isn't a JSON object"),
        ("json_schema", "[" * 5000, "is nested too deep"),
        ("json_schema", '{"a":' * 150 + "1" + "}" * 150, "can't be kept: recursion limit exceeded"),
        ("json_schema", '{"type": "nope"}', "can't be kept: Invalid type: nope"),
        ("json_schema", json.dumps(INSIDE), 'Unimplemented keys: ["contains"] (at properties.a.items)'),
        ("json_schema", '{"allOf": [{"not": {}}]}', 'Unimplemented keys: ["not"] (at allOf.0)'),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "does not fetch resources"),
        ("json_schema", '{"$ref": "#"}', "can't be kept: no text keeps it"),
        ("json_schema", '{"enum": []}', "can't be kept: Unsatisfiable schema"),
        ("regex", "", "has 0 characters; there may be 1 to 65,536"),
        ("regex", "a" * (LONGEST + 1), "has 65,537 characters"),
        ("regex", "春(?=a)b", "can't be kept: look-around, including look-ahead and look-behind, is not supported (at"),
        ("regex", "春(", "can't be kept: unclosed group (at character 2)"),
        ("regex", r"\bfoo", "can't be kept: lookarounds not supported yet"),
        ("regex", r"[^\x00-\U0010ffff]", "can't be kept: no text keeps it"),
        ("regex", "\ud800", "holds half a surrogate pair"),
    ],
)
def test_a_fault_is_named_with_its_place_in_one_line(key: str, text: str, fault: str) -> None:
    found = fault_of(key, text)
    assert found is not None
    assert fault in found
    assert "\n" not in found


def test_what_explodes_is_refused_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an allOf of thirty patterns llguidance makes gigabytes, whatever its own limits are."""
    patterns = {"allOf": [{"type": "string", "pattern": f"a{{{n},100}}"} for n in range(30)]}
    assert fault_of("json_schema", json.dumps(patterns)) == (
        "is too complex: to compile it takes over 1 s, or 2 GB; simplify it"
    )


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        GenerationConfig.parse({"regex": "春"})
    assert caught.value.complaints == ["regex needs llguidance, which is not installed: pip install 'moyun[guided]'"]
    monkeypatch.undo()  # it has been installed meanwhile
    assert GenerationConfig.parse({"regex": "春"}).regex == "春"


def test_what_could_not_be_tried_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is out of processes says nothing about an expression."""
    run, text = subprocess.run, "春{3}夏{4}"

    def no_process(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "no more processes")

    def broken(command: list[str], **how: Any) -> Any:
        return run([command[0], "-c", "raise ImportError('no such library')"], **how)

    for how, said in ((no_process, "[Errno 11] no more processes"), (broken, "ImportError: no such library")):
        monkeypatch.setattr(subprocess, "run", how)
        assert fault_of("regex", text) == f"couldn't be tried: {said}"
        monkeypatch.undo()
    assert fault_of("regex", text) is None


def test_limits_of_the_system_are_no_fault_of_a_schema() -> None:
    """Where a process may have less memory than ours would be given, as by `ulimit -v`."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)); "
        "from modules.config.guided.grammar import fault_of; print(fault_of('regex', '春{2}'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"regex": "春", "form": "五绝"}, "form and regex exclude each other: a text is held to one of them"),
        ({"regex": "春", "json_schema": "{}"}, "json_schema and regex exclude each other"),
        ({"json_schema": 5}, "json_schema must be a text, not 5"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema isn't JSON"),
        ({"regex": ["春"]}, "regex must be a text, not ['春']"),
    ],
)
def test_parameters_are_checked_when_they_are_given(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig.parse(given)
    assert complaint in caught.value.complaints[0]


def test_a_mapping_is_a_schema_from_python_and_in_a_file(tmp_path: Path) -> None:
    expected = json.dumps(PERSON, ensure_ascii=False)
    assert GenerationConfig.parse({"json_schema": PERSON}).json_schema == expected
    (tmp_path / "own.yaml").write_text(f"generation.json_schema: {expected}\n", encoding="utf-8")
    for argument in (f"config={tmp_path / 'own.yaml'}", f"json_schema={expected}"):
        assert load_config("generate", [argument]).generation.json_schema == expected


def test_a_command_names_its_key_in_full() -> None:
    with pytest.raises(ConfigError, match=r"generation\.regex can't be kept: unclosed group \(at character 1\)"):
        load_config("evaluate", ["generation.regex=("])
    with pytest.raises(ConfigError, match=r"generation\.form and regex exclude each other"):
        load_config("evaluate", ["generation.regex=a", "generation.form=五绝"])
