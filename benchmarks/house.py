"""Figures of the house: how many rooms, what travels through them, how long functions are.

    python benchmarks/house.py            # the figures
    python benchmarks/house.py --list     # and what they count, by name

The code is read, not run. "Code lines" leave out blank lines, comments and docstrings.
"""

import argparse
import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

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


def shown(name: str, value: object, must: str) -> None:
    print(f"{name:<62} {value!s:>16}   {must}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="name what is counted")
    details = parser.parse_args().list
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
    if details:
        for title, names in (
            ("small", small), ("task", tasks), ("model_copy", copies), ("splits.json", splits),
            ("twice", [f"{n}: {', '.join(h)}" for n, h in twice.items()]), ("cut", cut),
            ("wide", wide), ("longest", [longest[1]]),
        ):  # fmt: skip
            print(f"\n{title}:", *sorted(names), sep="\n  ")  # noqa: T201


if __name__ == "__main__":
    main()
