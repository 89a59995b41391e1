"""Chromium without a window, driven over the pipe of its DevTools protocol.

The protocol (https://chromedevtools.github.io/devtools-protocol/) comes as JSON messages that end in
a zero byte, on the file descriptors 3 and 4 of a process started with `--remote-debugging-pipe`. No
port is opened, and nothing needs to be installed but the browser.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    "--use-angle=swiftshader",  # WebGL on the CPU
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 60.0
"""How long an answer is waited for: a busy machine starts a renderer slowly."""


def find_chrome() -> str | None:
    """Path of a Chromium, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Console errors, requests and answers are kept from its beginning."""

    def __init__(self, chrome: "Chrome", session: str) -> None:
        self._chrome, self._session = chrome, session
        self.errors: list[str] = []
        """What the console calls an error, and exceptions that nobody caught."""
        self.requests: list[str] = []
        """URLs that were asked for; `data:` is none, since nothing is fetched."""

    def call(self, method: str, **parameters):
        """The result of a method of the protocol."""
        return self._chrome.call(method, parameters, self._session)

    def open(self, url: str) -> None:
        """Go to a URL, and wait until its `load` event."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression (of what it resolves to, if it is a promise)."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = SECONDS):
        """Wait until a JavaScript expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}\n{self.errors}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """Click into the middle of the first element of a CSS selector, as a mouse does."""
        element = f"document.querySelector({json.dumps(selector)})"
        x, y = self.evaluate(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Put a text where the focus is."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def emulate(self, media: str = "", **features: str) -> None:
        """Set a medium (`print`) or features of it: `prefers_color_scheme="dark"`."""
        named = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=named)

    def screenshot(self, path: str | Path, *, whole: bool = False) -> Path:
        """Write a PNG of what is seen, or of the whole page."""
        options: dict[str, object] = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        path = Path(path)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
        return path

    def note(self, method: str, told: dict) -> None:
        """Keep what an event says, if it is an error or a request."""
        if method == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            found = details.get("exception", {}).get("description", details["text"])
            self.errors.append(found)
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            words = (str(one.get("value", one.get("description"))) for one in told["args"])
            self.errors.append(" ".join(words))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")


class Chrome:
    """A browser process; `running` starts and ends one."""

    def __init__(self, answers: int, commands: int) -> None:
        self._answers, self._commands = answers, commands
        self._rest = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    @classmethod
    @contextmanager
    def running(cls, program: str, profile: Path) -> "Iterator[Chrome]":
        """Start a browser whose profile is kept in a folder, and end it."""
        (its_in, ours_out), (ours_in, its_out) = os.pipe(), os.pipe()
        # Above 4, so that neither is overwritten while they are put onto 3 and 4.
        high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (its_in, its_out)]
        log = profile / "chrome.log"
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        pid = os.posix_spawn(
            program, arguments, {**os.environ, "HOME": str(profile)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, str(log), writing, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
            ],
            setpgroup=0,
        )  # fmt: skip
        for one in (its_in, its_out, *high):
            os.close(one)
        try:
            yield cls(ours_in, ours_out)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(ours_in)
            os.close(ours_out)

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A new tab with storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call(
            "Target.createTarget", {"url": "about:blank", "browserContextId": context}
        )["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        try:
            yield page
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", {"browserContextId": context})

    def call(self, method: str, parameters: dict | None = None, session: str | None = None):
        """The result of a method; events that come before it are noted by their pages."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            page = self._pages.get(answer.get("sessionId", ""))
            if page is not None and "method" in answer:
                page.note(answer["method"], answer["params"])

    def _receive(self, method: str) -> dict:
        """The next message."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], SECONDS)
            assert ready, f"no answer to {method} in {SECONDS} s"
            received = os.read(self._answers, 1 << 20)
            assert received, f"the browser ended before it answered {method}"
            self._rest += received
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)
