"""Forks trainings, so that each starts at once: torch is imported here, one time.

For each line of JSON on stdin a training, which is killed after so many seconds; its exit status
goes to stdout: 9, or 0 if it was done before.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from vcmodels.config import load_task
from vcmodels.reporting import Silent
from vcmodels.training import loop, train

loop.SAVE_EVERY_SECONDS = 0.0  # at each step, so that a kill falls into saving, too


def train_on(task: Path, workers: int) -> None:
    """Begin or continue the training of a task file."""
    torch.set_num_threads(1)
    parsed = load_task(task, [f"tr_params.num_dataloader_workers={workers}"]).task
    assert train(parsed, reporter=Silent()) == 0


def main() -> None:
    for line in sys.stdin:
        manner = json.loads(line)
        seconds = manner.pop("seconds")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                train_on(Path(sys.argv[1]), **manner)
                code = 0
            finally:
                os._exit(code)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
