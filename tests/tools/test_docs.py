"""What README and docs/ tell people to type: every command is one that is taken, every snippet compiles, some run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import benchmarks.config  # noqa: F401  (adds its command to STAGES)
from modules.config.assignments import with_line_ends
from modules.config.commands import STAGES
from modules.config.loader import ConfigError, load_config
from modules.data.corpora.folders import prepare_sample
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.cli.command_line import with_positions
from pipelines.convert import convert
from pipelines.finetune import finetune
from pipelines.generate import generate
from pipelines.main import check_unused
from pipelines.prepare import prepare
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.helpers.snippets import ELISION, Snippet, snippets, words

PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [snippet for page in PAGES for snippet in snippets(page, ROOT)]
COMMANDS = [snippet for snippet in SNIPPETS if snippet.kind in ("command", "inline")]
PYTHON = [snippet for snippet in SNIPPETS if snippet.kind == "python"]
POSITIONS = {"generate": ("prompt",), "compare": ("one", "other")}
"""Keys that a command takes without their names."""
FOREIGN = ("modelscope",)
"""Whose snippets stand there to be replaced."""
ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]


# --- commands ---


@pytest.mark.parametrize("snippet", COMMANDS, ids=str)
def test_every_command_is_one_that_is_taken(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("train.max_epochs: 3\n")
    Path("conf").symlink_to(ROOT / "conf")
    assert complaints(snippet) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("python -m pipelines.finetune train.init_form=a", "no such key; did you mean train.init_from?"),
        ("srun python -m pipelines.pretrain train.max_steps=many", "must be int or null"),
        ("python -m pipelines.fine model=a", "no stage fine"),
        ("mlflow run . -e finetune -P data.paht=a -P init_from=b", "did you mean data.path?"),
        ("mlflow run . -e tune", "no entry point tune"),
        ("mlflow run . -P pretrain.output_dir=… -P finetune.output_dir=…", "give from_scratch=true with it"),
        ("python tests/nothing.py", "tests/nothing.py isn't there"),
        ("python -m tools.nothing a", "no module tools.nothing"),
        ("python -m pytest tests/test_nothing.py -k x", "tests/test_nothing.py isn't there"),
        ("curl -s localhost:8000/v1/completions -d '{\"prompt\": }'", "no JSON"),
    ],
)
def test_a_wrong_command_would_be_found(text: str, complaint: str) -> None:
    found = complaints(Snippet("some.md", 1, "command", text))
    assert len(found) == 1
    assert complaint in found[0]


def test_a_line_break_in_a_command_reaches_it_as_one() -> None:
    typed = [with_line_ends(word) for snippet in COMMANDS for word in words(snippet.text) if "template=" in word]
    assert sum("\n" in word for word in typed) >= 2
    assert not any("\\n" in word for word in typed)


def complaints(snippet: Snippet) -> list[str]:
    """What is wrong with a command."""
    line = words(snippet.text)
    if line[:2] == ["mlflow", "run"] and "." in line:
        return [*of_project(line[2:], snippet)]
    if "-m" in line and line[line.index("-m") + 1].startswith("pipelines."):
        at = line.index("-m") + 1
        return of_stage(line[at].removeprefix("pipelines."), line[at + 1 :], snippet)
    if "-m" in line and line[line.index("-m") + 1].startswith(("tools", "benchmarks", "tests.")):
        module = line[line.index("-m") + 1]
        path = ROOT / module.replace(".", "/")
        return [] if path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() else [f"no module {module}"]
    if line[0] == "curl":
        return [f"no JSON: {body}" for body in line[line.index("-d") + 1 :][:1] if not is_json(body)]
    files = [word for word in line if re.match(r"(tests|docs)/\S+\.py", word)]
    return [f"{file} isn't there" for file in files if not (ROOT / file).is_file()]


def of_stage(stage: str, arguments: list[str], snippet: Snippet) -> list[str]:
    if stage == "STAGE" or "--help" in arguments:
        return []
    if stage not in STAGES:
        return [f"no stage {stage}"]
    given = [argument for argument in arguments if argument != ELISION or stage == "generate"]
    try:
        config = load_config(stage, with_positions(given, *POSITIONS.get(stage, ())))
        if stage == "main":
            check_unused(config)
    except ConfigError as error:
        partial = snippet.kind == "inline" or ELISION in arguments
        return [text for text in error.complaints if not (partial and "must be given" in text)]
    except ValueError as error:
        return [str(error)]
    return []


def of_project(arguments: list[str], snippet: Snippet) -> Iterator[str]:
    """`mlflow run . -e ENTRY -P key=value`: what the entry point's command becomes."""
    pairs = dict(pairwise(arguments))
    name = pairs.get("-e", "main")
    if name not in ENTRY_POINTS:
        yield f"no entry point {name}"
        return
    given = [word for before, word in pairwise(arguments) if before == "-P"]
    yield from of_stage(name, of_entry(name, dict(argument.split("=", 1) for argument in given)), snippet)


