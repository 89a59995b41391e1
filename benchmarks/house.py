"""Figures of the house: how many rooms, what travels through them, how long functions are.

    python benchmarks/house.py            # the figures
    python benchmarks/house.py --list     # and what they count, by name
    python benchmarks/house.py --walk     # and those of a task on its way through `infer`

The code is read; only `--walk` runs it, on a tiny network. "Code lines" leave out blank lines,
comments and docstrings.
"""

import argparse
import ast
import io
import json
import re
import sys
import tempfile
import threading
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from types import FrameType

PACKAGE = Path(__file__).resolve().parents[1] / "vcmodels"
SHORT = 60
"""Lines below which a module with one importer is no room of its own."""
MOST_PARAMETERS = 8
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One file, parsed."""

    name: str
    path: Path
    text: str
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> Iterator[Definition]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Definition))

    def imports(self) -> set[str]:
        """Modules of the package, as they are named in import statements, late ones included."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vcmodels"):
                base = node.module or ""
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        return found


def read_modules() -> list[Module]:
    """All files of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append(Module(".".join(parts), path, path.read_text()))
    return found


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code: no blank ones, comments or docstrings."""
    skipped = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENCODING, tokenize.ENDMARKER,
    }  # fmt: skip
    found: set[int] = set()
    is_start = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL):
            is_start = is_start if token.type == tokenize.NL else True
            continue
        if token.type in skipped:
            continue
        if token.type == tokenize.STRING and is_start:
            continue  # a docstring, or the text under a field
        is_start = False
        found |= set(range(token.start[0], token.end[0] + 1))
    return found


def length(function: Definition, lines: set[int]) -> int:
    """Code lines of a body; those of functions inside count."""
    return sum(function.body[0].lineno <= n <= (function.end_lineno or 0) for n in lines)


def parameters(function: Definition) -> list[str]:
    """Names of all parameters but `self` and `cls`."""
    a = function.args
    names = [one.arg for one in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@dataclass
class Walk:
    """Where a whole task goes, from the call of `infer` until the first chunk is written."""

    task_type: type
    rows: dict[str, int]
    """Of each package, counted from the top."""
    rooms: list[str] = field(default_factory=list)
    """Modules of the functions that get the task, in the order of the calls; twice if it returns."""
    is_on: bool = False

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """As `sys.setprofile` takes it."""
        name = str(frame.f_globals.get("__name__"))
        if event != "call" or not name.startswith("vcmodels."):
            return
        function = frame.f_code.co_name
        if (name, function) == ("vcmodels.cli.infer", "infer"):
            self.is_on = True
        elif (name, function) == ("vcmodels.volumes.writer", "write"):
            self.is_on = False
        if self.is_on and self.rooms[-1:] != [name] and self._has_task(frame):
            self.rooms.append(name)

    def climbs(self) -> list[str]:
        """The steps from one of these rooms into one of a higher row."""
        steps = pairwise(self.rooms)
        return [f"{old} -> {new}" for old, new in steps if self._row(new) < self._row(old)]

    def _row(self, module: str) -> int:
        return self.rows[module.split(".")[1]]

    def _has_task(self, frame: FrameType) -> bool:
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]
        return any(isinstance(value, self.task_type) for value in given)


