"""`python -m vcmodels` is the command line."""

import sys

from vcmodels.cli import main

sys.exit(main(program="python -m vcmodels"))
