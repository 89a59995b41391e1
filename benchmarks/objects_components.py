"""Connected components of a stored mask, block by block, next to cc3d in memory; and the same for any blocks.

    python benchmarks/objects_components.py time [--side 1024] [--workers 2]
    python benchmarks/objects_components.py partitions [--volumes 200] [--kills 50]

`time` prints, each in a process of its own, seconds by the clock and of the CPUs and how much memory
the peak is above that after importing: `labels` is cc3d on the mask that is in memory already, which
neither reads nor writes; `in memory` reads the mask, labels it and writes uint64 ids as the step does.
`partitions` compares ids of random volumes by random blocks, orders and engines with those of the whole,
and goes on after processes that were killed at random.
"""

import argparse
import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vcmodels.blockwise import Crew, Threads
from vcmodels.blockwise.engines import ShouldStop, Work
from vcmodels.geometry.boxes import Box, triple
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess import ComponentsStep
from vcmodels.targets import BinaryTarget
from vcmodels.volumes import Volume, create_array, open_volume, place_at
from vcmodels.workflows.ground import Ground, ground_of_array
from vcmodels.workflows.postprocess import postprocess

CHUNK = (128, 128, 128)
PERIOD = 256
STEP = ComponentsStep.model_validate({"name": "components", "output": "ids", "from": "source"})


def stored_mask(folder: Path, side: int) -> Volume:
    """Smooth noise above its middle, periodic; written once, block by block."""
    from scipy.ndimage import gaussian_filter

    if not (folder / "mask").exists():
        noise = np.random.default_rng(0).normal(size=(PERIOD,) * 3).astype(np.float32)
        tile = (gaussian_filter(noise, 4, mode="wrap") > 0.02).astype(np.uint8) * 255
        array = create_array(str(folder), "mask", shape=(side,) * 3, chunks=CHUNK, dtype=np.uint8)
        for box in blocks_of(open_volume(array.location, key="mask").box, CHUNK):
            origin = triple(start % PERIOD for start in box.origin)
            array.write(box, tile[Box(origin, box.shape).slices()][None])
    return open_volume(str(folder / "mask"), key="mask")


def ground_of(volume: Volume, place: Path) -> Ground:
    """The mask as a prediction of 8 bits, without coarser levels."""
    ground = ground_of_array(volume, "source", "binary", place_at(str(place)))
    source = replace(ground.sources["source"], decode=BinaryTarget().decode)
    return replace(ground, sources={"source": source}, levels=0)


def labels(volume: Volume, place: Path, workers: int) -> Callable[[], object]:
    """cc3d alone."""
    import cc3d

    del place, workers
    mask = volume.read(volume.box)[0] >= 128
    return lambda: cc3d.connected_components(mask, connectivity=26)


def in_memory(volume: Volume, place: Path, workers: int) -> Callable[[], object]:
    """cc3d, with reading and writing."""
    import cc3d

    del workers

    def work() -> None:
        ids = cc3d.connected_components(volume.read(volume.box)[0] >= 128, connectivity=26)
        array = create_array(str(place), "ids", shape=volume.extent, chunks=CHUNK, dtype=np.uint64)
        for box in blocks_of(volume.box, CHUNK):
            array.write(box, ids[box.slices()].astype(np.uint64)[None])

    return work


def blockwise(volume: Volume, place: Path, workers: int) -> Callable[[], object]:
    """The step."""
    return lambda: postprocess(ground_of(volume, place), [STEP], Crew(Threads(workers)))


WAYS = {"labels": labels, "in memory": in_memory, "blockwise": blockwise}


def measure(way: str, folder: Path, side: int, workers: int) -> dict[str, float]:
    """One way, in this process."""
    work = WAYS[way](stored_mask(folder, side), folder / way.replace(" ", "-"), workers)
    before, begun, cpu = _peak(), time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "mib": round(_peak() - before, 1),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_times(side: int, workers: int) -> None:
    """A line for each way."""
    with tempfile.TemporaryDirectory() as name:
        stored_mask(Path(name), side)
        for way in WAYS:
            words = ["one", way, name, str(side), str(workers)]
            found = subprocess.run(
                [sys.executable, __file__, *words], capture_output=True, text=True, check=True
            )
            print(f"{way:10} {found.stdout.strip()}", flush=True)  # noqa: T201