def walk() -> Walk:
    """Train a tiny network, predict with it, and follow the task."""
    from vcmodels.cli import main
    from vcmodels.config import Task
    from vcmodels.phantom import write_phantom

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = {name: row for row, text in enumerate(layers) for name in text.split(" | ")}
    watch = Walk(Task, rows)
    with tempfile.TemporaryDirectory() as folder:
        scan, said = f"{folder}/scan.zarr", io.StringIO()
        write_phantom(scan, shape=(24, 96, 56), seed=0, chunks=(16, 16, 16))
        steps = {"max_epoch": 1, "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1}
        volume = {"input": f"{scan}/ct", "sheet": f"{scan}/sheet"}
        task = {
            "tr_params": {
                "model_name": "tiny",
                "ckpt_out_base": f"{folder}/run",
                **steps,
                "patch_size": [16, 16, 16],
                "num_dataloader_workers": 0,
                "warmup_steps": 1,
            },
            "model_config": {"f_maps": [4, 8]},
            "inference_params": {"input_path": f"{scan}/ct", "output_dir": f"{folder}/out"},
            "dataset_config": {
                "min_bbox_percent": 0.1,
                "min_labeled_ratio": 0.01,
                "volume_paths": [volume],
                "targets": {"sheet": {"kind": "binary", "ignore_label": 2}},
            },
        }
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        with redirect_stdout(said), redirect_stderr(said):
            main(["train", str(path)])
            sys.setprofile(watch)
            threading.setprofile(watch)
            try:
                code = main(["infer", str(path)])
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
    if code or watch.is_on or not watch.rooms:
        sys.exit(f"the prediction failed:\n{said.getvalue()}")
    return watch


def shown(name: str, value: object, must: str) -> None:
    print(f"{name:<62} {value!s:>16}   {must}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="name what is counted")
    parser.add_argument("--walk", action="store_true", help="predict, and follow the task")
    options = parser.parse_args()
    details = options.list
    every = read_modules()
    rooms = [m for m in every if m.path.name != "__init__.py"]
    importers: dict[str, set[str]] = defaultdict(set)
    for module in every:
        for name in module.imports():
            importers[name].add(module.name)

    def is_small(module: Module) -> bool:
        is_free = module.name.startswith(("vcmodels.cli.", "vcmodels.targets."))
        return module.lines < SHORT and len(importers[module.name]) == 1 and not is_free

    small = [m.name for m in rooms if is_small(m)]
    below = [m for m in every if not m.name.startswith("vcmodels.cli")]
    tasks = [f"{m.name}.{f.name}" for m in below for f in m.functions() if "task" in parameters(f)]
    copies = [f"{m.name}:{n}" for m in every for n in (1,) * m.text.count("model_copy(\n")]
    copies += [m.name for m in every for _ in re.findall(r"model_copy\(update", m.text)]
    splits = [m.name for m in every if re.search(r"\"splits\.json\"|SPLITS\b", m.text)]
    classes: dict[str, list[str]] = defaultdict(list)
    for module in every:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(module.name)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if re.fullmatch(r"_?[A-Z][a-z]\w*", name):
                    classes[name].append(module.name)
    twice = {name: homes for name, homes in classes.items() if len(homes) > 1}
    cut = [
        f"{m.name}:{number}"
        for m in every
        for number, line in enumerate(m.text.splitlines(), 1)
        if re.search(r"partition\(\"(: |; )\"\)", line)
    ]
    lengths: list[int] = []
    total, wide, longest = 0, [], (0, "")
    for module in every:
        lines = code_lines(module.text)
        total += len(lines)
        for function in module.functions():
            size = length(function, lines)
            lengths.append(size)
            longest = max(longest, (size, f"{module.name}.{function.name}"))
            if len(parameters(function)) > MOST_PARAMETERS:
                wide.append(f"{module.name}.{function.name}")
    p90 = quantiles(lengths, n=10)[-1]
    shown("modules besides __init__", len(rooms), "<= 145")
    shown(f"  below {SHORT} lines with one importer", len(small), "0")
    shown("functions outside cli that take the task", len(tasks), "< 60")
    shown("model_copy(update", len(copies), "< 10")
    shown("modules that name splits.json", len(splits), "1")
    shown("type names defined twice", len(twice), "0")
    shown("remedies cut from text", len(cut), "0")
    shown(
        "functions: median / p90 / max",
        f"{median(lengths):g} / {p90:g} / {longest[0]}",
        "6 / 18 / 58",
    )
    shown(f"functions with more than {MOST_PARAMETERS} parameters", len(wide), "<= 3")
    shown("code lines", total, "<= 20,300")
    watch = walk() if options.walk else None
    if watch is not None:
        rooms = f"{len(watch.rooms)} ({len(set(watch.rooms))} different)"
        shown("rooms that a task enters, from infer to a chunk", rooms, "<= 22")
        shown("  steps into a higher row", len(watch.climbs()), "<= 6")
    if details:
        for title, names in (
            ("small", small), ("task", tasks), ("model_copy", copies), ("splits.json", splits),
            ("twice", [f"{n}: {', '.join(h)}" for n, h in twice.items()]), ("cut", cut),
            ("wide", wide), ("longest", [longest[1]]),
            ("rooms", watch.rooms if watch else ()), ("climbs", watch.climbs() if watch else ()),
        ):  # fmt: skip
            ordered = names if title in ("rooms", "climbs") else sorted(names)
            print(f"\n{title}:", *ordered, sep="\n  ")  # noqa: T201


if __name__ == "__main__":
    main()
