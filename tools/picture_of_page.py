"""`python -m tools.picture_of_page [model] [folder] [language]`: pictures of the page, to look at, or for docs/.

model: a folder or a models:/ URI (models:/moyun@champion unless given); language: zh or en. Needs Chromium and a font
with Chinese (Debian: chromium, fonts-noto-cjk). docs/pictures/ has page.png and page-phone-dark.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modules.checkpoint.loading import load_model
from modules.checkpoint.model_folder import read_provenance
from modules.config.base import is_registered, model_folder
from modules.tokenizer.tokenizer import load_tokenizer
from pipelines import find_model
from tests.helpers.browser import Page, page
from tests.helpers.served_page import KNOWN, WRITTEN
from tests.helpers.server_tools import served

LOOKS = {
    "page": {"width": 1280, "height": 860},
    "page-dark": {"width": 1280, "height": 860, "dark": True},
    "page-phone": {"width": 360, "height": 780, "mobile": True, "scale": 2},
    "page-phone-dark": {"width": 360, "height": 780, "mobile": True, "scale": 2, "dark": True},
}


def take(tab: Page, url: str, folder: Path, language: str) -> None:
    for name, look in LOOKS.items():
        tab.look(**look)
        tab.open(url)
        tab.value(f"localStorage.setItem('language', '{language}')")
        tab.open(url)
        tab.until(KNOWN)
        tab.value("document.querySelector('#seed').value = '7'")
        if tab.value("document.body.classList.contains('talks')"):
            tab.click("#examples button")
        else:
            tab.value("document.querySelector('#prompt').value = '白日依山尽，'")
            tab.click("#write")
        tab.until(WRITTEN)
        tab.value("scrollTo(0, 0); document.activeElement.blur()")
        tab.picture(folder / f"{name}.png", whole=False)


def main(model: str = "models:/moyun@champion", target: str = "docs/pictures", language: str = "zh") -> None:
    folder = find_model(model) if is_registered(model) else model_folder(model)
    decoder, tokenizer = load_model(folder), load_tokenizer(folder)
    with served(decoder, tokenizer, name="moyun", run=read_provenance(folder)) as running, page() as tab:
        take(tab, running.url, Path(target), language)


if __name__ == "__main__":
    main(*sys.argv[1:])
