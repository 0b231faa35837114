"""Write workflows/*.json and workflows/api/*.json from workflow_sketches.py. By hand, after nodes changed:

    python tests/comfy/build_workflows.py

Needs the environment that ``python dev.py test`` makes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from comfy_host import Engine  # noqa: E402
from graphs import NodeInfo, object_info, to_prompt  # noqa: E402
from sketch import Sketch  # noqa: E402
from workflow_sketches import DESCRIPTIONS  # noqa: E402

import dev  # noqa: E402

WORKFLOWS = ROOT / "workflows"
VERSION = "0.27.0"  # the oldest ComfyUI; core nodes used here have the same inputs in later ones
CORE = (
    "AudioConcat", "CreateVideo", "EmptyAudio", "FeatherMask", "GetVideoComponents", "ImageFromBatch", "ImageStitch",
    "MaskComposite", "PreviewImage", "SolidMask", "TrimAudioDuration", "VAEDecode", "VAEEncode",
)  # fmt: skip


def build(node_info: NodeInfo) -> None:
    """Write every graph and its API twin."""
    for name, describe in DESCRIPTIONS.items():
        sketch = Sketch(name, node_info)
        describe(sketch)
        graph = sketch.graph()
        write(WORKFLOWS / f"{name}.json", graph)
        write(WORKFLOWS / "api" / f"{name}.json", to_prompt(graph, node_info))


def write(path: Path, content: dict) -> None:
    """JSON that a diff can be read of."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(VERSION, Path(folder))
        try:
            names = [*engine.load(dev.link_pack(engine.base)), *CORE]
            infos = engine.call(f"{Path(__file__).with_name('graphs.py')}:{object_info.__name__}", names=names)
        finally:
            engine.close()
    build(infos.__getitem__)


if __name__ == "__main__":
    main()
