"""The app in a process of its own, and pages of it without a browser: they send what a browser sends, and no more."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from studio.core.runlog import RunState

ROOT = Path(__file__).parents[2]
STATUS = "run-status"
"""elem_id of what shows the state of the run."""
_SECONDS = 120
"""So long the app may take to answer."""
_IDLE_SECONDS = 3
"""So long a connection is kept between two requests; uvicorn keeps it for 5."""
_SHOWN = re.compile(r"data-state='(\w+)' data-step='(\d+)'")


class App:
    """`python -m studio ui` on a project."""

    def __init__(self, project: Path, port: int) -> None:
        """Starts it, and returns once it answers. Raises RuntimeError when it ends or does not answer."""
        self.port = port
        self._log = project / "app.log"
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "studio", "ui", "--no-browser", "--port", str(port), "--project", str(project)],
                cwd=project, stdout=log, stderr=log, start_new_session=True, env=environment(),
            )  # fmt: skip
        try:
            while not answers(port):
                if self._process.poll() is not None or time.monotonic() > started + _SECONDS:
                    raise RuntimeError(f"The app does not answer: {self._log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise
        self.seconds = time.monotonic() - started
        """From its start to its first answer."""

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, to it and to what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Page:
    """A visitor: the components of the page as the server last said, and the events that a browser would send."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        self._session = secrets.token_hex(6)
        self._origin = f"http://127.0.0.1:{port}"
        self._last = time.monotonic()
        self.num_bytes = 0
        """That came, compressed."""
        config = self._ask("GET", "/config")
        self._events = config["dependencies"]
        self.components: dict[int, dict[str, Any]] = {one["id"]: dict(one["props"]) for one in config["components"]}
        self._types: dict[int, str] = {one["id"]: one["type"] for one in config["components"]}

    def load(self) -> None:
        """What the page asks for when it is opened. Raises RuntimeError, here and below, when the server refuses."""
        for event in self._events:
            if any(name == "load" for _, name in event["targets"]):
                self._fire(event, None)

    @property
    def interval(self) -> float:
        """Seconds between two ticks of the timer that is the first to tick."""
        return min((float(self.components[timer]["value"]) for timer in self._timers()), default=float("inf"))

    def poll(self) -> None:
        """A tick of the timers. Raises RuntimeError when none is on."""
        timers = self._timers()
        ticks = [(timer, event) for timer in timers for event in self._events if [timer, "tick"] in event["targets"]]
        if not ticks:
            raise RuntimeError("The page does not watch anything.")
        for timer, event in ticks:
            self._fire(event, timer)

    def press(self, elem_id: str) -> None:
        """A click."""
        target = self._find(elem_id)
        for event in self._events:
            if [target, "click"] in event["targets"]:
                self._fire(event, target)

    def component(self, elem_id: str) -> Mapping[str, Any]:
        """Its properties."""
        return self.components[self._find(elem_id)]

    def shown(self) -> tuple[RunState, int] | None:
        """(state, step) of the run that the page shows; None while it shows none."""
        found = _SHOWN.search(str(self.component(STATUS).get("value")))
        return (RunState(found[1]), int(found[2])) if found else None

    def close(self) -> None:
        """Leaves the page."""
        self._connection.close()

    def _timers(self) -> list[int]:
        """Those that are on."""
        return [one for one, props in self.components.items() if self._types[one] == "timer" and props.get("active")]

    def _find(self, elem_id: str) -> int:
        return next(one for one, props in self.components.items() if props.get("elem_id") == elem_id)

    def _fire(self, event: Mapping[str, Any], trigger: int | None) -> None:
        """Sends an event, takes the answer in, and goes on with what follows from it."""
        if event["backend_fn"]:
            body = {
                "data": [self.components[one].get("value") for one in event["inputs"]],
                "event_data": None, "fn_index": event["id"], "trigger_id": trigger, "session_hash": self._session,
            }  # fmt: skip
            answer = self._queued(body) if event["queue"] else self._ask("POST", "/gradio_api/run/predict", body)
            for one, value in zip(event["outputs"], answer["data"], strict=True):
                if isinstance(value, dict) and value.get("__type__") == "update":
                    self.components[one].update(value)
                else:
                    self.components[one]["value"] = value
            for changed in answer.get("changed_state_ids") or ():
                for other in self._events:
                    if [changed, "change"] in other["targets"]:
                        self._fire(other, changed)
        for other in self._events:
            if other["trigger_after"] == event["id"] and not other["trigger_only_on_failure"]:
                self._fire(other, None)

    def _queued(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The last answer to an event that waits its turn."""
        self._ask("POST", "/gradio_api/queue/join", body)
        self._connection.request("GET", f"/gradio_api/queue/data?session_hash={self._session}")
        answer: dict[str, Any] | None = None
        with self._connection.getresponse() as response:
            for line in response:
                message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"The page was refused: {message['output']}")
                    answer = message["output"]
        if answer is None:
            raise RuntimeError("An event got no answer.")
        return answer

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        # The server closes a connection that was idle for a while; a browser then takes a new one.
        if time.monotonic() - self._last > _IDLE_SECONDS:
            self._connection.close()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip", "Origin": self._origin}
        self._connection.request(method, path, content, headers)
        with self._connection.getresponse() as response:
            answer = response.read()
        self._last = time.monotonic()
        self.num_bytes += len(answer)
        if response.headers["Content-Encoding"] == "gzip":
            answer = gzip.decompress(answer)
        if response.status != 200:
            raise RuntimeError(f"{path} was answered with {response.status}: {answer[:300]!r}")
        return json.loads(answer)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """Of a process that runs this package from anywhere."""
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


@contextmanager
def running_app(project: Path) -> Iterator[App]:
    """The app for as long as the block runs."""
    app = App(project, free_port())
    try:
        yield app
    finally:
        app.kill()


def answers(port: int) -> bool:
    """True once the page is served."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
