"""Graphs in ComfyUI's saved format from a short description: boxes from left to right, two above each other where that is
shorter, each with columns of nodes and a note. Notes stand above the upper boxes' nodes and below the lower ones', so that no
wire runs behind one.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from graphs import NodeInfo, has_control, input_specs, is_widget

# Layout, in the canvas's pixels. Heights fit the taller of ComfyUI's two renderers.
WIDTH, GAP, MARGIN, HEAD = 300, 30, 20, 50
TITLE, TEXT = 34, 140
CLASSIC = {"slot": 20, "widget": 24, "rest": 10}
NODES_2 = {"slot": 22, "widget": 29, "rest": 42, "advanced": 34}  # hides advanced widgets behind one button
PICTURES = {
    "FlashLipsCompareVideo": (480, 540), "FlashLipsEditPoses": (760, 700),
    "FlashLipsPreviewPoses": (560, 420), "FlashLipsPreviewTrack": (420, 430),
    "FlashLipsSaveVideo": (420, 560), "PreviewImage": (420, 380),
}  # fmt: skip
# Nodes that show a picture while they work, which stays when they are done: they grow by this much; and a line of text by this
PREVIEW, STATUS = 290, 64
PREVIEWING = {f"FlashLips{name}" for name in (
    "TrackFace", "CropFaces", "PasteFaces", "EncodePoses", "EditLatents", "LipSync", "LipSyncVideo", "LipSyncImages",
    "PrepareDataset", "FineTuneCodec", "FineTuneLipEditor", "FineTunePoseModel",
)}  # fmt: skip
SPEAKING = PREVIEWING | {f"FlashLips{name}" for name in (
    "LoadVideo", "SaveVideo", "CompareVideo", "EncodeAudio", "SamplePoses",
)}  # fmt: skip
LETTER, LINE, SHORTEST = 6.2, 20, 88  # a note's letters, lines and least height
NOTE_WIDTH = 420  # at most: longer lines are hard to read
VIEW, SIDE_BAR, TOP_BAR = (1600, 950), 70, 110  # a common window, and what ComfyUI's own bars cover of it
ZOOM, SMALLEST_ZOOM = 0.7, 0.6  # below 0.58 the classic renderer leaves letters out
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
        return self.size[1] + PREVIEW * (self.type in PREVIEWING) + STATUS * (self.type in SPEAKING)

    def out(self, name: str) -> tuple[Node, int]:
        """An output by its name."""
        return self, self.info["output_name"].index(name)


@dataclass
class Group:
    """A box with columns of nodes, and a note at its outer edge."""

    title: str
    note: str
    colour: str
    is_below: bool  # the box before it
    columns: list[list[Node]] = field(default_factory=lambda: [[]])

    @property
    def width(self) -> int:
        return sum(max(node.size[0] for node in column) for column in self.columns) + GAP * (len(self.columns) - 1)

    @property
    def note_width(self) -> int:
        return min(self.width, NOTE_WIDTH)

    @property
    def note_height(self) -> int:
        lines = sum(math.ceil(len(line) * LETTER / (self.note_width - 30)) or 1 for line in self.note.split("\n"))
        return max(SHORTEST, 46 + lines * LINE)

    @property
    def nodes_height(self) -> int:
        return max(sum(node.room + TITLE + GAP for node in column) for column in self.columns)


class Sketch:
    """A graph in the making."""

    def __init__(self, name: str, node_info: NodeInfo) -> None:
        self.name, self.node_info = name, node_info
        self.groups: list[Group] = []
        self.nodes: list[Node] = []

    @contextmanager
    def group(self, title: str, note: str, colour: str, is_below: bool = False) -> Iterator[None]:
        """What is added inside stands in this box: right of the box before it, or below that."""
        self.groups.append(Group(title, note, COLOURS[colour], is_below))
        yield

    def column(self) -> None:
        """Go on in a new column of the group."""
        self.groups[-1].columns.append([])

    def node(self, type_: str, title: str | None = None, **inputs: object) -> Node:
        """Add a node. Inputs are widget values, nodes (their first output) or ``node.out(name)``."""
        info = self.node_info(type_)
        names = [name for name, _, _ in input_specs(info)]
        if unknown := set(inputs) - set(names) - {"control_after_generate"}:
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
        boxes, notes = self._arrange()
        links, entries = self._links(), []
        for order, node in enumerate(self.nodes):
            entries.append({**node_entry(node, links), "order": order})
        for index, (group, place) in enumerate(zip(self.groups, notes, strict=True)):
            entries.append(note_entry(len(self.nodes) + 1 + index, group, *place))
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
                    "bounding": list(box),
                }
                for index, (group, box) in enumerate(zip(self.groups, boxes, strict=True))
            ],
            "config": {},
            "extra": {"ds": view_of(boxes)},
            "version": 0.4,
        }

    def _arrange(self) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
        """The groups' boxes and the places of their notes; sets those of the nodes."""
        stacks: list[list[Group]] = []
        for group in self.groups:
            if group.is_below:
                stacks[-1].append(group)
            else:
                stacks.append([group])
        above = max(stack[0].note_height for stack in stacks)
        edge = HEAD + TITLE + above + GAP  # where the upper boxes' nodes begin
        upper = [edge + stack[0].nodes_height for stack in stacks]
        below = max((stack[1].note_height + TITLE + GAP for stack in stacks if len(stack) > 1), default=0)
        lower = [top + GAP + HEAD + stack[1].nodes_height for top, stack in zip(upper, stacks, strict=True) if len(stack) > 1]
        bottom = max(lower) if lower else 0  # where the lower boxes' notes begin
        boxes, notes, left = [], [], 0
        for stack, end in zip(stacks, upper, strict=True):
            columns = widths_of(stack)
            width = sum(columns) + GAP * (len(columns) - 1) + 2 * MARGIN
            self._place(stack[0], left + MARGIN, edge, columns)
            boxes.append((left, 0, width, end))
            notes.append((left + MARGIN, HEAD + TITLE))
            if len(stack) > 1:
                self._place(stack[1], left + MARGIN, end + GAP + HEAD, columns)
                boxes.append((left, end + GAP, width, bottom + below - end - GAP))
                notes.append((left + MARGIN, bottom + TITLE))
            left += width + GAP
        return boxes, notes

    def _place(self, group: Group, x: int, top: int, widths: list[int]) -> None:
        for column, width in zip(group.columns, widths, strict=False):  # the other box may have more
            y = top + TITLE
            for node in column:
                node.position = (x, y)
                y += node.room + TITLE + GAP
            x += width + GAP

    def _links(self) -> list[tuple]:
        """(number, source node, its slot, target node, its slot, type) of every wire."""
        wires = []
        for node in self.nodes:
            names = [name for name, _, _ in input_specs(node.info)]
            for name, (source, slot) in node.sources.items():
                wires.append((len(wires) + 1, source, slot, node, names.index(name), source.info["output"][slot]))
        return wires


