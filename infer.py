"""`python infer.py TASK` is `vcmodels infer TASK`."""

import sys

from vcmodels.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
