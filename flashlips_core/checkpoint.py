"""Checkpoints: safetensors weights, with role, config and training notes as JSON in the file's metadata. Never pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .system.files import appearing, writing
from .types import FlashLipsError

FORMAT_VERSION = 1
BUNDLED_DIR = Path(__file__).parent / "weights"
# Names of what comes with the software: some roles have a faster network too, the editor also one with the other backbone
BUNDLED = ("bundled", "bundled-fast", "bundled-transformer")

HEADER = {"version": int, "role": str, "config": dict, "notes": dict}  # what a header must have
LARGEST_SIZE = 1 << 20  # of any number in a network's config

Builder = Callable[[dict[str, Any]], nn.Module]


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    role: str  # "editor", "lip-encoder", "pose-model", "audio-encoder", "codec"
    config: dict[str, Any]  # {"class": network name, **the network's config fields}
    notes: dict[str, Any]  # version, licence, training data, steps, seed
    path: str


def config_to_dict(network: nn.Module) -> dict[str, Any]:
    """The network's class name and the fields of its frozen ``config`` dataclass, ready for JSON."""
    return {"class": type(network).__name__, **dataclasses.asdict(network.config)}


def config_from_dict(config_class: type, fields: dict[str, Any]) -> Any:
    """Rebuild a config dataclass; JSON lists become tuples; unknown fields are an error."""
    known = {f.name for f in dataclasses.fields(config_class)}
    unknown = sorted(set(fields) - known - {"class"})
    if unknown:
        raise FlashLipsError(
            f"{config_class.__name__} does not know {', '.join(unknown)}; the file comes from a newer version: update FlashLips."
        )
    hints = typing.get_type_hints(config_class)
    values = {}
    for name, value in fields.items():
        if name != "class":
            values[name] = tuple(value) if typing.get_origin(hints[name]) is tuple else value
    return config_class(**values)


