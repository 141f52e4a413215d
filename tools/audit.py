"""Known vulnerabilities of what is locked, by pip-audit; skipped with a notice where its database can't be asked.

`make check` runs it. Exit code 1 where there are any.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parents[1] / "locks"
PROBE_SECONDS, SECONDS = 20, 300
SKIPPED = "pip-audit: skipped, its database can't be asked from here"


def audit(text: str, seconds: int) -> list[dict[str, Any]] | None:
    """What pip-audit reports of each package in a lock; None where it can't be asked."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "audited.lock"
        lock.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(lock)]
        options = ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        try:
            ended = subprocess.run([*command, *options], capture_output=True, timeout=seconds)
            packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None
    return None if all("skip_reason" in package for package in packages) else packages


def findings(packages: list[dict[str, Any]]) -> list[str]:
    """A line for each vulnerability."""
    return [
        f"  {package['name']} {package['version']}: {found['id']}, "
        f"{'mended in ' + ', '.join(found['fix_versions']) if found['fix_versions'] else 'not mended yet'}"
        for package in packages
        for found in package.get("vulns", [])
    ]


def main() -> int:
    everything = "".join((LOCKS / name).read_text(encoding="utf-8") for name in ("torch.lock", "run.lock", "dev.lock"))
    one = everything[everything.index("\nnumpy==") : everything.index("\nomegaconf==")]
    if audit(one, PROBE_SECONDS) is None or (packages := audit(everything, SECONDS)) is None:
        print(SKIPPED)
        return 0
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    print(f"pip-audit: {len(packages) - len(unknown)} packages" + (f", not {', '.join(unknown)}" if unknown else ""))
    found = findings(packages)
    if found:
        print("\n".join([*found, "`make lock` takes newer versions, as far as pyproject.toml allows them"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
