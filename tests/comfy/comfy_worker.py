"""One process with the real ComfyUI in it, started by comfy_host.py.

    comfy_worker.py engine|server SOURCE [ComfyUI arguments]

``engine``: no HTTP; reads calls from stdin and writes answers to stdout, both pickled (they carry tensors).
``server``: ComfyUI's own main.py. Either ends when stdin closes, so that nothing outlives a killed pytest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import importlib.util
import os
import pickle
import queue
import runpy
import sys
import threading
import traceback
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

# What a graph of ours is built from; all of comfy_extras takes several seconds more.
EXTRAS = (
    "nodes_audio", "nodes_audio_encoder", "nodes_images", "nodes_latent", "nodes_mask", "nodes_preview_any", "nodes_primitive",
    "nodes_video",
)  # fmt: skip
CLIENT = "test"


class Engine:
    """ComfyUI's node loading, validation and execution, as its server uses them."""

    def __init__(self) -> None:
        main = importlib.import_module("main")  # before the others: reads the arguments and sets the folders; starts nothing
        import execution
        import folder_paths
        import server

        import nodes

        self.execution, self.nodes, self.folder_paths = execution, nodes, folder_paths
        self.events: list[tuple[str, dict]] = []
        self.interrupt_at: tuple[str, int] | None = None
        self.server = server.PromptServer(asyncio.new_event_loop())
        self.server.send_sync = self._collect
        main.hijack_progress(self.server)
        asyncio.run(nodes.init_public_apis())
        for name in EXTRAS:
            path = Path(nodes.__file__).parent / "comfy_extras" / f"{name}.py"
            if path.exists() and not asyncio.run(nodes.load_custom_node(str(path), module_parent="comfy_extras")):
                raise RuntimeError(f"ComfyUI's {name} does not load; its log says why.")
        self._add_test_nodes()
        self.reset()

    def reset(self) -> None:
        """Forget all cached results."""
        arguments = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self.executor = self.execution.PromptExecutor(self.server, self.execution.CacheType.CLASSIC, arguments)

    def load(self, pack: str) -> list[str]:
        """Load a pack as ComfyUI does; returns the ids of the nodes that it adds."""
        before = set(self.nodes.NODE_CLASS_MAPPINGS)
        if not asyncio.run(self.nodes.load_custom_node(pack, before)):
            raise RuntimeError(f"ComfyUI could not load {pack}; its log says why.")
        return sorted(set(self.nodes.NODE_CLASS_MAPPINGS) - before)

    def node_info(self, node_id: str) -> dict:
        """What ``/object_info/<node_id>`` answers."""
        return self.nodes.NODE_CLASS_MAPPINGS[node_id].GET_NODE_INFO_V1()

    def call(self, code: str, arguments: dict) -> object:
        """The result of a function here: ``code`` is ``/path/file.py:function``."""
        return plain(load_function(code)(**arguments))

    def run(self, prompt: dict, keep: tuple[str, ...], interrupt_at: tuple[str, int] | None) -> dict:
        """Validate and execute a prompt in the API format. ``keep``: nodes to run and whose outputs to return."""
        self.events, self.interrupt_at = [], interrupt_at
        keepers = {f"keep {node}": {"class_type": "TestKeep", "inputs": {"value": [node, 0]}} for node in keep}
        prompt = {**prompt, **keepers}
        valid, error, outputs, node_errors = asyncio.run(self.execution.validate_prompt(CLIENT, prompt, None))
        answer = {"error": error, "node_errors": node_errors, "events": self.events, "outputs": {}, "ui": {}}
        if valid:
            self.executor.execute(prompt, CLIENT, {"client_id": CLIENT}, outputs)
            answer["ui"] = plain(self.executor.history_result["outputs"])
            answer["outputs"] = {node: self._outputs(node) for node in keep}
        answer["events"] = plain(self.events)
        return answer

    def _outputs(self, node: str) -> list | None:
        entry = asyncio.run(self.executor.caches.outputs.get(node))
        if entry is None:
            return None
        return [plain(slot[0] if len(slot) == 1 else slot) for slot in entry.outputs]

    def _collect(self, event: object, data: object, sid: str | None = None) -> None:
        if isinstance(data, bytes):  # a node's text: the length of its id, the id, the text
            length = 4 + int.from_bytes(data[:4], "big")
            self.events.append(("progress_text", {"node": data[4:length].decode(), "text": data[length:].decode()}))
        elif not isinstance(event, str):  # a picture on the node that is executing: kind, image, largest side
            self.events.append(("preview_picture", {"size": data[1].size}))
        else:
            self.events.append((event, data))
            if (event, sum(name == event for name, _ in self.events)) == self.interrupt_at:
                self.nodes.interrupt_processing()

    def _add_test_nodes(self) -> None:
        from comfy_api.latest import io

        class TestMake(io.ComfyNode):
            """Outputs what a function returns: for models and other values that no small graph makes."""

            @classmethod
            def define_schema(cls) -> io.Schema:
                inputs = [io.String.Input("code"), io.AnyType.Input("value", optional=True)]
                return io.Schema("TestMake", inputs=inputs, outputs=[io.AnyType.Output()])

            @classmethod
            def execute(cls, code: str, **value: object) -> io.NodeOutput:
                return io.NodeOutput(load_function(code)(**value))

        class TestKeep(io.ComfyNode):
            """Makes ComfyUI execute the node before it."""

            @classmethod
            def define_schema(cls) -> io.Schema:
                return io.Schema("TestKeep", inputs=[io.AnyType.Input("value")], outputs=[], is_output_node=True)

            @classmethod
            def execute(cls, value: object) -> io.NodeOutput:
                return io.NodeOutput()

        self.nodes.NODE_CLASS_MAPPINGS.update({node.__name__: node for node in (TestMake, TestKeep)})
        for node in (TestMake, TestKeep):
            node.GET_SCHEMA()


