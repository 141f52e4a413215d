"""A headless Chromium for tests and pictures: Chrome's DevTools protocol over a pair of pipes, and nothing to install.

https://chromedevtools.github.io/devtools-protocol/: JSON messages that end in a zero byte, on descriptors 3 and 4 of a
browser that was started with --remote-debugging-pipe.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # small in containers
    "--hide-scrollbars",
    "--lang=zh-CN",
    "--accept-lang=zh-CN",
)
SECONDS = 60
"""For anything; a busy machine may take long to start a browser."""


class Page:
    """A tab. `events` are what Chromium told of it so far: {"method": …, "params": …}."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.received = b""
        self.numbers = count(1)
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; AssertionError for an error."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.answers], [], [], SECONDS)
            part = os.read(self.answers, 1 << 20) if ready else b""
            assert part, "Chromium doesn't answer"
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        return content

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What JavaScript says."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = SECONDS) -> Any:
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"waited in vain for {expression}"
            time.sleep(0.02)
        return found

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        found: str = self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    def click(self, selector: str) -> None:
        """With the mouse, where the element is."""
        at = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def type(self, selector: str, text: str) -> None:
        """In place of what stands there, as a keyboard or an input method would."""
        self.value(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        if text:
            self.send("Input.insertText", text=text)
        else:
            self.press("Delete", 46)

    def press(self, key: str, code: int, control: bool = False) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=2 if control else 0
            )

    def look(self, width: int, height: int, dark: bool = False, mobile: bool = False, scale: float = 1) -> None:
        """The screen from now on, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, or of what the screen shows of it."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, and exceptions that nobody caught."""
        found = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        bad = [entry for entry in found if entry["level"] in ("warning", "error")]
        said = [f"{entry['level']}: {entry['text']} {entry.get('url', '')}" for entry in bad]
        calls = [e["params"] for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        said += [f"{call['type']}: {call['args']}" for call in calls]
        thrown = [e["params"]["exceptionDetails"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return said + [str(details) for details in thrown]


def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip("no Chromium here: install Debian's chromium, or put `chromium` on the PATH")


@contextmanager
def page() -> Iterator[Page]:
    """A tab in a browser of its own, which ends with the block."""
    program = chromium()
    with tempfile.TemporaryDirectory(prefix="moyun-chromium-", ignore_cleanup_errors=True) as folder:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # which Chromium hasn't got for root
        command = [program, *OPTIONS, *sandbox, f"--user-data-dir={folder}", "about:blank"]
        commands, answers, ends = pipes()
        actions = [
            (os.POSIX_SPAWN_DUP2, ends[0], 3),
            (os.POSIX_SPAWN_DUP2, ends[1], 4),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, f"{folder}/stderr", os.O_WRONLY | os.O_CREAT, 0o600),
        ]
        pid = os.posix_spawn(program, command, dict(os.environ), file_actions=actions, setsid=True)
        for descriptor in ends:
            os.close(descriptor)
        try:
            yield Page(commands, answers)
        finally:
            os.close(commands)
            os.close(answers)
            with suppress(ProcessLookupError):  # what is left of its own session, and so nobody else's processes
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def pipes() -> tuple[int, int, tuple[int, int]]:
    """(where commands are written, where answers are read, (both ends of the browser)), none of them 3 or 4."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (commands, answers, read_commands, write_answers)]
    for descriptor in (read_commands, commands, answers, write_answers):
        os.close(descriptor)
    return moved[0], moved[1], (moved[2], moved[3])
