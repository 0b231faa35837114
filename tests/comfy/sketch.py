"""Graphs in ComfyUI's saved format from a short description: groups with a note, columns of nodes, wires by assignment."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from graphs import NodeInfo, has_control, input_specs, is_widget

# Layout, in the canvas's pixels. Heights fit the taller of ComfyUI's two renderers.
WIDTH, GAP, MARGIN, HEAD = 320, 40, 30, 60
TITLE, TEXT = 34, 140
CLASSIC = {"slot": 20, "widget": 24, "rest": 10}
NODES_2 = {"slot": 22, "widget": 29, "rest": 42, "advanced": 34}  # hides advanced widgets behind one button
PICTURES = {
    "FlashLipsFineTuneCodec": (520, 480), "FlashLipsFineTuneLipEditor": (520, 560), "FlashLipsFineTunePoseModel": (520, 480),
    "FlashLipsPreviewPoses": (600, 430), "FlashLipsPreviewTrack": (460, 460),
    "FlashLipsSaveVideo": (420, 620), "PreviewImage": (460, 400),
}  # fmt: skip
# Nodes that show a picture while they work, which stays when they are done: they grow by this much
PREVIEW = 290
PREVIEWING = {f"FlashLips{name}" for name in (
    "TrackFace", "CropFaces", "PasteFaces", "EncodePoses", "EditLatents", "LipSync", "LipSyncVideo", "LipSyncImages",
    "PrepareDataset",
)}  # fmt: skip
LETTER, LINE, SHORTEST = 5.8, 20, 88  # a note's letters, lines and least height
COLOURS = {"in": "#3f789e", "face": "#8A8", "voice": "#b58b2a", "poses": "#a1309b", "edit": "#b06634", "out": "#88A"}


@dataclass
class Node:
    """A node of a sketch; given to another node's input, it stands for its first output."""

    id: int
    type: str
    title: str | None
    info: dict
    values: dict
    sources: dict[str, tuple[Node, int]]
    size: tuple[int, int]
    position: tuple[int, int] = (0, 0)

    @property
    def room(self) -> int:
        """Height that is left for it, with its picture."""
        return self.size[1] + PREVIEW * (self.type in PREVIEWING)

    def out(self, name: str) -> tuple[Node, int]:
        """An output by its name."""
        return self, self.info["output_name"].index(name)


@dataclass
class Group:
    """A box with a note at its top and columns of nodes below."""

    title: str
    note: str
    colour: str
    row: int
    columns: list[list[Node]] = field(default_factory=lambda: [[]])

    @property
    def width(self) -> int:
        return sum(max(node.size[0] for node in column) for column in self.columns) + GAP * (len(self.columns) - 1)

    @property
    def note_height(self) -> int:
        lines = sum(math.ceil(len(line) * LETTER / (self.width - 30)) or 1 for line in self.note.split("\n"))
        return max(SHORTEST, 46 + lines * LINE)

    @property
    def height(self) -> int:
        tallest = max(sum(node.room + TITLE + GAP for node in column) for column in self.columns)
        return HEAD + TITLE + self.note_height + GAP + tallest


