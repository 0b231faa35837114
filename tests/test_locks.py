"""One process at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flashlips_core.system.locks import alone_with
from flashlips_core.types import FlashLipsError

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from flashlips_core.system.locks import alone_with
with alone_with("set", sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    lock = tmp_path / "new" / ".lock"
    first = subprocess.Popen([sys.executable, "-c", HOLD, lock], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline().strip() == b"held"
        with pytest.raises(FlashLipsError, match="Another process is writing set right now"), alone_with("set", lock):
            pass
    finally:
        first.kill()  # as a crash would end it
        first.wait()
    with alone_with("set", lock):
        assert lock.exists()
    assert not lock.exists()


def test_it_is_free_again_after_an_error(tmp_path):
    lock = tmp_path / ".lock"
    with pytest.raises(ValueError, match="broken"), alone_with("set", lock):
        raise ValueError("broken")
    with alone_with("set", lock):
        pass


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashLipsError, match="Cannot write into .*file"), alone_with("set", tmp_path / "file" / ".lock"):
        pass