def of_entry(name: str, values: dict[str, str]) -> list[str]:
    """The arguments that `mlflow run` gives to the stage."""
    entry = ENTRY_POINTS[name]
    declared = {key: values.get(key, about.get("default", "")) for key, about in entry["parameters"].items()}
    command = [word.format(**declared) for word in entry["command"].split()]
    return [*command[3:], *(f"{key}={value}" for key, value in values.items() if key not in declared)]


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_an_entry_point_does_by_itself_what_its_command_does(name: str) -> None:
    needed = [f"{key}=given" for key, about in ENTRY_POINTS[name]["parameters"].items() if "default" not in about]
    needed += ["train.init_from=given"] if name in ("finetune", "prefer") else []
    assert load_config(name, [*of_entry(name, {}), *needed]) == load_config(name, needed)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# --- Python ---


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_every_python_snippet_compiles_and_finds_what_it_imports(snippet: Snippet) -> None:
    for node in ast.walk(ast.parse(snippet.text, str(snippet))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] not in FOREIGN:
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.fixture
def workplace(store: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the snippets speak of, in the current folder: a published model, a registered one, rows."""
    decoder = make_decoder(make_config(2 * tokenizer.vocab_size, max_position_embeddings=128))
    folder = save_model(store / "nlp_gpt3_text-generation_1.3B", decoder, tokenizer, {})
    (store / "models").symlink_to(ROOT / "models")
    for other in ("outputs/finetune-…/model", "FOLDER", "damo/nlp_gpt3_text-generation_1.3B"):
        (store / other).parent.mkdir(parents=True, exist_ok=True)
        (store / other).symlink_to(folder)
    (store / "my.csv").write_text("text1,text2\n" + "".join(f"春{i},秋{i}\n" for i in range(60)), encoding="utf-8")
    for split, count in (("train", 40), ("test", 8)):
        rows = store / "chinese-poetry-collection" / f"{split}.csv"
        rows.parent.mkdir(exist_ok=True)
        rows.write_text("text1\n" + "".join(f"{split}春{i}\n" for i in range(count)), encoding="utf-8")
    prepare_sample(store / "prepared" / "sample", ROOT / "data" / "poems-300.jsonl.gz")
    monkeypatch.setattr("pipelines.find_model", lambda *_: folder)
    for module in ("modules.tracking.registry", "pipelines.convert", "pipelines.evaluate", "pipelines.train"):
        name = f"{module}.resolve_model"
        monkeypatch.setattr(name, lambda uri: folder if str(uri).startswith("models:/") else Path(uri))
    return store


RUNNABLE = [
    s
    for s in PYTHON
    if re.search(r"^from (pipelines|modules|transformers)", s.text, re.MULTILINE)
    and s.file != "data/README.md"  # which needs the whole corpus
]


@pytest.mark.parametrize("snippet", RUNNABLE, ids=str)
def test_what_is_cheap_to_run_runs(snippet: Snippet, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "transformers" in snippet.text:
        convert(load_config("convert", ["source=FOLDER", "target=exported", "format=huggingface"]))
    exec(compile(snippet.text, str(snippet), "exec"), {})


TYPED = [
    snippet
    for snippet in COMMANDS
    if snippet.kind == "command"
    and re.search(
        r"pipelines\.(generate|prepare source=my|convert|finetune .*(1\.3B|moyun).* data\.path=my)", snippet.text
    )
    and not re.search(r"gguf|=exported|_13B|gpt3-13b|…/last|outputs/(poems|longer)|prepared/modern", snippet.text)
]


@pytest.mark.parametrize("snippet", TYPED, ids=str)
def test_commands_that_need_only_a_model_or_rows_work(
    snippet: Snippet, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(snippet.text)
    at = line.index("-m") + 1
    stage, arguments = line[at].removeprefix("pipelines."), line[at + 1 :]
    if stage == "finetune":
        arguments += ["dry_run=true", *([] if "columns" in snippet.text else ["data.columns.text1=src_txt"])]
    function: Any = {"generate": generate, "prepare": prepare, "convert": convert, "finetune": finetune}[stage]
    function(load_config(stage, with_positions(arguments, *POSITIONS.get(stage, ()))))


# --- what is made, and what stands twice ---


def test_the_configurations_page_is_current() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "configuration.py"))["document"]()
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == made, "python -m tools.configuration"


def test_the_recipes_tables_are_current() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(ROOT / "tools" / "recipes.py"))["document"](page), "python -m tools.recipes"


def test_every_link_and_picture_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
        for test in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
            assert (ROOT / test).is_file(), (page.name, test)


def test_every_heading_that_is_linked_to_is_there() -> None:
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / target if target else page).read_text(encoding="utf-8")
            headings = [re.sub(r"[^\w -]", "", line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
            assert heading in {line.lower().replace(" ", "-") for line in headings}, (page.name, target, heading)


NAMED = [
    (page.name, *found)
    for page in PAGES
    for found in re.findall(r"^\| `([\w/]+\.py)` \| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "file", "name"), NAMED)
def test_what_the_tour_and_the_recipes_name_is_in_its_file(page: str, file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:(?:async )?def|class) {name}\b|^{name}\b", text, re.MULTILINE)


def test_both_readmes_have_the_same_commands_and_numbers() -> None:
    english, chinese = (
        [snippet for snippet in SNIPPETS if snippet.file == name] for name in ("README.md", "README.zh.md")
    )
    for kind in ("command", "python"):
        said = [[words(s.text) if kind == "command" else ast.dump(ast.parse(s.text)) for s in both if s.kind == kind]
                for both in (english, chinese)]  # fmt: skip
        assert said[0] == said[1]
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    numbers = [set(re.findall(r"\d+(?:[.,]\d+)*", page)) for page in pages]
    assert numbers[1] - numbers[0] == set()  # a number that was changed in one and not in the other


def test_snippets_are_found() -> None:
    assert len(COMMANDS) > 100
    assert len(RUNNABLE) >= 3
    assert len(TYPED) >= 8
    assert {"README.md", "docs/modelscope.md", "docs/recipes.md"} <= {snippet.file for snippet in COMMANDS}
