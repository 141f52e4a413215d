"""`python -m tools.picture_of_report REPORT.html [picture.png]`: the top of an evaluation's page, for docs/pictures/.

Needs Chromium and a font with Chinese (Debian: chromium, fonts-noto-cjk).
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers.browser import page


def main(report: str, target: str = "docs/pictures/report.png") -> None:
    with page() as tab:
        tab.look(1120, 1250)
        tab.open(Path(report).absolute().as_uri())
        tab.picture(Path(target), whole=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
