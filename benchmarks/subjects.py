"""Who is measured beside whom. A turn is one process; what it calls is named, not imported."""

from __future__ import annotations

import ctypes.util
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INSTALL = {
    "transformers": "'.[bench]'",
    "ctranslate2": "'.[bench]'",
    "xllamacpp": "'.[bench]'",
    "litgpt": "--no-deps litgpt",
}
"""What pip is to be given for a module; litgpt's model needs nothing of what litgpt would bring."""

Medians = Mapping[str, float]
"""Subject's name → median of its values."""


@dataclass(frozen=True)
class Subject:
    """Somebody's way to do the work, or a limit of the hardware: `function(work, **options)` → {"value": …}."""

    name: str
    function: str
    """module:function; called in a process of its own, in a folder of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Modules without which the row says "not installed"."""
    allocator: bool = False
    """With tcmalloc preloaded, which does for others what moyun's allocator.py does for itself."""

    @property
    def own(self) -> bool:
        """Whether it is moyun's: then a failure is an error, and not a row that says so."""
        return self.function.startswith("benchmarks.moyun_turns")

    def missing(self) -> str | None:
        """Why it can't be measured here."""
        for name in self.needs:
            if importlib.util.find_spec(name) is None:
                return f"not installed (pip install {INSTALL.get(name, name)})"
        if self.allocator and tcmalloc() is None:
            return "tcmalloc isn't installed (apt install libtcmalloc-minimal4)"
        return None


@dataclass(frozen=True)
class Comparison:
    """Subjects that take turns; the first is moyun's, and ratios say how it stands to each other one."""

    name: str
    part: str
    title: str
    unit: str
    subjects: list[Subject]
    higher_is_better: bool = True
    value: str = "value"
    """What of a turn is compared: what its function returned as its value, or peak_gib."""
    once: bool = False
    """One round is enough: what is measured hardly varies, or the turn repeats it by itself."""
    note: Callable[[Medians], str] | None = None
    """A sentence under the table."""


def tcmalloc() -> Path | None:
    """The library that LD_PRELOAD takes, where there is one."""
    name = ctypes.util.find_library("tcmalloc_minimal")
    if name is None:
        return None
    folders = (Path(root) / "lib" for root in ("/usr", "/usr/local", "/"))
    found = (path for folder in folders for path in [folder / name, *sorted(folder.glob(f"*/{name}"))])
    return next((path for path in found if path.exists()), None)
