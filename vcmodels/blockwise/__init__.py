"""Work over the blocks of a volume: in parallel, recorded as it goes, continued after a kill."""

from vcmodels.blockwise.engines import Engine, Threads
from vcmodels.blockwise.record import BlockRecord
from vcmodels.blockwise.run import map_blocks
from vcmodels.blockwise.share import WHOLE, Crew, Measured, Part, share_blocks

__all__ = [
    "WHOLE",
    "BlockRecord",
    "Crew",
    "Engine",
    "Measured",
    "Part",
    "Threads",
    "map_blocks",
    "share_blocks",
]
