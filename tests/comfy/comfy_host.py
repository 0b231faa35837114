"""The real ComfyUI for tests: its engine without HTTP, and its server, each in a process of its own.

ComfyUI's modules have names like ``nodes`` and ``utils`` and read ``sys.argv``, so no test imports them.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import websocket

import dev

START_S = 300  # 7 s for the engine and 10 s for the server on an idle machine, minutes on one that trains
RUN_S = 300
WORKER = Path(__file__).with_name("comfy_worker.py")
ARGUMENTS = ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]


def environment_of(version: str, base: Path) -> dict[str, str]:
    """ComfyUI's variables, without the face detector's weights that a machine may have: with them other faces are found."""
    return {**dev.host_environment(version), "FLASHLIPS_MODELS": "", "TORCH_HOME": str(base / "torch")}


@dataclass(frozen=True)
class Run:
    """What became of one prompt."""

    outputs: dict[str, list] = field(default_factory=dict)  # per kept node its slots; objects as SimpleNamespace with a type
    ui: dict[str, dict] = field(default_factory=dict)  # per output node what it sent to the browser
    errors: dict[str, str] = field(default_factory=dict)  # per node why it was refused or failed; "" for the prompt itself
    events: list[tuple[str, dict]] = field(default_factory=list)  # the websocket's messages in order

    @property
    def is_interrupted(self) -> bool:
        return "execution_interrupted" in self.names

    @property
    def is_success(self) -> bool:
        return not self.errors and "execution_success" in self.names

    @property
    def names(self) -> list[str]:
        """The events without their data."""
        return [name for name, _ in self.events]

    @property
    def previewed(self) -> set[str]:
        """Nodes that showed a picture while they worked."""
        found, node = set(), None
        for name, data in self.events:
            node = data["node"] if name == "executing" else node
            if name == "preview_picture":
                found.add(node)
        return found

    @property
    def said(self) -> dict[str, str]:
        """The last text of each node that showed one."""
        return {data["node"]: data["text"] for name, data in self.events if name == "progress_text"}

    @property
    def cached(self) -> set[str]:
        """Nodes that were not executed again."""
        return {node for name, data in self.events if name == "execution_cached" for node in data["nodes"]}


class Process:
    """A worker with a base folder: ``base/input``, ``output``, ``temp``, ``models``, ``custom_nodes``."""

    def __init__(self, mode: str, version: str, base: Path, *arguments: str) -> None:
        self.version, self.base, self.log = version, base, base / "log.txt"
        for name in ("input", "output", "temp", "custom_nodes"):
            (base / name).mkdir(parents=True, exist_ok=True)
        command = [dev.environment_python(), WORKER, mode, dev.host_source(version), "--cpu", "--base-directory", base]
        # a session of its own, so that Ctrl-C in the terminal leaves the end to close()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *ARGUMENTS, *arguments], stdin=subprocess.PIPE, env=environment_of(version, base), cwd=base,
                stdout=subprocess.PIPE if mode == "engine" else log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End the process, at once if it does not end by itself."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def failure(self, what: str) -> RuntimeError:
        """An error with the end of the log in it."""
        return RuntimeError(f"{what}. The end of ComfyUI's log:\n{self.log.read_text(errors='replace')[-4000:]}")


class Engine(Process):
    """ComfyUI's engine: loads packs, validates and executes prompts."""

    def __init__(self, version: str, base: Path, *arguments: str) -> None:
        super().__init__("engine", version, base, *arguments)
        self._answers: queue.Queue = queue.Queue()
        self.packs: dict[Path, str] = {}  # those that are loaded, and what was logged meanwhile
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._ask("start", START_S)
        except BaseException:
            self.close()
            raise

    def load(self, pack: Path) -> list[str]:
        """Load a pack as ComfyUI does; returns the ids of the nodes that it adds."""
        before = self.log.stat().st_size
        names = self._ask("load", START_S, pack=str(pack))
        self.packs[pack] = self.log.read_bytes()[before:].decode(errors="replace")
        return names

    def node_info(self, node_id: str) -> dict:
        """The node as the front end sees it, from ``/object_info``."""
        return self._ask("node_info", node_id=node_id)

    def call(self, function: str, **arguments: object) -> object:
        """The result of ``/path/file.py:function`` inside ComfyUI's process; objects come back as SimpleNamespace."""
        return self._ask("call", code=function, arguments=arguments)

    def reset(self) -> None:
        """Forget cached results."""
        self._ask("reset")

    def run(
        self,
        prompt: dict,
        keep: str | tuple[str, ...] = (),
        interrupt_at: tuple[str, int] | None = None,
        timeout_s: float = RUN_S,
    ) -> Run:
        """Execute a prompt in the API format.

        Args:
            keep: nodes whose outputs to return; they are executed even if no output node needs them.
            interrupt_at: e.g. ``("progress", 3)`` presses Cancel at the third event of that name.
        """
        keep = (keep,) if isinstance(keep, str) else tuple(keep)
        answer = self._ask("run", timeout_s, prompt=prompt, keep=keep, interrupt_at=interrupt_at)
        errors = refusals(answer["error"], answer["node_errors"]) | failures(answer["events"])
        return Run(answer["outputs"], answer["ui"], errors, answer["events"])

    def _ask(self, name: str, timeout_s: float = RUN_S, **arguments: object) -> object:
        try:
            pickle.dump((name, arguments), self.process.stdin)
            self.process.stdin.flush()
            kind, answer = self._answers.get(timeout=timeout_s)
        except (queue.Empty, OSError) as error:
            self.process.kill()
            raise self.failure(f"ComfyUI {self.version} did not answer {name!r} within {timeout_s} s or is gone") from error
        if kind == "error":
            raise self.failure(f"{name!r} failed in ComfyUI {self.version}:\n{answer}")
        return answer

    def _read(self) -> None:
        try:
            while True:
                self._answers.put(pickle.load(self.process.stdout))
        except EOFError:
            self._answers.put(("error", "the process ended"))