def print_partitions(volumes: int, kills: int) -> None:
    """How many of how many were equal."""
    rng = random.Random(0)
    equal = sum(_is_same_for_any_blocks(rng) for _ in range(volumes))
    print(f"{equal} of {volumes} random volumes: one partition for all blocks and orders")  # noqa: T201
    print(f"{kills} kills: {_survives(rng, kills)} volumes, all as without")  # noqa: T201


class Shuffled:
    """An engine that takes blocks in any order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def run(
        self, work: Work, blocks: Sequence[Box], should_stop: ShouldStop
    ) -> Iterator[tuple[Box, BlockPart]]:
        """As `Engine.run`."""
        order = list(blocks)
        random.Random(self.seed).shuffle(order)
        yield from Threads(2).run(work, order, should_stop)


def _is_same_for_any_blocks(rng: random.Random) -> bool:
    shape = tuple(rng.randint(5, 40) for _ in range(3))
    mask = (np.random.default_rng(rng.getrandbits(32)).random(shape) < rng.uniform(0.1, 0.5)) * 255
    with tempfile.TemporaryDirectory() as name:
        found = [_ids(mask.astype(np.uint8), Path(name) / str(n), rng) for n in range(3)]
    return all(np.array_equal(found[0], one) for one in found[1:])


def _ids(mask: np.ndarray, folder: Path, rng: random.Random) -> np.ndarray:
    chunks = tuple(min(rng.randint(4, 20), n) for n in mask.shape)
    ground = _small_ground(mask, folder, chunks)
    postprocess(ground, [STEP], Crew(Shuffled(rng.getrandbits(32))))
    written = open_volume(str(folder / "out/ids/0"), key="ids")
    return written.read(written.box)[0]


def _small_ground(mask: np.ndarray, folder: Path, chunks: tuple[int, ...]) -> Ground:
    array = create_array(str(folder), "mask", shape=mask.shape, chunks=mask.shape, dtype=np.uint8)
    volume = open_volume(array.location, key="mask")
    array.write(volume.box, mask[None])
    z, y, x = chunks
    return replace(ground_of(volume, folder / "out"), chunks=(z, y, x), least_block=1)


def _work_slowly(folder: str) -> None:
    mask = np.load(f"{folder}/mask.npy")
    volume = open_volume(f"{folder}/mask", key="mask")
    ground = replace(ground_of(volume, Path(folder) / "out"), chunks=(8, 8, 8), least_block=1)
    del mask
    postprocess(ground, [STEP], Crew(Threads(1)))


def _survives(rng: random.Random, kills: int) -> int:
    """Kill processes at random until so many were; returns how many volumes were made meanwhile."""
    context, done, made = multiprocessing.get_context("fork"), 0, 0
    while done < kills:
        mask = np.random.default_rng(made).integers(0, 2, (40, 33, 37)).astype(np.uint8) * 255
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "mask.npy", mask)
            _small_ground(mask, folder, (8, 8, 8))
            while True:
                worker = context.Process(target=_work_slowly, args=(name,))
                worker.start()
                worker.join(rng.uniform(0.05, 1.5))
                if worker.exitcode is None:
                    assert worker.pid
                    worker.kill()
                    worker.join()
                done += worker.exitcode == -signal.SIGKILL
                if worker.exitcode == 0:
                    break
            written = open_volume(str(folder / "out/ids/0"), key="ids")
            whole = _ids(mask, folder / "whole", rng)
            assert np.array_equal(written.read(written.box)[0], whole), "a kill changed ids"
        made += 1
    return made


def main() -> None:
    """Print what is asked for."""
    if sys.argv[1] == "one":
        way, folder, side, workers = sys.argv[2:]
        print(json.dumps(measure(way, Path(folder), int(side), int(workers))))  # noqa: T201
        return
    parser = argparse.ArgumentParser(description="Components, block by block.")
    parser.add_argument("what", choices=["time", "partitions"])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    if arguments.what == "time":
        print_times(arguments.side, arguments.workers)
    else:
        print_partitions(arguments.volumes, arguments.kills)


if __name__ == "__main__":
    main()