def load_function(code: str) -> object:
    """The function named by ``/path/file.py:function``."""
    path, _, name = code.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"test_code_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def plain(value: object) -> object:
    """A copy that another process can unpickle: arrays and built-in types stay, other objects become SimpleNamespaces."""
    import numpy as np
    import torch
    from comfy_api.latest import Input

    if value is None or isinstance(value, (bool, int, float, str, bytes, Fraction)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    kind = type(value).__name__
    if isinstance(value, Input.Video):
        source, (width, height) = value.get_stream_source(), value.get_dimensions()
        return SimpleNamespace(type=kind, source=source if isinstance(source, str) else None, width=width, height=height)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return SimpleNamespace(type=kind, **{name: plain(getattr(value, name)) for name in names})
    return SimpleNamespace(type=kind, text=repr(value))


def answer_calls() -> None:
    """Serve Engine's methods until stdin closes, even in the middle of a prompt."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # ComfyUI prints
    calls: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read_calls, args=(calls,), daemon=True).start()
    engine = None
    while True:
        name, arguments = calls.get()
        try:
            if name == "start":
                engine, answer = Engine(), ("result", None)
            else:
                answer = ("result", getattr(engine, name)(**arguments))
        except BaseException:
            answer = ("error", traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


def read_calls(calls: queue.SimpleQueue) -> None:
    """Queue what comes from stdin; end this process with it."""
    while True:
        try:
            calls.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(0)


def exit_with_parent() -> None:
    """Wait for the end of stdin, then end this process at once."""
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    mode, source = sys.argv[1:3]
    sys.argv[:3] = [str(Path(source) / "main.py")]
    sys.path[0] = source  # not this folder, so that ComfyUI finds only its own modules
    if mode == "engine":
        answer_calls()
    else:
        threading.Thread(target=exit_with_parent, daemon=True).start()
        runpy.run_path(sys.argv[0], run_name="__main__")
