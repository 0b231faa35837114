"""Settings of a stage: one frozen dataclass each. Its docstring is the stage's help, its fields with a text are its options."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ...types import FlashLipsError

S = TypeVar("S")


def setting(default: Any, help: str) -> Any:
    """A field that the command line offers as an option. Classes below may give it another default; the text stays."""
    return dataclasses.field(default=default, metadata={"help": help})


def options_of(settings: type) -> dict[str, str]:
    """Name -> help of every option that a class of settings has."""
    texts = {
        name: field.metadata["help"]
        for above in reversed(settings.__mro__)
        for name, field in above.__dict__.get("__dataclass_fields__", {}).items()
        if "help" in field.metadata
    }
    return {field.name: texts[field.name] for field in dataclasses.fields(settings) if field.name in texts}


def values_of(settings: Any) -> dict[str, Any]:
    """Name -> value of every option: what a checkpoint's notes and a command's help show."""
    return {name: getattr(settings, name) for name in options_of(type(settings))}


def changed(settings: S, changes: Mapping[str, Any], whose: str) -> S:
    """The settings with some options replaced.

    Args:
        whose: names them in errors, e.g. "The stage 'codec' of preset 'mini'".
    Raises:
        FlashLipsError: There is no such option, or the value is of another kind.
    """
    known, kinds = values_of(settings), typing.get_type_hints(type(settings))
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            said = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
            raise FlashLipsError(f"{whose} has no setting '{name}'; {said}")
        if not _fits(value, kinds[name]):
            raise FlashLipsError(f"The setting '{name}' is {value!r}; give it a value like {known[name]!r}.")
    return dataclasses.replace(settings, **changes)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; a float may be written as a whole number, a tuple as a list is not."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def of_full_size(settings: S) -> S:
    """What all runs of the paper's size have in common (ours): bf16, recomputed blocks, TensorBoard, a state every 15 minutes."""
    return dataclasses.replace(settings, precision="bf16", recompute=True, tensorboard=True, save_every_s=900.0)
