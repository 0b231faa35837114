"""ComfyUI's saved graphs (litegraph JSON, version 0.4) as the prompts that its API takes.

ComfyUI's own conversion lives in its front end; this one serves tests and the committed API twins, for the graphs that we ship:
no subgraphs, no dynamic inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

NodeInfo = Callable[[str], dict]  # node type -> what /object_info/<type> says
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4  # litegraph's node modes
CONTROLS = ("fixed", "increment", "decrement", "randomize")  # what follows a seed
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def to_prompt(graph: dict, node_info: NodeInfo) -> dict:
    """A saved graph -> the prompt that pressing Run would send, without nodes that no output needs."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in sorted(graph["nodes"], key=lambda node: node.get("order", 0)):
        if node["type"] in NOTES or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        inputs = widget_values(node, node_info(node["type"]))
        for slot in node.get("inputs", []):
            source = _source(slot.get("link"), slot["type"], nodes, links)
            if source is not None:
                inputs[slot["name"]] = [str(source[0]), source[1]]
        title = node.get("title") or node_info(node["type"])["display_name"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return needed(prompt, node_info)


def needed(prompt: dict, node_info: NodeInfo) -> dict:
    """The part of a prompt that its output nodes depend on; ComfyUI executes no other."""
    kept = upstream(prompt, *(number for number, node in prompt.items() if node_info(node["class_type"]).get("output_node")))
    return {number: node for number, node in prompt.items() if number in kept}


def upstream(prompt: dict, *keys: str) -> dict:
    """The part of a prompt that these nodes depend on, themselves included."""
    found, waiting = {}, list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found[key] = prompt[key]
            waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return found


def widget_values(node: dict, info: dict) -> dict:
    """A node's widgets by name. Values that no widget takes are an error, except what upload buttons leave behind."""
    values, found = list(node.get("widgets_values") or []), {}
    has_upload = False
    for name, kind, options in input_specs(info):
        if not is_widget(kind, options):
            continue
        is_upload = any(options.get(f"{media}_upload") for media in ("image", "video", "audio"))
        if is_upload and not values:
            continue  # it starts with a file of the user's
        if not values:
            raise ValueError(f"Node {node['id']} ({node['type']}) has no value for '{name}'; build the graph again.")
        found[name] = values.pop(0)
        has_upload |= is_upload
        if has_control(name, options) and values.pop(0) not in CONTROLS:
            raise ValueError(f"Node {node['id']} ({node['type']}) lacks what happens to '{name}' after a run; build it again.")
    if values and not has_upload:
        raise ValueError(f"Node {node['id']} ({node['type']}) has values that no widget takes: {values}; build the graph again.")
    return found


def input_specs(info: dict) -> Iterator[tuple[str, object, dict]]:
    """Inputs in the order of the front end: (name, type or list of choices, options)."""
    for group in ("required", "optional"):
        specs = info["input"].get(group, {})
        for name in info["input_order"].get(group, specs):
            kind, *options = specs[name]
            yield name, kind, options[0] if options else {}


def is_widget(kind: object, options: dict) -> bool:
    """Whether the front end shows a field for such an input."""
    if isinstance(kind, str) and "DYNAMIC" in kind:
        raise ValueError(f"Inputs of type {kind} are not converted; use a node without them in a shipped graph.")
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput", False)


def has_control(name: str, options: dict) -> bool:
    """Whether a second widget follows, which says what becomes of the value after a run."""
    return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def object_info(names: list[str]) -> dict[str, dict]:
    """What the server answers to ``/object_info`` for these nodes; to be called inside ComfyUI's process."""
    import nodes

    return {name: _info(name, nodes.NODE_CLASS_MAPPINGS[name], nodes.NODE_DISPLAY_NAME_MAPPINGS) for name in names}


def pack_nodes(prefix: str) -> list[str]:
    """The ids of the loaded nodes that start so; to be called inside ComfyUI's process."""
    import nodes

    return sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith(prefix))


def _info(name: str, node: type, display_names: dict[str, str]) -> dict:
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {group: list(specs) for group, specs in inputs.items()},
        "output": list(node.RETURN_TYPES),
        "output_name": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
        "name": name,
        "display_name": display_names.get(name, name),
        "output_node": getattr(node, "OUTPUT_NODE", False),
    }


def _source(link_id: int | None, kind: str, nodes: dict, links: dict) -> tuple[int, int] | None:
    """The executed node and slot behind a link: bypassed nodes pass on their first input of that type, muted ones nothing."""
    if link_id is None:
        return None
    _, origin_id, slot, *_ = links[link_id]
    origin = nodes[origin_id]
    mode = origin.get("mode", 0)
    if mode == MUTED:
        return None
    if mode != BYPASSED:
        return origin_id, slot
    through = next((entry for entry in origin.get("inputs", []) if entry["type"] == kind), None)
    return None if through is None else _source(through.get("link"), kind, nodes, links)
