"""Control a headless Chromium through the DevTools protocol, to test HTML reports in a real browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
         "--force-color-profile=srgb", "--remote-debugging-pipe")  # fmt: skip


class Page:
    """A page in the browser. ``requests`` has the addresses that it requested, ``errors`` its errors."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._numbers, self._rest = write, read, count(1), b""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loads = 0
        target = self._send("Target.createTarget", url="about:blank", _session=None)["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True, _session=None)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def open(self, file: Path, width: int = 1200, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Load a file and wait for it."""
        self._send("Emulation.setScriptExecutionDisabled", value=not script)
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._send("Emulation.setEmulatedMedia", features=media)
        before = self.loads
        self._send("Page.navigate", url=file.absolute().as_uri())
        self.wait(lambda: self.loads > before)

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page after the next frame; returns its value."""
        wrapped = f"new Promise(done => requestAnimationFrame(() => setTimeout(() => done({script}), 20)))"
        found = self._send("Runtime.evaluate", expression=wrapped, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, framed: bool = False) -> str:
        """The visible text, also of a page without scripts; ``framed``: the text of the page's first frame."""
        tree = self._send("Page.getFrameTree")["frameTree"]
        frame = (tree["childFrames"][0] if framed else tree)["frame"]["id"]
        nodes = self._send("Accessibility.getFullAXTree", frameId=frame)["nodes"]
        return "\n".join(node["name"]["value"] for node in nodes if node["role"]["value"] == "StaticText")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """``kind``: mouseMoved, mousePressed, mouseReleased."""
        button = "none" if kind == "mouseMoved" and not held else "left"
        self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(held), clickCount=1)

    def screenshot(self, file: Path) -> None:
        """Save a screenshot of the entire page as a PNG file."""
        found = self._send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(found))

    def wait(self, condition: Any, seconds: float = 20) -> None:
        """Wait until a condition is true; events of the browser are read meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; errors of the page: {self.errors}"
            self._send("Target.getTargets", _session=None)
            time.sleep(0.02)

    def _send(self, method: str, _session: str | None = "", **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if _session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 2**20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(about["exceptionDetails"]))
            case "Log.entryAdded":
                self.errors.append(about["entry"]["text"])
            case "Page.loadEventFired":
                self.loads += 1


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Context with an empty page in a new browser."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    start = 'read="$1" write="$2"; shift 2; exec "$@" 3<&"$read" 4>&"$write"'
    command = [
        "bash",
        "-c",
        start,
        "bash",
        str(to_read),
        str(from_write),
        str(PROGRAM),
        *FLAGS,
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(command, pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        process.wait(10)
