"""A registered version serves itself: with the code that it carries and the packages that it names, and no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest

from modules.inference.text_generator import TextGenerator
from modules.inference.verse.rhymes import TABLE
from modules.tokenizer.tokenizer import Tokenizer as AnyTokenizer
from modules.tokenizer.tokenizer import load_tokenizer
from modules.tracking.models.exported_model import PYFUNC, log_model
from modules.tracking.reuse.imported_code import MODULES, code_behind, imported_packages
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

REQUIREMENTS = {"mlflow", "numpy", "omegaconf", "pandas", "pyyaml", "safetensors", "tokenizers", "torch"}
OPTIONS = {"max_new_tokens": 8, "temperature": 0.0}

ALONE = """
import importlib.metadata as metadata, importlib.util, json, re, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

folder, requirements = sys.argv[1], json.loads(sys.argv[2])
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("modules") is None, "the repository is on the path"

def name_of(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()

allowed, waiting = {"packaging"}, [Requirement(name) for name in requirements]
while waiting:
    requirement = waiting.pop()
    if name_of(requirement.name) in allowed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        continue
    try:
        waiting += map(Requirement, metadata.requires(requirement.name) or [])
    except metadata.PackageNotFoundError:
        continue
    allowed.add(name_of(requirement.name))
owners = metadata.packages_distributions()

class OnlyAllowed:
    # Other packages seem not to be installed.
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        theirs = {name_of(owner) for owner in owners.get(top, [])}
        found = top == "modules" or not theirs or theirs & allowed
        return PathFinder.find_spec(name, path, target) if found else None

sys.meta_path[:] = [OnlyAllowed if finder is PathFinder else finder for finder in sys.meta_path]
assert importlib.util.find_spec("psutil") is None
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(folder)
import modules
assert modules.__file__.startswith(folder), modules.__file__
for name in ("lightning_fabric", "pytorch_lightning", "datasets", "psutil", "rich"):
    assert name not in sys.modules, name
import uvicorn  # which `mlflow models serve` starts
from mlflow.pyfunc import scoring_server
assert {route.path for route in scoring_server.init(model).routes} > {"/invocations", "/ping"}
body = json.dumps({"inputs": {"src_txt": ["白日依山尽，"]}, "params": json.loads(sys.argv[3])})
answer = scoring_server.invocations(body, "application/json", model, model.metadata.get_input_schema())
assert answer.status == 200, answer
print(json.dumps(json.loads(answer.response)["predictions"]))
"""


def logged(folder: Path, tokenizer: AnyTokenizer) -> Path:
    """What MLflow holds of a small model, moved to a folder of its own."""
    model = save_model(folder / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    with mlflow.start_run():
        uri = log_model(model)
    return Path(shutil.copytree(mlflow.artifacts.download_artifacts(uri), folder / "elsewhere"))


@pytest.mark.parametrize("kind", ["character", "jieba_bpe"])
def test_it_needs_its_own_code_and_requirements_alone(kind: str, store: Path, tokenizer: AnyTokenizer) -> None:
    if kind == "jieba_bpe":
        tokenizer = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "megatron_tp1")
    folder = logged(store, tokenizer)
    named = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    extras = {"jieba"} if kind == "jieba_bpe" else set()
    extras |= {"llguidance"} if find_spec("llguidance") else set()
    assert set(named) == REQUIREMENTS | extras
    form = {"form": "五绝", "max_new_tokens": 20}
    options = OPTIONS | (form if kind == "character" else {})  # the other's vocabulary can't rhyme
    command = [sys.executable, "-I", "-c", ALONE, str(folder), json.dumps(named), json.dumps(options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    assert json.loads(done.stdout.splitlines()[-1]) == TextGenerator(decoder, tokenizer)(["白日依山尽，"], **options)


@pytest.mark.server
def test_a_dockerfile_installs_what_the_model_names_and_copies_all_of_it(store: Path, tokenizer: AnyTokenizer) -> None:
    """No image is built here."""
    folder = logged(store, tokenizer)
    command = [sys.executable, "-m", "mlflow", "models", "generate-dockerfile", "-m", str(folder), "-d", "docker"]
    done = subprocess.run(command, cwd=store, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = (store / "docker" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (source,) = (step.split()[1] for step in steps if step.startswith("COPY ") and step.endswith("/opt/ml/model"))
    copied = store / "docker" / source
    for path in (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts):
        assert (copied / path.relative_to(folder)).read_bytes() == path.read_bytes()
    (mlflow_there,) = (line for line in (copied / "requirements.txt").read_text().split() if line.startswith("mlflow"))
    assert f"RUN pip install {mlflow_there}" in steps
    assert any("_install_pyfunc_deps('/opt/ml/model'" in step for step in steps)


def test_it_carries_only_what_serving_imports(store: Path, tokenizer: AnyTokenizer) -> None:
    folder = logged(store, tokenizer)
    carried = {path.relative_to(folder / "code") for path in (folder / "code").rglob("*") if path.is_file()}
    assert carried == {file.relative_to(MODULES.parent) for file in [*code_behind(PYFUNC), TABLE]}
    packages = {path.parts[1] for path in carried if len(path.parts) > 2}
    assert packages <= {"system", "config", "tokenizer", "model", "checkpoint", "inference"}
    assert {path.parts[:2] for path in carried if len(path.parts) > 3} <= {
        ("modules", "checkpoint"),
        ("modules", "config"),
        ("modules", "inference"),
        ("modules", "model"),
    }
    assert {
        path.parts[2] for path in carried if path.parts[:2] == ("modules", "inference") and len(path.parts) > 3
    } == {"verse"}  # no server/
    assert imported_packages(code_behind(PYFUNC)) == {*REQUIREMENTS, "jieba", "llguidance", "yaml"} - {"pyyaml"}
    left_out = {"adapter.py", "gguf.py", "megatron.py", "modelscope.py", "huggingface.py", "app.py", "lora.py"}
    assert not left_out & {path.name for path in carried}
