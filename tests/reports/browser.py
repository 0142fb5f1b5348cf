"""Chromium without a window, spoken to over a pipe by its DevTools protocol: no driver, no port, no network."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One tab; `events` are all that the browser said about it."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers = commands, answers
        self.events: list[dict] = []
        self.num_sent, self.session = 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: object) -> dict:
        """Give a command and wait for its answer."""
        self.num_sent += 1
        message = {"id": self.num_sent, "method": method, "params": params}
        self._write(message if self.session is None else {**message, "sessionId": self.session})
        while (answer := self._read()).get("id") != self.num_sent:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, path: Path, *, width: int, scheme: str = "light") -> None:
        """Show a file in a window of that many CSS pixels, and forget what was said before."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> object:
        """What a JavaScript expression gives on the page; None for `undefined`."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Everything that was asked for since the page was opened."""
        return [sent["request"]["url"] for sent in self.said("Network.requestWillBeSent")]

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        """The page as it would be printed on A4."""
        printed = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(printed["data"])

    def said(self, method: str) -> list[dict]:
        """The parameters of all events of one kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def _write(self, message: dict) -> None:
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()

    def _read(self) -> dict:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("The browser went away.")
            text += byte
        return json.loads(text)


@contextlib.contextmanager
def browser_page(profile_folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, which ends with it."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise RuntimeError(f"None of {', '.join(NAMES)} is installed.")
    (theirs_in, ours_out), (ours_in, theirs_out) = _high(os.pipe()), _high(os.pipe())
    process = os.posix_spawn(
        program,
        [program, *FLAGS, f"--user-data-dir={profile_folder}"],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with os.fdopen(ours_out, "wb") as commands, os.fdopen(ours_in, "rb") as answers:
        try:
            yield Page(commands, answers)
        finally:
            os.kill(process, signal.SIGTERM)
            os.waitpid(process, 0)


def _high(pipe: tuple[int, int]) -> tuple[int, int]:
    """The same pipe under numbers that are in nobody's way: the browser wants its two as 3 and 4."""
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe)
    for end in pipe:
        os.close(end)
    return reading, writing
