"""Work over the blocks of a volume: in parallel, recorded as it goes, continued after a kill."""

from vcmodels.blockwise.engines import Engine, Threads
from vcmodels.blockwise.record import BlockRecord
from vcmodels.blockwise.run import map_blocks

__all__ = ["BlockRecord", "Engine", "Threads", "map_blocks"]