class Server(Process):
    """ComfyUI's server on a free port of this machine; packs are those in ``base/custom_nodes``."""

    def __init__(self, version: str, base: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__("server", version, base, "--port", str(self.port), *arguments)
        self.client = uuid.uuid4().hex
        try:
            self._wait()
            self._socket = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=RUN_S)
        except BaseException:
            self.close()
            raise

    def get(self, path: str, **query: str) -> object:
        """A JSON answer."""
        return json.loads(self.get_bytes(path, **query))

    def get_bytes(self, path: str, **query: str) -> bytes:
        """An answer as it is."""
        with urllib.request.urlopen(f"{self.url}{path}?{urlencode(query)}", timeout=RUN_S) as answer:
            return answer.read()

    def post(self, path: str, content: object = None) -> dict:
        """Send JSON; returns the JSON answer, also of a refusal."""
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=RUN_S) as answer:
                return json.loads(answer.read() or "{}")
        except urllib.error.HTTPError as refused:
            return json.loads(refused.read())

    def submit(self, prompt: dict) -> dict:
        """Queue a prompt; returns ``prompt_id``, ``node_errors`` and, if nothing was queued, ``error``."""
        return self.post("/prompt", {"prompt": prompt, "client_id": self.client})

    def follow(self, prompt_id: str) -> Iterator[tuple[str, dict]]:
        """The websocket's messages about a prompt until it ends."""
        while True:
            message = self._socket.recv()
            if not isinstance(message, str):
                continue  # a preview picture
            message = json.loads(message)
            if message["data"].get("prompt_id") == prompt_id:
                yield message["type"], message["data"]
                if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    return

    def run(self, prompt: dict) -> Run:
        """Queue a prompt and wait for its end."""
        answer = self.submit(prompt)
        errors = refusals(answer.get("error"), answer.get("node_errors", {}))
        events = [] if "error" in answer else list(self.follow(answer["prompt_id"]))
        ui = {data["node"]: data["output"] for name, data in events if name == "executed"}
        return Run({}, ui, errors | failures(events), events)

    def interrupt(self) -> None:
        """Press Cancel."""
        with urllib.request.urlopen(urllib.request.Request(self.url + "/interrupt", b"{}"), timeout=RUN_S):
            pass

    def view(self, item: dict) -> bytes:
        """The file that a node's ui names as ``{"filename", "subfolder", "type"}``."""
        return self.get_bytes("/view", **item)

    def close(self) -> None:
        """Stop the server as Ctrl-C does."""
        if hasattr(self, "_socket"):
            self._socket.close()
        if os.name != "nt":
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                pass  # super() is less patient
        super().close()

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/object_info")
                return
            except OSError:
                time.sleep(0.1)
        raise self.failure(f"ComfyUI {self.version} does not serve port {self.port}")


def refusals(error: dict | None, node_errors: dict) -> dict[str, str]:
    """What validation says, as text per node."""
    texts = {node: "; ".join(_text(reason) for reason in found["errors"]) for node, found in node_errors.items()}
    return texts if texts or not error else {"": _text(error)}


def failures(events: list[tuple[str, dict]]) -> dict[str, str]:
    """What execution says, as text per node."""
    return {data["node_id"]: data["exception_message"].strip() for name, data in events if name == "execution_error"}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _text(reason: dict) -> str:
    return f"{reason['message']}: {reason['details']}".rstrip(": ")
