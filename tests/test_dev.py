"""dev.py makes the environment once, says what went wrong, and passes exit codes on."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dev():
    spec = importlib.util.spec_from_file_location("flashlips_dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(dev, tmp_path):
    """A folder with pins and an empty virtual environment."""
    pins = tmp_path / "pins.txt"
    pins.write_text("nothing==1\n")
    python = dev.environment_python(tmp_path / "env")
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path / "env", pins


def fake_run(exit_code: int, calls: list):
    def run(command, **_):
        calls.append(command)
        return SimpleNamespace(returncode=exit_code if "install" in command else 0)

    return run


def test_dev_py_needs_nothing_but_the_standard_library():
    tree = ast.parse((ROOT / "dev.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {(n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).partition(".")[0] for n in imports}
    assert names <= set(sys.stdlib_module_names)


def test_a_finished_install_is_not_repeated_until_the_pins_change(dev, place):
    environment, pins = place
    assert not dev.is_up_to_date(environment, pins)
    dev.install(environment, pins, run=fake_run(0, []))
    assert dev.is_up_to_date(environment, pins)
    pins.write_text("nothing==2\n")
    assert not dev.is_up_to_date(environment, pins)


def test_a_failed_install_is_tried_again_next_time(dev, place):
    environment, pins = place
    dev.install(environment, pins, run=fake_run(0, []))
    with pytest.raises(SystemExit, match="could not be installed"):
        dev.install(environment, pins, run=fake_run(1, []))
    assert not dev.is_up_to_date(environment, pins)


def test_the_opencv_that_needs_no_display_is_installed_last(dev, place):
    environment, pins = place
    pins.write_text("opencv-contrib-python==4.13.0.92\nopencv-python-headless==4.13.0.92\n")
    calls = []
    dev.install(environment, pins, run=fake_run(0, calls))
    assert calls[-1][-1] == "opencv-python-headless==4.13.0.92" and "--force-reinstall" in calls[-1]


def test_only_the_pinned_file_is_installed(dev, place):
    environment, pins = place
    calls: list = []
    dev.install(environment, pins, run=fake_run(0, calls))
    assert calls[-1][1:4] == ["-m", "pip", "install"] and calls[-1][-2:] == ["-r", str(pins)]


def test_every_pin_is_an_exact_version_and_covers_what_the_library_asks_for():
    def names(file: str, separator: str) -> set[str]:
        lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        assert all(separator in line for line in lines if line)
        return {line.split(separator)[0].lower().replace("-", "_") for line in lines if line}

    pinned = names("requirements-dev.txt", "==")
    assert names("requirements.txt", ">=") | names("requirements-eval.txt", ">=") <= pinned


def test_a_run_without_a_command_shows_the_two_commands():
    shown = subprocess.run([sys.executable, ROOT / "dev.py"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2 and "demo" in shown.stdout and "test" in shown.stdout


def test_a_command_runs_in_the_environment_and_its_exit_code_is_passed_on(dev, monkeypatch):
    seen = {}

    def run(command, cwd, check):
        seen.update(command=command, cwd=cwd)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    monkeypatch.setattr(dev.subprocess, "run", run)
    assert dev.main(["test", "-k", "media"]) == 3
    assert seen["command"] == [str(dev.environment_python()), "-m", "pytest", "-k", "media"] and seen["cwd"] == ROOT


def test_the_callers_paths_are_read_from_the_callers_folder(dev, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dev._absolute(["--video", "a.mp4", "--batch", "b"]) == ["--video", str(tmp_path / "a.mp4"), "--batch", "b"]


def test_the_root_package_imports_without_comfyui():
    code = f"import runpy; runpy.run_path({str(ROOT / '__init__.py')!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
