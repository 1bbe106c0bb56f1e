"""A headless Chromium for the tests, driven over a pipe by the DevTools protocol; nothing but the standard library is needed.

Not run by itself.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe"),
)
PATIENCE = 60
"""Seconds to wait for an answer."""


def find_chromium() -> str | None:
    """The path of a Chromium that is installed, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def install_chromium() -> str | None:
    """Install Debian's Chromium, where this process may and can; returns its path, None if that failed."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=environment, capture_output=True, check=False, timeout=500)
    return find_chromium()


class Browser:
    """One tab of a Chromium that was started for it, with a profile of its own.

    Attributes:
        requests: the URL of everything that the page asked for since `open`, but for what stands in it (`data:`).
        complaints: what the browser wrote to its console since `open`: errors, violations of the content security policy.

    Args:
        executable: the browser.
        profile: a new, empty folder.
    """

    def __init__(self, executable: str, profile: Path):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        self._number = 0
        self._unread = b""
        their_input, our_output = os.pipe()
        our_input, their_output = os.pipe()
        self._input, self._output = our_input, our_output
        command = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads from the file descriptor 3 and writes to 4; bash lends it ours under these numbers.
        lent = f'exec "$@" 3<&{their_input} 4>&{their_output}'
        self._process = subprocess.Popen(
            ["bash", "-c", lent, "bash", *command], pass_fds=(their_input, their_output), stderr=subprocess.DEVNULL
        )
        os.close(their_input)
        os.close(their_output)
        self._session: str | None = None
        [target] = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._input)
        os.close(self._output)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Open a file in a window of that size, in CSS pixels, and wait until it is loaded."""
        self.resize(width, height)
        self.requests, self.complaints, self._loaded = [], [], False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._note(self._read())

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window another size, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def emulate(self, medium: str = "", **features: str) -> None:
        """Lay the page out for a medium ("print") or with media features (`prefers_color_scheme="dark"`)."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=medium, features=named)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, which may itself forbid scripts."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse there, in CSS pixels from the window's corner."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> Path:
        """What is in the window, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def print(self, path: Path) -> Path:
        """The page as it is printed, as a PDF."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        path.write_bytes(base64.b64decode(printed["data"]))
        return path

    def _note(self, event: Mapping[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif event.get("method") == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._input], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE} seconds"
            read = os.read(self._input, 1 << 16)
            assert read, "the browser has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