def widths_of(stack: list[Group]) -> list[int]:
    """The width of each column of boxes above each other, so that what is left in one is left in the other."""
    count = max(len(group.columns) for group in stack)
    rows = [[node.size[0] for group in stack for column in group.columns[i : i + 1] for node in column] for i in range(count)]
    return [max(row) for row in rows]


def view_of(boxes: list[tuple[int, int, int, int]]) -> dict:
    """Zoom and offset that show all boxes in a common window, no smaller than can be read."""
    width, height = max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)
    room = VIEW[0] - SIDE_BAR - 30, VIEW[1] - TOP_BAR - 30
    scale = math.floor(100 * min(ZOOM, max(SMALLEST_ZOOM, min(room[0] / width, room[1] / height)))) / 100
    left = SIDE_BAR + max(0, room[0] - width * scale) / 2
    return {"scale": scale, "offset": [round(left / scale), round(TOP_BAR / scale)]}


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
            values += [node.values.get("control_after_generate", "fixed")] * has_control(name, options)
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
        "id": number, "type": "MarkdownNote", "title": "Note", "pos": [left, top],
        "size": [group.note_width, group.note_height],
        "flags": {}, "order": number, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [group.note],
        "color": "#332922", "bgcolor": "#593930",
    }  # fmt: skip
