"""`python train.py TASK` is `vcmodels train TASK`."""

import sys

from vcmodels.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
