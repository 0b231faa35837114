"""Training sets without any video: who belongs into which split, what a shard holds, and how it is streamed."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.utils.data import DataLoader

from flashlips_core.dataset.read import ShardReader
from flashlips_core.dataset.samples import to_jpeg
from flashlips_core.dataset.shards import plan_shards, sample_bytes
from flashlips_core.dataset.sources import find_sources, split_of
from flashlips_core.types import FlashLipsError

# ---- identities ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path) -> Path:
    """Files of 40 people; nobody opens them."""
    for person in range(40):
        for take in range(3):
            path = tmp_path / "many" / f"p{person:02d}" / f"{take}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return tmp_path / "many"


def test_nobody_is_in_two_splits_and_another_person_moves_nobody(many):
    sources = find_sources([many], val=0.2, test=0.2)
    home = {s.identity: s.split for s in sources}
    assert len(home) == 40 and all(home[s.identity] == s.split for s in sources)
    assert all(list(home.values()).count(split) > 2 for split in ("train", "val", "test"))
    fewer = find_sources([many / f"p{i:02d}" for i in range(0, 40, 2)], val=0.2, test=0.2)
    assert all(home[s.identity] == s.split for s in fewer)
    assert {s.identity: s.split for s in find_sources([many], val=0.2, test=0.2, seed=1)} != home


def test_globs_files_and_folders_name_each_video_once_and_ids_are_free_of_machine_paths(many):
    sources = find_sources([many / "p00", str(many / "p00" / "*.mp4"), many / "p00" / "1.mp4"])
    assert [s.id for s in sources] == ["p00/0.mp4", "p00/1.mp4", "p00/2.mp4"]
    assert len({s.key for s in sources}) == 3 and not any("." in s.key for s in sources)
    linked = many.parent / "linked" / "ann"
    linked.mkdir(parents=True)
    for name in ("1.mp4", "again.mp4"):
        (linked / name).symlink_to(many / "p00" / "1.mp4")
    assert [(s.id, s.identity) for s in find_sources([linked])] == [("ann/1.mp4", "ann")]  # sorted by links, still one video
    by_file = find_sources([many], identity="file")
    assert len({s.identity for s in by_file}) == 120


def test_a_table_names_identities_and_splits(many):
    table = many.parent / "who.csv"
    lines = [f"many/p{p:02d}/{t}.mp4,{'twin' if p < 2 else p},{'test' if p < 2 else ''}" for p in range(40) for t in range(3)]
    table.write_text("path,identity,split\n" + "\n".join(lines))
    sources = find_sources([many], identity=str(table), val=0, test=0)
    assert {s.id.split("/")[1] for s in sources if s.split == "test"} == {"p00", "p01"}
    table.write_text("path,identity,split\n" + "\n".join(lines).replace("p00/0.mp4,twin,test", "p00/0.mp4,twin,train"))
    with pytest.raises(FlashLipsError, match="'twin' is in 'train' and 'test'"):
        find_sources([many], identity=str(table), val=0, test=0)
    table.write_text("path,identity\nmany/p00/0.mp4,a\n")
    with pytest.raises(FlashLipsError, match="names no identity for"):
        find_sources([many], identity=str(table))


def test_split_of_is_a_fixed_function():
    assert [split_of(f"s{i}", 0.2, 0.2, 0) for i in range(5)] == [split_of(f"s{i}", 0.2, 0.2, 0) for i in range(5)]
    assert split_of("anybody", 0.0, 0.0, 0) == "train" and split_of("anybody", 0.0, 1.0, 0) == "test"


# ---- streaming -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    """A set of 60 tiny samples in 6 shards."""
    folder = tmp_path_factory.mktemp("stream")
    jpeg, shards = to_jpeg(np.full((16, 16, 3), 90, np.uint8)), []
    made = {}
    for number in range(60):
        about = json.dumps({"frames": [0, 2], "identity": f"p{number % 7}"}).encode()
        labels = save({"poses": torch.full((2, 12), float(number))})
        files = {"json": about, "safetensors": labels, "0000.jpg": jpeg, "0002.jpg": jpeg}
        made[f"clip{number:02d}"] = sample_bytes(f"clip{number:02d}", files)
    plan = plan_shards([(key, "train", len(content)) for key, content in made.items()], 10 * len(made["clip00"]), 0)
    for shard in plan:
        (folder / shard.name).write_bytes(b"".join(made[key] for key in shard.keys) + bytes(1024))
        shards.append({"name": shard.name, "split": "train"})
    (folder / "index.json").write_text(json.dumps({"format": "flashlips-dataset", "version": 1, "shards": shards}))
    return folder


def test_shards_are_of_about_the_wanted_size_and_their_order_depends_on_nothing_but_seed_and_keys():
    samples = [(f"k{i:03d}", "val" if i % 10 == 0 else "train", 100 + i % 50) for i in range(200)]
    plan = plan_shards(samples, 1000, 0)
    sizes = [sum(size for key, _, size in samples if key in shard.keys) for shard in plan if shard.split == "train"]
    assert all(850 < size < 1150 for size in sizes[:-1])
    assert sorted(chain(*(s.keys for s in plan))) == sorted(key for key, *_ in samples)
    assert plan == plan_shards(samples[::-1], 1000, 0) != plan_shards(samples, 1000, 1)
    assert [len(s.keys) for s in plan_shards([("big", "train", 5000), ("small", "train", 10)], 1000, 0)] == [1, 1]


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own(stream):
    reader = ShardReader(stream, seed=3)
    first = [s.key for s in reader]
    assert first == [s.key for s in reader] == [s.key for s in ShardReader(stream, seed=3)]
    reader.epoch = 1
    second = [s.key for s in reader]
    assert sorted(first) == sorted(second) == [f"clip{i:02d}" for i in range(60)] and first != second
    assert first != [s.key for s in ShardReader(stream, seed=4)]


@pytest.mark.parametrize("processes", [2, 4, 9])
def test_processes_share_the_samples_out_also_where_they_are_more_than_the_shards(processes, stream):
    parts = [[s.key for s in ShardReader(stream, process=i, processes=processes)] for i in range(processes)]
    assert sorted(chain(*parts)) == [f"clip{i:02d}" for i in range(60)] and all(parts)


def test_workers_of_a_data_loader_share_the_samples_out(stream):
    loader = DataLoader(ShardReader(stream), batch_size=None, num_workers=2)
    assert sorted(sample.key for sample in loader) == [f"clip{i:02d}" for i in range(60)]


def test_reading_holds_no_more_than_its_buffer_and_never_seeks(stream):
    read = []

    class Pipe:
        """Bytes as they come from a network: in order, once."""

        def __init__(self, path):
            self.file = open(path, "rb")  # noqa: SIM115 - closed in __exit__

        def read(self, size):
            content = self.file.read(size)
            read.append(len(content))
            return content

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    samples = iter(ShardReader(stream, shuffle=4, opener=Pipe))
    assert next(samples).crops().shape == (2, 3, 16, 16)
    size = sum((stream / f"train-{i:05d}.tar").stat().st_size for i in range(6))
    assert sum(read) < size / 2
    assert len(list(samples)) == 59


def test_damaged_missing_and_empty_sets_are_said_in_one_sentence(stream, tmp_path):
    with pytest.raises(FlashLipsError, match="No finished training set"):
        ShardReader(tmp_path)
    with pytest.raises(FlashLipsError, match="No samples for 'val'"):
        ShardReader(stream, "val")
    (tmp_path / "index.json").write_bytes((stream / "index.json").read_bytes())
    with pytest.raises(FlashLipsError, match="cannot be opened"):
        list(ShardReader(tmp_path))
    for shard in stream.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(FlashLipsError, match="is damaged"):
        list(ShardReader(tmp_path))