def save(network: nn.Module, path: str | Path, role: str, notes: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write weights and config to ``path``; the file appears whole or not at all."""
    tensors = {name: _stored(value, dtype) for name, value in network.state_dict().items()}
    header = {"format": "flashlips", "version": FORMAT_VERSION, "role": role, "config": config_to_dict(network), "notes": notes}
    write_tensors(path, tensors, header)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write named tensors and a JSON header; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as part, writing(path.name):
        try:
            save_file(tensors, part, metadata={"flashlips": json.dumps(header)})
        except SafetensorError as error:  # it tells what the disk says in words only
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from error


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote. Raises FlashLipsError for anything else, pickles and NaN included."""
    header, path = read_header(path), Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    for name, value in tensors.items():
        if value.is_floating_point() and value.element_size() > 1 and not torch.isfinite(value).all():
            raise FlashLipsError(f"{path.name} holds values that are not numbers (NaN or infinite, in {name}); make it again.")
    return tensors, header


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a FlashLips file: version, role, config and notes, of the kinds that they must be."""
    path = Path(path)
    if not path.is_file():
        raise FlashLipsError(f"No checkpoint at {path}; check the path, or leave it out to use the bundled model.")
    if path.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl"}:
        raise FlashLipsError(f"{path.name} may be a pickle, which can run code when opened; convert it to .safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if "flashlips" not in metadata:
        raise FlashLipsError(
            f"{path.name} holds no FlashLips model (its metadata lacks 'flashlips'); choose a file made by this software."
        )
    try:
        header = json.loads(metadata["flashlips"])
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _malformed(path, "its header is no table")
    header = {"notes": {}} | header
    for name, kind in HEADER.items():
        if not isinstance(header.get(name), kind) or isinstance(header[name], bool):
            raise _malformed(path, f"its header has no '{name}', or one of another kind")
    if header["version"] > FORMAT_VERSION:
        raise FlashLipsError(
            f"{path.name} has format version {header['version']}, this software reads up to {FORMAT_VERSION}: update FlashLips."
        )
    if not isinstance(header["notes"].get("crop_px", 1), int):
        raise _malformed(path, "its note 'crop_px' is no whole number")
    return header


def _unreadable(path: Path, error: Exception) -> FlashLipsError:
    return FlashLipsError(f"{path.name} is not a readable safetensors file ({error}); download or train it again.")


def _malformed(path: Path, what: str) -> FlashLipsError:
    return FlashLipsError(f"{path.name} is damaged or was made by other software ({what}); download or train it again.")


def info(path: str | Path) -> CheckpointInfo:
    """Role, config and notes of a checkpoint, without loading its weights."""
    header = read_header(path)
    return CheckpointInfo(header["role"], header["config"], header["notes"], str(path))


def check(path: str | Path, role: str, builders: dict[str, Builder]) -> nn.Module:
    """The network of a checkpoint without its weights, on the meta device, once names and shapes of all of them fit.

    ``builders`` maps a network's class name to a function from its config fields to the module.
    """
    header, path = read_header(path), Path(path)
    if header["role"] != role:
        raise FlashLipsError(
            f"{path.name} is a checkpoint for '{header['role']}', but '{role}' is needed here; choose another file."
        )
    name = header["config"].get("class")
    if not isinstance(name, str) or name not in builders:
        raise FlashLipsError(f"{path.name} needs the network '{name}', which this version does not know: update FlashLips.")
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    network = _built(builders[name], header["config"], len(shapes), path)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    if missing or unexpected:
        raise FlashLipsError(
            f"{path.name} does not fit {name}: missing {missing[:3]}, unknown {unexpected[:3]}; "
            "it is damaged or from another version."
        )
    for key, shape in expected.items():
        if shapes[key] != shape:
            raise FlashLipsError(f"{path.name} does not fit {name}: {key} has the shape {shapes[key]}, {shape} is needed.")
    return network


def _built(builder: Builder, config: dict[str, Any], num_tensors: int, path: Path) -> nn.Module:
    """The network on the meta device; a config that cannot be built is one sentence."""
    sizes = [size for value in config.values() for size in (value if isinstance(value, list) else [value])]
    counts = [value for key, value in config.items() if "blocks" in key or key == "depth"]
    counts = [count for value in counts for count in (value if isinstance(value, list) else [value])]
    is_absurd = any(isinstance(size, int) and abs(size) > LARGEST_SIZE for size in sizes)
    if is_absurd or any(isinstance(count, int) and count > num_tensors for count in counts):
        raise _malformed(path, "its config states a network larger than its file")
    try:
        with torch.device("meta"):
            return builder(config)
    except FlashLipsError:
        raise
    except Exception as error:  # whatever a network's code says against numbers that are none of its own
        raise _malformed(path, f"no network can be built from its config: {' '.join(str(error).split())[:120]}") from error


def load(
    path: str | Path,
    role: str,
    builders: dict[str, Builder],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build the network that a checkpoint names and fill it, strictly; ``builders`` as for :func:`check`."""
    network = check(path, role, builders)
    tensors, header = read_tensors(path)
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        name, reason = header["config"]["class"], str(error).splitlines()[-1].strip()
        raise FlashLipsError(f"{Path(path).name} does not fit {name}: {reason}") from error
    return network.requires_grad_(False).eval().to(device=device, dtype=dtype)


def bundled(role: str, name: str = "bundled") -> Path:
    """The path of the bundled checkpoint for a role; ``name`` is one of ``BUNDLED``."""
    path = _bundled_path(role, name)
    if path.is_file():
        return path
    if bundled_names(role):
        raise FlashLipsError(f"No {role} is called '{name}'; choose one of {', '.join(bundled_names(role))}.")
    raise FlashLipsError(f"The bundled {role} is missing ({path.name}); reinstall the pack, or name a checkpoint of your own.")


def bundled_names(role: str) -> list[str]:
    """Which of ``BUNDLED`` there are for a role, the default one first."""
    return [name for name in BUNDLED if _bundled_path(role, name).is_file()]


def _bundled_path(role: str, name: str) -> Path:
    return BUNDLED_DIR / f"{role}{name.removeprefix('bundled')}.safetensors"


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous()
