"""`docs/task-file.md` from the schema: one table for each section."""

import json
from collections.abc import Iterator
from typing import Any

from vcmodels.augment import DEFAULT_AUGMENTATIONS
from vcmodels.config.plain import as_object
from vcmodels.config.schema_walk import Schema, branches, wanted
from vcmodels.losses.terms import parse_loss
from vcmodels.targets import KINDS

_HEAD = """# The task file

<!-- Made by `vcmodels schema --markdown > docs/task-file.md`; do not edit. -->

One JSON object (YAML if the file ends in `.yaml` or `.yml`) with the sections below. `volume_paths`
and `targets` may also stand at the top level. Unknown, misspelt and duplicate keys are refused, as
are values of the wrong type: nothing is guessed and nothing in the file is evaluated. Keys that
start with `_comment` are ignored everywhere, and `"$schema"` at the top.

Locations are strings: local paths (relative ones from the working directory; `~` and `$VAR`
expand), `s3://` and `https://` URLs, arrays inside groups (`store.zarr/group/array`) and OME-Zarr
groups, of which `level` is read. A `*` in the paths of a volume expands to many volumes. All lengths
and boxes are (z, y, x) in voxels.

Any key can be set from the command line: `--set tr_params.batch_size=4`,
`--set dataset_config.volume_paths.0.input=other.zarr/ct`. The value is JSON or a bare text; what
was set is recorded in the task under `overrides`.

`vcmodels schema` prints the JSON Schema that this page is made from, and `vcmodels check task.json`
validates a file and shows the plan without training.
"""

_OLD = """## Older spellings

Task files of the original load as they are; each of these is accepted with a note of one line.

| written | read as |
| --- | --- |
| `model_config.n_levels` | `model_config.num_levels` |
| `targets.NAME.loss_fn`: `BCEDiceLoss`, `MaskedCosineLoss`, with `loss_kwargs` | `targets.NAME.loss` |
| `inference_params.targets.NAME.activation` | `targets.NAME.activation` |
| `tr_params.min_labeled_ratio`, `tr_params.min_bbox_percent` | the same key of `dataset_config` |
| `dataset_config.normalization`: `ct_normalization` | `ct` |
| `inference_params.load_all`, `model_config.basic_module` | ignored |
"""

_NEEDED = {"`dataset_config`": ("volume_paths", "targets")}
"""Here or at the top level, so the schema cannot say it."""
_LISTS = {
    "augment": ", ".join(a.name for a in DEFAULT_AUGMENTATIONS),
    "overrides": "`[]`",
    "blocks_per_level": "`1`",
    "freeze": "`[]`",
}
"""Defaults that the schema does not hold."""
_LABEL_KEY = "NAME of a target"


def document(schema: Schema) -> str:
    """The whole page, ending in a newline."""
    top = schema["properties"]
    parts = [_HEAD, *_sections(schema)]
    parts.append(_table("Top level", _only(schema, ("augment", "overrides")), schema))
    parts += _members("augment", top["augment"]["items"], "name", schema)
    parts.append(_losses())
    return "\n".join([*parts, _OLD])


def _sections(schema: Schema) -> Iterator[str]:
    definitions, top = schema["$defs"], schema["properties"]
    dataset = definitions["DatasetConfig"]["properties"]
    for name in ("tr_params", "inference_params"):
        for section in branches(top[name], schema):
            yield _table(f"`{name}`", section, schema, top[name].get("description"))
    for section in branches(top["model_config"], schema):
        title = f"`model_config`, name `{_tag(section, 'name')}`"
        yield _table(title, section, schema, section.get("description"))
    yield _table(
        "`dataset_config`", definitions["DatasetConfig"], schema, _about("dataset_config", top)
    )
    entry = definitions["VolumeEntry"]
    about = entry["description"]
    yield _table("An entry of `volume_paths`", entry, schema, about)
    yield _table("`split` as an object", definitions["SplitAttribute"], schema)
    yield _table("`normalization` as an object", definitions["NormalizationConfig"], schema)
    yield _table("`sampling`", definitions["SamplingConfig"], schema)
    yield _table("`folds`", definitions["FoldConfig"], schema)
    yield _table("`early_stopping`", definitions["EarlyStopping"], schema)
    yield _table("`wandb`", definitions["WandbConfig"], schema)
    yield _table("`mixup`", definitions["Mixup"], schema)
    yield _table("`skip`", definitions["Skip"], schema)
    yield _table("`tta`", definitions["Tta"], schema)
    yield _table("`ensemble`", definitions["EnsembleParams"], schema)
    yield from _members("targets", dataset["targets"]["additionalProperties"], "kind", schema)


def _losses() -> str:
    """A table of what each kind may be trained with, and which label keys it uses."""
    rows = [
        table_row(
            f"`{kind}`",
            " + ".join(f"{t.factor:g} {t.name}" for t in parse_loss(target.default_loss)),
            ", ".join(sorted(target.allowed_losses)),
            ", ".join(f"`{key}`" for key in sorted(target.label_keys)),
        )
        for kind, target in KINDS.items()
    ]
    head = [
        "## Losses and label keys of a target, by kind",
        "",
        "`ignore_label` is for all kinds. The other label keys of `tr_params` reach the targets that",
        "use them; given on another target they are refused.",
        "",
        "| kind | default loss | allowed losses | label keys |",
    ]
    return "\n".join([*head, "| --- | --- | --- | --- |", *rows, ""])


def _about(name: str, properties: Schema) -> str | None:
    return properties[name].get("description")


def _only(schema: Schema, keys: tuple[str, ...]) -> dict[str, Any]:
    return {"properties": {key: schema["properties"][key] for key in keys}}


def _members(place: str, union: Schema, tag: str, schema: Schema) -> Iterator[str]:
    """A table for each member of an extension point."""
    for section in branches(union, schema):
        title = f"`{place}`, {tag} `{_tag(section, tag)}`"
        yield _table(title, section, schema, section.get("description"))


def _tag(section: Schema, key: str) -> object:
    return section["properties"][key].get("const", key)


def _table(title: str, section: Schema, schema: Schema, about: str | None = None) -> str:
    lines = [f"## {title}", ""]
    if about:
        lines += [about.replace("\n\n", "\n").replace("\n", " "), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = section.get("required", _NEEDED.get(title, ()))
    for key, value in section["properties"].items():
        default = "required" if key in required else _LISTS.get(key) or _default(value)
        lines.append(
            table_row(f"`{key}`", wanted(value, schema), default, value.get("description", ""))
        )
    extra = as_object(section.get("additionalProperties"))
    if extra is not None:
        lines.append(table_row(_LABEL_KEY, "a text", "", extra["description"]))
    return "\n".join([*lines, ""])


def table_row(*cells: str) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(value: Schema) -> str:
    if "default" not in value:
        return "see below"
    text = json.dumps(value["default"])
    return f"`{text}`" if len(text) <= 60 else "see below"
