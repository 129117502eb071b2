"""Chromium without a window, told what to do by its DevTools protocol over a pair of pipes."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.servers import PATIENCE

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser, WIDTH pixels wide."""

    def __init__(self, width: int = 800) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="greycheck-browser-"))
        commands, self._write = os.pipe()
        self._read, events = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec timeout -s KILL "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(commands), str(events)]
            + [
                str(2 * PATIENCE),
                "chromium",
                *OPTIONS,
                f"--user-data-dir={self.home}",
                "about:blank",
            ],
            env={"PATH": os.defpath, "HOME": str(self.home), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            pass_fds=(commands, events),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._stream = os.fdopen(self._read, "rb", buffering=0)
        self._rest = b""
        self._number = 0
        self._session = ""
        targets = self.tell("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        attached = self.tell("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        self.tell("Page.enable")
        self.resize(width)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)  # which ends it
        self.process.wait(PATIENCE)
        self._stream.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._stream.read(65536)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    def tell(self, method: str, until: str = "", **parameters: object) -> Any:
        """The result of METHOD, once the event UNTIL has happened too."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        result, happened = None, not until
        while result is None or not happened:
            told = self._message()
            happened = happened or told.get("method") == until
            if told.get("id") == self._number:
                assert "error" not in told, told
                result = told["result"]
        return result

    def open(self, url: str) -> None:
        self.tell("Page.navigate", "Page.loadEventFired", url=url)

    def run(self, script: str, until: str = "") -> Any:
        """The value of SCRIPT in the page."""
        found = self.tell("Runtime.evaluate", until, expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def resize(self, width: int) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str, media: str = "screen") -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.tell("Emulation.setEmulatedMedia", media=media, features=[feature])

    def names(self) -> list[tuple[str, str]]:
        """Role and name of what a screen reader is told of the page."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        return [
            (each["role"]["value"], each.get("name", {}).get("value", ""))
            for each in nodes
            if not each.get("ignored")
        ]

    def picture(self) -> str:
        """The whole page as a PNG in base64."""
        found = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        return str(found["data"])
