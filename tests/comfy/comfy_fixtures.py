"""Fixtures around comfy_host.py and the system's Chromium; tests/conftest.py imports them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dev

VERSIONS = tuple(dev.HOSTS)
TOYS = Path(__file__).with_name("toys")
# one process, nothing that looks for updates or a GPU
BROWSER_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def start_engine(tmp_path_factory) -> Iterator[Callable]:
    """``start_engine(version)``: that version's engine without packs, started at first use."""
    from comfy_host import Engine

    yield from _keep(lambda version: Engine(version, tmp_path_factory.mktemp(f"engine-{version}")))


@pytest.fixture(scope="session")
def start_engine_with_pack(start_engine) -> Callable:
    """``start_engine_with_pack(version)``: the same engine with this repository's nodes in it."""

    def start(version: str):
        engine = start_engine(version)
        pack = dev.link_pack(engine.base)  # loaded from where ComfyUI would find it
        if pack not in engine.packs:
            engine.load(pack)
        return engine

    return start


@pytest.fixture(scope="session")
def start_server(tmp_path_factory) -> Iterator[Callable]:
    """``start_server(version)``: a server with this repository's nodes and the toy nodes, started at first use."""
    from comfy_host import Server

    def start(version: str) -> Server:
        base = tmp_path_factory.mktemp(f"server-{version}")
        dev.link_pack(base)
        dev.link_pack(base, TOYS, "toys")
        return Server(version, base)

    yield from _keep(start)


@pytest.fixture(params=VERSIONS)
def bare_engine(request, start_engine):
    """The engine of each ComfyUI version; a pack that a test loads stays for the later ones."""
    return _fresh(start_engine(request.param))


@pytest.fixture(params=VERSIONS)
def engine(request, start_engine_with_pack):
    """The engine of each ComfyUI version with this repository's nodes."""
    return _fresh(start_engine_with_pack(request.param))


@pytest.fixture(params=VERSIONS)
def server(request, start_server):
    """The server of each ComfyUI version with this repository's nodes."""
    return start_server(request.param)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The system's Chromium, driven by Playwright, whose event loop runs in this thread: a module's tests must not start one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        _missing("There is no Chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A new page. ``page.problems`` lists uncaught errors, and what extensions write to the console as errors; ``page.said`` all.

    ComfyUI's own front end reports some missing files there, among them the templates that dev.py does not install.
    """
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("console", lambda message: page.problems.append(message.text) if _is_extension_error(message) else None)
    yield page
    context.close()


def _keep(start: Callable) -> Iterator[Callable]:
    """Start a process per version at first use, again if it died, and stop all at the end."""
    started: dict = {}
    failed: dict[str, Exception] = {}

    def get(version: str):
        if not dev.is_host_ready(version):
            _missing(f"ComfyUI {version} is not installed; 'python dev.py test' does it")
        if version in failed:  # the next test would only wait for the same
            raise failed[version]
        if version not in started or started[version].process.poll() is not None:
            try:
                started[version] = start(version)
            except RuntimeError as error:
                failed[version] = error
                raise
        return started[version]

    yield get
    for process in started.values():
        process.close()


def _is_extension_error(message) -> bool:
    return message.type == "error" and "/extensions/" in message.location["url"]


def _fresh(engine):
    engine.reset()
    return engine


def _missing(what: str) -> None:
    """Skip, but fail where the tests are the reason for the run: a skipped test there would look like a passed one."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
