"""Fetch a public network into a folder, only when the user asks: with progress, checksums and no half file left behind."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from .types import FlashLipsError, Progress

HUB = "https://huggingface.co"
CHUNK = 1 << 20  # bytes per step of progress
TIMEOUT_S = 30

# Hugging Face ids with safetensors weights, and where these are: some lie in a branch that its converter proposed.
AUDIO_ENCODERS = {
    "facebook/wav2vec2-base-960h": "main",
    "facebook/hubert-large-ls960-ft": "refs/pr/1",
    "microsoft/wavlm-base-plus": "refs/pr/1",
    "openai/whisper-tiny": "main",
    "openai/whisper-base": "main",
    "openai/whisper-small": "main",
}
CODECS = {"madebyollin/taesdxl": "main", "stabilityai/sdxl-vae": "main"}
DETECTOR = "kornia/yunet"  # the face detector
AUDIO_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
DETECTOR_FILES = ("yunet_final.pth",)  # opened only if it is the very file that is known, see face/detect.py
CODEC_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def fetch(
    hub_id: str,
    folder: str | Path,
    files: Sequence[str],
    revision: str = "main",
    progress: Progress | None = None,
    endpoint: str = HUB,
) -> Path:
    """Download ``files`` of a repository into ``folder / <its name>``; those that are there already are kept.

    Args:
        progress: counts megabytes.
        endpoint: another hub than Hugging Face's.
    """
    target = Path(folder) / hub_id.rpartition("/")[2]
    found = _listing(hub_id, revision, endpoint)
    missing = [name for name in files if name not in found]
    if missing:
        raise FlashLipsError(
            f"'{hub_id}' ({revision}) has no {', '.join(missing)} on the hub; convert it to safetensors yourself."
        )
    wanted = [name for name in files if not (target / name).is_file()]
    total, done = sum(found[name]["size"] for name in wanted), 0
    target.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        report = None if progress is None else lambda size, done=done: progress((done + size) >> 20, max(total >> 20, 1))
        _download(hub_id, revision, found[name], target / name, report, endpoint)
        done += found[name]["size"]
    return target


def _listing(hub_id: str, revision: str, endpoint: str) -> dict[str, dict]:
    """The repository's files by name, with size and checksum."""
    url = f"{endpoint}/api/models/{hub_id}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
            return {file["rfilename"]: file for file in json.load(reply)["siblings"]}
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise _unreachable(hub_id, error) from error


def _download(hub_id: str, revision: str, file: dict, path: Path, report: Callable[[int], None] | None, endpoint: str) -> None:
    url = f"{endpoint}/{hub_id}/resolve/{quote(revision, safe='')}/{file['rfilename']}"
    part = path.with_name(path.name + ".part")
    large = file.get("lfs")  # large files are named by their SHA-256, small ones by git's own hash of them
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % file["size"])
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, part.open("wb") as out:
            size = 0
            while chunk := reply.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if report is not None:
                    report(size)
        if digest.hexdigest() != (large["sha256"] if large else file["blobId"]):
            raise FlashLipsError(f"{file['rfilename']} of '{hub_id}' arrived damaged (its checksum differs); download it again.")
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(hub_id, error) from error
    finally:
        part.unlink(missing_ok=True)


def _unreachable(hub_id: str, error: Exception) -> FlashLipsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FlashLipsError(f"'{hub_id}' could not be downloaded ({reason}); check the connection, or give a local folder.")
