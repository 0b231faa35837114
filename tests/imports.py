"""Which module of the core imports which: read from the source, imports inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "flashlips_core"
NO_STAGES = {"loop", "batches", "finetune", "cost"}  # of train; its other files and folders are stages, all of one level


@cache
def modules() -> list[str]:
    """All modules and packages of the core, by their dotted names below it."""
    paths = (path.relative_to(CORE).with_suffix("") for path in sorted(CORE.rglob("*.py")))
    names = [".".join(path.parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if name not in ("__init__", "__main__")]


def file_of(module: str) -> Path:
    path = CORE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the core that one imports, anywhere in its file."""
    known, found = set(modules()), set()
    package = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file_of(module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            home = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = {f"{home}.{alias.name}".strip(".") for alias in node.names} & known
            found |= names or ({home} & known)
    return frozenset(found - {module})


def folder_of(module: str) -> str:
    """Where a module stands: a file of the root, a folder, or a folder of ``train`` that holds no stages."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "train" and parts[1:2] and parts[1] in NO_STAGES else parts[0]


@cache
def folders() -> dict[str, frozenset[str]]:
    """For each folder, and each file of the root, those that it imports."""
    found: dict[str, set[str]] = {folder_of(module): set() for module in modules()}
    for module in modules():
        found[folder_of(module)] |= {folder_of(name) for name in imports(module)} - {folder_of(module)}
    return {name: frozenset(needs) for name, needs in found.items()}


def ring(names: Iterable[str], needs: Callable[[str], Iterable[str]]) -> list[str]:
    """Those that import each other in a circle, or stand above one; empty where there is none."""
    graph = {name: set(needs(name)) for name in names}
    while graph:
        free = [name for name, wants in graph.items() if not wants & graph.keys()]
        if not free:
            return sorted(graph)
        for name in free:
            del graph[name]
    return []


def foreign_imports(file: Path) -> Iterator[str]:
    """The modules outside its own package that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
