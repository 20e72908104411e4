"""A headless Chromium, told what to do over its DevTools protocol through two pipes: nothing but Python is needed."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    f"--disable-{name}"
    for name in ("gpu", "quic", "background-networking", "component-update", "sync", "extensions", "dev-shm-usage")
]


class NavigatedError(RuntimeError):
    """The page that was asked went away before it answered."""


class Browser:
    """One page of one browser. `errors` are what its console has said, and what did not load."""

    def __init__(self, profile, timeout=60.0):
        self.timeout = timeout
        self.errors = []
        self._received, self._count, self._events = b"", 0, []
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # out of the way of 3 and 4, which is where Chromium expects its ends
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
        arguments = ["--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}", *QUIET]
        self._process = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, "--remote-debugging-pipe", *arguments, "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        self._session = None
        self.send("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)

    def send(self, method, **parameters):
        """A command, and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            message = answer["error"]["message"]
            raise (NavigatedError if "navigated" in message else RuntimeError)(f"{method}: {message}")
        return answer["result"]

    def goto(self, url):
        """Open a page, and wait until it is loaded, pictures and all."""
        self._events.clear()
        new = "loaderId" in self.send("Page.navigate", url=url)  # rather than another place of the same page
        while new and "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def follow(self, selector):
        """Click on a link, and wait for where it leads."""
        place = self.evaluate(f"document.querySelector({json.dumps(selector)}).href")
        self._events.clear()
        with contextlib.suppress(NavigatedError):
            self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self.wait_for(f"window.location.href == {json.dumps(place)} && document.readyState == 'complete'")

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def wait_for(self, expression):
        """Its value, as soon as it is true."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            with contextlib.suppress(NavigatedError):  # the page that was asked is gone
                if value := self.evaluate(expression):
                    return value
            time.sleep(0.05)
        raise TimeoutError(expression)

    def resize(self, width, height, phone=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def prefer(self, scheme):
        """Dark or light pages, which stand still."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _next(self):
        end = time.monotonic() + self.timeout
        while b"\0" not in self._received:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            more = os.read(self._read, 1 << 16)
            if not more:
                raise EOFError("Chromium has ended")
            self._received += more
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        method, about = event.get("method"), event.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
