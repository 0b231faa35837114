"""dev.py makes the environment and ComfyUI once, says what went wrong, and passes exit codes on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
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
    assert not names("requirements-comfy.txt", "==") & pinned


def test_a_run_without_a_command_shows_the_commands():
    shown = subprocess.run([sys.executable, ROOT / "dev.py"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2 and all(name in shown.stdout for name in ("demo", "test", "check", "comfy"))


def test_a_command_runs_in_the_environment_and_its_exit_code_is_passed_on(dev, monkeypatch):
    seen = {}

    def run_to_the_end(command, folder, environment):
        seen.update(command=command, folder=folder)
        return 3

    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    monkeypatch.setattr(dev, "is_host_ready", lambda version: True)
    monkeypatch.setattr(dev, "run_to_the_end", run_to_the_end)
    assert dev.main(["test", "-k", "media"]) == 3
    assert seen["command"] == [str(dev.environment_python()), "-m", "pytest", "-k", "media"] and seen["folder"] == ROOT


def test_a_check_runs_every_tool_and_one_that_complains_is_enough(dev, monkeypatch):
    tools: list[str] = []

    def run_to_the_end(command, folder, environment):
        tools.append(" ".join(command[2:4]))
        return int("format" in command)

    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    monkeypatch.setattr(dev, "run_to_the_end", run_to_the_end)
    assert dev.main(["check"]) == 1 and tools == ["ruff check", "ruff format", "pyrefly check"]


def test_only_the_tests_need_every_comfyui(dev, monkeypatch):
    installed: list[str] = []
    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    monkeypatch.setattr(dev, "is_host_ready", lambda version: version == "0.30.0")
    monkeypatch.setattr(dev, "install_host", installed.append)
    monkeypatch.setattr(dev, "run_to_the_end", lambda *_: 0)
    assert dev.main(["demo"]) == 0 and installed == []
    assert dev.main(["test"]) == 0 and installed == ["0.27.0"]


def test_the_callers_paths_are_read_from_the_callers_folder(dev, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dev._absolute(["--video", "a.mp4", "--batch", "b"]) == ["--video", str(tmp_path / "a.mp4"), "--batch", "b"]


def test_the_root_package_imports_without_comfyui():
    code = f"import runpy; runpy.run_path({str(ROOT / '__init__.py')!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- ComfyUI --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sdist(dev, monkeypatch, tmp_path):
    """A package with a ComfyUI of one file in it, known to dev.py as version 1.2.3."""
    path = tmp_path / "host-9.0.tar.gz"
    files = {
        "host-9.0/setup.py": "raise SystemExit",
        "host-9.0/vendor/ComfyUI/main.py": "print('ComfyUI')",
        "host-9.0/vendor/ComfyUI/requirements.txt": "comfyui-frontend-package==5.6\nnumpy\n",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setattr(dev, "HOSTS", {"1.2.3": ("host==9.0", hashlib.sha256(path.read_bytes()).hexdigest())})
    return path


def fake_pip(sdist: Path, calls: list, imports: list[int], fails: str = ""):
    """Downloads the package, makes the folder of the others; ``imports``: exit codes of trying torchvision, first to last."""

    def run(command, **_):
        calls.append(command[3:] if "pip" in command else command)
        if "-c" in command:
            return SimpleNamespace(returncode=imports.pop(0))
        if "--dest" in command:
            (Path(command[command.index("--dest") + 1]) / sdist.name).write_bytes(sdist.read_bytes())
        if "--target" in command:
            packages = Path(command[command.index("--target") + 1])
            (packages / "torchvision").mkdir(parents=True)
            (packages / "torchvision" / "extension.py").write_text("def _has_ops(): ...\n")
            (packages / "torchaudio" / "lib").mkdir(parents=True)
            (packages / "torchaudio" / "lib" / "_torchaudio.abi3.so").touch()
        return SimpleNamespace(returncode=int(bool(fails) and fails in command))

    return run


def test_comfyui_is_installed_once_and_its_front_end_apart(dev, sdist, tmp_path):
    calls: list = []
    assert not dev.is_host_ready("1.2.3", tmp_path)
    dev.install_host("1.2.3", tmp_path, fake_pip(sdist, calls, [0]))
    assert dev.is_host_ready("1.2.3", tmp_path)
    assert sorted(file.name for file in dev.host_source("1.2.3", tmp_path).iterdir()) == ["main.py", "requirements.txt"]
    [shared, download, aside] = [call for call in calls if call[0] in ("install", "download")]
    assert download[-1] == "host==9.0" and "--no-binary" in download
    assert not [pin for pin in shared if pin.startswith(("torchvision", "torchaudio"))] and "SQLAlchemy==2.1.9" in shared
    assert aside[aside.index("--target") + 2] == "comfyui-frontend-package==5.6" and len(aside) == 8
    assert "--no-deps" in shared and "--no-deps" in aside


@pytest.mark.parametrize("fails", ["download", "--target", "SQLAlchemy==2.1.9"])
def test_a_comfyui_that_could_not_be_installed_is_tried_again(fails, dev, sdist, tmp_path):
    dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [0]))
    with pytest.raises(SystemExit, match="could not be installed"):
        dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [0], fails))
    assert not dev.is_host_ready("1.2.3", tmp_path)


def test_another_file_than_the_tested_one_is_not_unpacked(dev, sdist, monkeypatch, tmp_path):
    monkeypatch.setattr(dev, "HOSTS", {"1.2.3": ("host==9.0", "0" * 64)})
    with pytest.raises(SystemExit, match="nothing was unpacked"):
        dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [0]))
    assert not dev.host_source("1.2.3", tmp_path).exists() and not list(tmp_path.glob("tmp*"))


def test_a_torchvision_that_fits_is_left_alone_and_one_that_does_not_is_cured(dev, sdist, tmp_path):
    extension = dev.host_packages("1.2.3", tmp_path) / "torchvision" / "extension.py"
    library = dev.host_packages("1.2.3", tmp_path) / "torchaudio" / "lib" / "_torchaudio.abi3.so"
    dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [0]))
    assert "nms" not in extension.read_text() and library.exists()
    dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [1, 0]))
    assert "nms" in extension.read_text() and not library.exists()
    with pytest.raises(SystemExit, match="cannot be imported"):
        dev.install_host("1.2.3", tmp_path, fake_pip(sdist, [], [1, 1]))


@pytest.mark.parametrize("has_accelerator", [False, True])
def test_comfyui_starts_with_this_pack_and_without_a_gpu_on_the_cpu(has_accelerator, dev, monkeypatch, tmp_path):
    seen = {}

    def run_to_the_end(command, folder, environment):
        seen.update(command=command, folder=folder, path=environment["PYTHONPATH"])
        return 130

    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    monkeypatch.setattr(dev, "is_host_ready", lambda version: True)
    monkeypatch.setattr(dev.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=int(not has_accelerator)))
    monkeypatch.setattr(dev, "run_to_the_end", run_to_the_end)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second finds the link
        assert dev.main(["comfy", "--version", "0.27.0", "--base-directory", "base", "--port", "8190"]) == 130
    assert (tmp_path / "base" / "custom_nodes" / "flashlips" / "dev.py").samefile(ROOT / "dev.py")
    assert seen["folder"] == dev.host_source("0.27.0") and seen["path"].startswith(str(dev.host_packages("0.27.0")))
    assert seen["command"][1] == "main.py" and seen["command"][-2:] == ["--port", "8190"]
    assert ("--cpu" in seen["command"]) is not has_accelerator


def test_an_unknown_comfyui_version_is_refused_by_name(dev, monkeypatch, capsys):
    monkeypatch.setattr(dev, "is_up_to_date", lambda: True)
    with pytest.raises(SystemExit):
        dev.main(["comfy", "--version", "0.1"])
    assert "0.30.0" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("stop", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_dev_py_leaves_no_child(stop, exit_code, tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import dev
        dev.STOP_S = 0.1
        sys.exit(dev.run_to_the_end([sys.executable, "-c", {child!r}], {str(tmp_path)!r}, {{}}))
    """
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        started = int(process.stdout.readline())
        time.sleep(0.2)
        process.send_signal(stop)
        assert process.wait(20) == exit_code
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


def test_a_child_gets_time_to_clean_up_after_ctrl_c(dev, tmp_path):
    code = """if True:
        import os, signal, time
        os.kill(os.getppid(), signal.SIGINT)  # the terminal's Ctrl-C reaches both
        time.sleep(0.5)
        open("cleaned", "w").close()
    """
    assert dev.run_to_the_end([sys.executable, "-c", code], tmp_path, {}) == 130
    assert (tmp_path / "cleaned").exists()
