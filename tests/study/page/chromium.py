"""A headless Chromium, led over the DevTools protocol by a pair of pipes: no port, no package, no profile that stays."""

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
         "--mute-audio", "--remote-debugging-pipe")  # fmt: skip
PATIENCE = 300.0  # seconds after which a browser that says nothing is taken to hang
# A process that becomes the browser, with its ends of the pipes where it expects them.
HAND_OVER = """import os, sys
for end, place in zip(map(int, sys.argv[1:3]), (3, 4)):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
ABOVE_PIPES = 10  # file descriptors 3 and 4 are the browser's


def find_chromium() -> str | None:
    """The browser's program, if there is one."""
    return next((path for name in NAMES if (path := which(name))), None)


class Browser:
    """One page of a browser.

    Attributes:
        events: all that the browser has reported, in order.
    """

    def __init__(self, program: str, profile: Path) -> None:
        ours, self._write = self._pipe()
        self._read, theirs = self._pipe()

        command = [sys.executable, "-c", HAND_OVER, str(ours), str(theirs), program, *FLAGS, f"--user-data-dir={profile}"]
        nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(command, pass_fds=(ours, theirs), **nothing)
        os.close(ours)
        os.close(theirs)
        self.events: list[dict[str, Any]] = []
        self._waiting, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = None
            self.call("Browser.close")
        finally:
            os.close(self._write)
            os.close(self._read)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            found = self._next(until)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def open(self, path: Path, *, width: int, dark: bool, still: bool = False) -> None:
        """Show a file from the disk, and wait until it has loaded."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        wanted = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in wanted.items()])
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + PATIENCE
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._next(until))

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str, code: str | None = None) -> None:
        """A key of the keyboard, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key)
        number = {"Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}.get(key, 0)
        options = {"key": key, "code": code or key, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG, also what is below the window's end."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and entries of the log."""
        found = []
        for each in self.events:
            method, said = each.get("method"), each.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(said["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(said["args"]))
            elif method == "Log.entryAdded":
                found.append(said["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, without those of data in the page itself."""
        asked = [each["params"]["request"]["url"] for each in self.events if each.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._waiting += piece
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """Both ends of a pipe, beyond the numbers that the browser's ends get."""
        ends = os.pipe()
        found = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, ABOVE_PIPES) for end in ends)
        for end in ends:
            os.close(end)
        return found


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser for as long as it is needed."""
    started = Browser(program, profile)
    try:
        yield started
    finally:
        started.close()
