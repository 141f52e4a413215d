"""`python -m tools.render_notebooks [NAME …]`: runs notebooks, and writes their pictures that docs/notebooks.md shows.

They are docs/pictures/NAME-1.png, …, by their order in the notebook.
On the models and runs of this folder's tracking store (`make demo` makes some), or of MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "notebooks.md"
PICTURES = PAGE.parent / "pictures"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; nothing is written to its file. CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    return client.execute()


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """PNGs, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def render(names: Sequence[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        for number, picture in enumerate(pictures(executed(path)), 1):
            if f"({PICTURES.name}/{path.stem}-{number}.png)" in page:
                (PICTURES / f"{path.stem}-{number}.png").write_bytes(picture)


if __name__ == "__main__":
    render(sys.argv[1:])
