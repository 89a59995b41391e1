"""What a command does before its work: what it imports, and when garbage is looked for."""

import inspect
import subprocess
import sys

import pytest

from vcmodels.cli.app import app
from vcmodels.cli.runs import cv

CHILD = """
import gc, sys
from vcmodels.cli import main
sys.argv[1:] = {arguments}
code = main()
heavy = {{"torch", "zarr", "dask", "matplotlib", "scipy"}} & set(sys.modules)
sys.stderr.write(f"{{code}} {{sorted(heavy)}} {{gc.isenabled()}} {{gc.get_freeze_count() > 0}}")
"""


def run(*arguments):
    """Exit code, heavy modules, whether garbage is collected, and whether imports are left out."""
    child = CHILD.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1]


def test_help_and_schema_import_nothing_heavy():
    assert run("--help").startswith("0 []")
    assert run("schema") == "0 [] True True"


def test_the_config_imports_nothing_that_few_tasks_need():
    program = (
        "import sys, vcmodels.cli.plan; print({'scipy', 'skimage', 'dask'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_listing_runs_imports_no_torch(tmp_path):
    assert "torch" not in run("runs", str(tmp_path))


COMMANDS = {command.callback.__name__: command for command in app.registered_commands}
COMMANDS |= {f"cv {command.callback.__name__}": command for command in cv.registered_commands}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_says_when_its_work_begins(command):
    """Until then garbage is not collected, and a signal leaves at once."""
    assert "context.obj.begin()" in inspect.getsource(command.callback)


def test_the_plan_of_a_network_needs_no_compiler():
    program = (
        "import sys; from vcmodels.models import MODELS;"
        "MODELS['residual_unet']().describe(1, {'a': 2}, (32, 32, 32), (1.0, 1.0, 1.0));"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"