class Sketch:
    """A graph in the making: groups from left to right, in rows."""

    def __init__(self, name: str, node_info: NodeInfo) -> None:
        self.name, self.node_info = name, node_info
        self.groups: list[Group] = []
        self.nodes: list[Node] = []
        self.row = 0

    @contextmanager
    def group(self, title: str, note: str, colour: str) -> Iterator[None]:
        """What is added inside stands in this box."""
        self.groups.append(Group(title, note, COLOURS[colour], self.row))
        yield

    def column(self) -> None:
        """Go on in a new column of the group."""
        self.groups[-1].columns.append([])

    def new_row(self) -> None:
        """Go on below."""
        self.row += 1

    def node(self, type_: str, title: str | None = None, **inputs: object) -> Node:
        """Add a node. Inputs are widget values, nodes (their first output) or ``node.out(name)``."""
        info = self.node_info(type_)
        names = [name for name, _, _ in input_specs(info)]
        if unknown := set(inputs) - set(names):
            raise ValueError(f"{type_} has no input {sorted(unknown)}; it has {names}.")
        linked = {name: (value, 0) if isinstance(value, Node) else value for name, value in inputs.items()}
        sources = {name: value for name, value in linked.items() if isinstance(value, tuple)}
        values = {name: value for name, value in inputs.items() if name not in sources}
        node = Node(len(self.nodes) + 1, type_, title, info, values, sources, size_of(type_, info))
        self.nodes.append(node)
        self.groups[-1].columns[-1].append(node)
        return node

    def graph(self) -> dict:
        """The graph in litegraph's format."""
        boxes = [(group, *place) for group, place in zip(self.groups, self._arrange(), strict=True)]
        links, entries = self._links(), []
        for order, node in enumerate(self.nodes):
            entries.append({**node_entry(node, links), "order": order})
        for index, (group, left, top) in enumerate(boxes):
            entries.append(note_entry(len(self.nodes) + 1 + index, group, left + MARGIN, top + HEAD + TITLE))
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"flashlips/{self.name}")),
            "revision": 0,
            "last_node_id": len(entries),
            "last_link_id": len(links),
            "nodes": entries,
            "links": [[number, source.id, slot, target.id, index, kind] for number, source, slot, target, index, kind in links],
            "groups": [
                {
                    "id": index + 1,
                    "title": group.title,
                    "color": group.colour,
                    "font_size": 24,
                    "flags": {},
                    "bounding": [left, top, group.width + 2 * MARGIN, group.height],
                }
                for index, (group, left, top) in enumerate(boxes)
            ],  # fmt: skip
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [90, 110]}},
            "version": 0.4,
        }

    def _arrange(self) -> list[tuple[int, int]]:
        """Positions of the groups; sets those of the nodes."""
        places, left, top, row, tallest = [], 0, 0, 0, 0
        for group in self.groups:
            if group.row != row:
                left, top, row, tallest = 0, top + tallest + GAP, group.row, 0
            places.append((left, top))
            x = left + MARGIN
            for column in group.columns:
                y = top + HEAD + TITLE + group.note_height + GAP + TITLE
                for node in column:
                    node.position = (x, y)
                    y += node.room + TITLE + GAP
                x += max(node.size[0] for node in column) + GAP
            left += group.width + 2 * MARGIN + GAP
            tallest = max(tallest, group.height)
        return places

    def _links(self) -> list[tuple]:
        """(number, source node, its slot, target node, its slot, type) of every wire."""
        wires = []
        for node in self.nodes:
            names = [name for name, _, _ in input_specs(node.info)]
            for name, (source, slot) in node.sources.items():
                wires.append((len(wires) + 1, source, slot, node, names.index(name), source.info["output"][slot]))
        return wires


def size_of(type_: str, info: dict) -> tuple[int, int]:
    """Room for a node in either renderer."""
    if type_ in PICTURES:
        return PICTURES[type_]
    widgets = [options for _, kind, options in input_specs(info) if is_widget(kind, options)]
    controls = sum(has_control(name, options) for name, kind, options in input_specs(info) if is_widget(kind, options))
    slots = max(sum(not is_widget(kind, options) for _, kind, options in input_specs(info)), len(info["output"]))
    shown = sum(not options.get("advanced") for options in widgets)
    texts = TEXT * sum(bool(options.get("multiline")) for options in widgets)
    classic = slots * CLASSIC["slot"] + (len(widgets) + controls) * CLASSIC["widget"] + CLASSIC["rest"]
    button = NODES_2["advanced"] * (shown < len(widgets))
    newer = slots * NODES_2["slot"] + shown * NODES_2["widget"] + NODES_2["rest"] + button
    return WIDTH, max(classic, newer) + texts


def node_entry(node: Node, links: list[tuple]) -> dict:
    """One node as litegraph saves it."""
    inputs, values = [], []
    by_target = {(target.id, index): number for number, _, _, target, index, _ in links}
    optional = node.info["input"].get("optional", {})
    for index, (name, kind, options) in enumerate(input_specs(node.info)):
        entry = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": by_target.get((node.id, index))}
        if is_widget(kind, options):
            entry["widget"] = {"name": name}
            values.append(node.values.get(name, options.get("default", (options.get("options") or [None])[0])))
            values += ["fixed"] * has_control(name, options)
        if name in optional:
            entry["shape"] = 7  # litegraph's hollow circle
        inputs.append(entry)
    outputs = [
        {"name": name, "type": kind, "links": [n for n, source, slot, *_ in links if source is node and slot == index] or None}
        for index, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True))
    ]
    return {
        "id": node.id, "type": node.type, "pos": list(node.position), "size": list(node.size), "flags": {}, "mode": 0,
        "inputs": inputs, "outputs": outputs, "properties": {"Node name for S&R": node.type}, "widgets_values": values,
        **({"title": node.title} if node.title else {}),
    }  # fmt: skip


def note_entry(number: int, group: Group, left: int, top: int) -> dict:
    """The note of a group."""
    return {
        "id": number, "type": "MarkdownNote", "title": "Note", "pos": [left, top], "size": [group.width, group.note_height],
        "flags": {}, "order": number, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [group.note],
        "color": "#332922", "bgcolor": "#593930",
    }  # fmt: skip
