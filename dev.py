#!/usr/bin/env python3
"""Make the environment, then run something in it. Needs nothing but Python.

    python dev.py demo [--video X --audio Y --out DIR]    dub the bundled clip, or your own
    python dev.py test [pytest arguments]                 run the tests

The first run makes .venv next to this file and installs the versions in requirements-dev.txt; later runs start at once.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PINS = ROOT / "requirements-dev.txt"
STAMP = "flashlips-installed.txt"
# Both OpenCV wheels fill one folder; the one installed last wins, and the other needs libGL, which a bare Linux lacks.
LAST = "opencv-python-headless=="
OLDEST_PYTHON = (3, 11)  # numpy 2.4 and scipy 1.17 have no wheels below
COMMANDS = {
    "demo": ["-m", "flashlips_core.demo_run"],
    "test": ["-m", "pytest"],
}


def environment_python(environment: Path = ENVIRONMENT) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def fingerprint(pins: Path = PINS) -> str:
    """Changes when the pins or the Python that the environment is made with change."""
    version = "{}.{}".format(*sys.version_info)
    return hashlib.sha256(pins.read_bytes() + version.encode()).hexdigest()


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
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    commands = [[*pip, "-r", str(pins)]]
    commands += [[*pip, "--force-reinstall", "--no-deps", pin] for pin in pins.read_text().splitlines() if pin.startswith(LAST)]
    for command in commands:
        if run(command, check=False).returncode != 0:
            sys.exit("The packages could not be installed; pip's message stands above. Mend that, then run this again.")
    stamp.write_text(fingerprint(pins) + "\n")


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
    command = [str(environment_python()), *COMMANDS[arguments[0]], *_absolute(arguments[1:])]
    try:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:  # the child got it too and has cleaned up
        return 130


def _works(python: Path, run) -> bool:
    """Whether there is an interpreter of this version with pip, e.g. not one left behind by a removed Python."""
    check = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        return run([str(python), "-c", check], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _absolute(arguments: list) -> list:
    """Paths after --video, --audio and --out belong to the caller's folder, while the command runs in this one."""
    named = {"--video", "--audio", "--out"}
    pairs = zip([None, *arguments], arguments)  # noqa: B905 - strict= is newer than the oldest Python that should get a message
    return [str(Path(value).expanduser().resolve()) if before in named else value for before, value in pairs]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
