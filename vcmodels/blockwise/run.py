"""One function over all blocks of a volume."""

from collections.abc import Sequence

from vcmodels.blockwise.engines import Engine, ShouldStop, Threads, Work
from vcmodels.blockwise.record import BlockRecord
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Reporter, Silent


def map_blocks(
    work: Work,
    blocks: Sequence[Box],
    record: BlockRecord,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    should_stop: ShouldStop = lambda: False,
    name: str = "blocks",
) -> bool:
    """Do the work of all blocks that are not in the record yet; whether all are there in the end.

    What is made of a block is recorded as soon as it is done, so that the same call continues after
    a kill. Engine and order decide nothing: read `record.parts(blocks)` in the order of the blocks,
    and sums of floats come out the same to the last bit.

    Args:
        work: what is made of a block.
        blocks: they do not overlap.
        record: of the identity of this work.
        engine: the threads of this process when None.
        reporter: gets a bar in voxels.
        should_stop: asked several times a second; what is being worked on is still recorded.
        name: of the bar.

    Raises:
        VcmodelsError: what the work raised; what was done before is recorded.
    """
    missing = [box for box in blocks if box not in record]
    total = sum(box.voxels for box in blocks)
    with (reporter or Silent()).bar(name, total) as advance:
        advance(total - sum(box.voxels for box in missing), "")
        for box, part in (engine or Threads()).run(work, missing, should_stop):
            record.add(box, part)
            advance(box.voxels, "")
    return all(box in record for box in blocks)
