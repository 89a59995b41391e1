"""The JSON Schema of the task file, and the pages of the docs that are written from it."""

import copy
import functools
import inspect
import json
from collections.abc import Iterator
from typing import Any, get_args

from vcmodels.augment import DEFAULT_AUGMENTATIONS, Augmentation
from vcmodels.cohorts.bids import BidsCases
from vcmodels.config.cases import OF_ONE, SHARED, CaseTable
from vcmodels.config.instances import KIND as INSTANCES
from vcmodels.config.instances import InstancesRecipe
from vcmodels.config.messages import Schema, as_object, branches, wanted
from vcmodels.config.task import Scheme, Task
from vcmodels.config.values import INSIDE_DATASET
from vcmodels.losses import LOSSES
from vcmodels.losses.registry import parse_loss
from vcmodels.models import MODELS, Model
from vcmodels.targets import KINDS

_LABEL = {
    "type": "string",
    "minLength": 1,
    "maxLength": 4096,
    "description": "Under the name of a target: its label array. A volume may lack some targets. "
    "Under a name that a target has as `derive`: what that one is computed from.",
}


def task_schema() -> dict[str, Any]:
    """The schema that `vcmodels schema` prints and that editors complete from."""
    return copy.deepcopy(_schema(tuple(MODELS.values())))


def schema_text() -> str:
    """`vcmodels/task.schema.json`: the schema as text, ending in a newline."""
    return json.dumps(task_schema(), indent=2) + "\n"


@functools.cache
def _schema(_models: tuple[type[Model], ...]) -> dict[str, Any]:
    """The schema while these are the networks."""
    schema = Task.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    volume, dataset = definitions["VolumeEntry"], definitions["DatasetConfig"]
    del volume["properties"]["labels"]
    volume["additionalProperties"] = _LABEL
    normalization = dataset["properties"]["normalization"]
    by_name = {"enum": [*get_args(Scheme), "ct_normalization"], "type": "string"}
    normalization["anyOf"] = [by_name, {"$ref": normalization.pop("$ref")}]
    normalization["default"] = "zscore"
    _accept_instances(schema)
    _accept_cases(definitions)
    _accept_names(schema)
    _describe_inherited(definitions)
    schema["required"] = ["tr_params"]
    for section in (schema, *definitions.values()):
        if section.get("additionalProperties") is False:
            section["patternProperties"] = {"^_comment": {}}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vcmodels task"
    return schema


def _describe_inherited(definitions: dict[str, Any]) -> None:
    """A member that only changes the default of a key of its base loses the text under it."""
    texts = {"p": Augmentation.model_fields["p"].description, "name": "Which one it is."}
    for section in definitions.values():
        for key, value in section.get("properties", {}).items():
            if key in texts:
                value.setdefault("description", texts[key])


def _accept_instances(schema: dict[str, Any]) -> None:
    """Add the kind of target that is spelt out before a task is validated."""
    kinds = schema["$defs"]["DatasetConfig"]["properties"]["targets"]["additionalProperties"]
    place = f"#/$defs/{InstancesRecipe.__name__}"
    kinds["discriminator"]["mapping"][INSTANCES] = place
    kinds["oneOf"].append({"$ref": place})
    found = InstancesRecipe.model_json_schema(by_alias=True)
    assert "$defs" not in found, "its keys hold no sections"
    schema["$defs"][InstancesRecipe.__name__] = found


def _accept_cases(definitions: dict[str, Any]) -> None:
    """Add the tables and folders that are read before a task is validated."""
    shared = {key: definitions["VolumeEntry"]["properties"][key] for key in SHARED}
    sources: list[dict[str, Any]] = [{"type": "string", "minLength": 1, "maxLength": 4096}]
    for block in (CaseTable, BidsCases):
        found = block.model_json_schema(by_alias=True)
        definitions[block.__name__] = {**found, "properties": {**found["properties"], **shared}}
        sources.append({"$ref": f"#/$defs/{block.__name__}"})
    volumes = definitions["DatasetConfig"]["properties"]["volume_paths"]
    kept = {key: volumes.pop(key) for key in ("type", "minItems", "maxItems", "items")}
    kept["items"] = {"anyOf": [kept["items"], *sources]}
    volumes["anyOf"] = [kept, *sources]


def _accept_names(schema: dict[str, Any]) -> None:
    """What the file may hold at its top level next to the sections."""
    dataset = schema["$defs"]["DatasetConfig"]
    inside = {key: dataset["properties"][key] for key in INSIDE_DATASET}
    for key, value in inside.items():
        also = f"The same as dataset_config.{key}."
        schema["properties"][key] = {**value, "description": also}
    del dataset["required"]
    schema["properties"]["$schema"] = {
        "type": "string",
        "description": "Where an editor finds this schema; not read.",
    }


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

_NEEDED = {"`dataset_config`": INSIDE_DATASET}
"""Here or at the top level, so the schema cannot say it."""
_LISTS = {
    "augment": ", ".join(a.name for a in DEFAULT_AUGMENTATIONS),
    "postprocess": "`[]`",
    "overrides": "`[]`",
    "cases": "`[]`",
    "blocks_per_level": "`1`",
    "freeze": "`[]`",
}
"""Defaults that the schema does not hold."""
_LABEL_KEY = "NAME of a target"


def task_page(schema: Schema) -> str:
    """`docs/task-file.md`: a table of the keys of every section, ending in a newline."""
    top = schema["properties"]
    parts = [_HEAD, *_sections(schema)]
    parts.append(
        _table("Top level", _only(schema, ("augment", "postprocess", "overrides", "cases")), schema)
    )
    parts += _members("augment", top["augment"]["items"], "name", schema)
    parts += _members("postprocess", top["postprocess"]["items"], "name", schema)
    parts.append(_losses())
    return "\n".join([*parts, _OLD])


def _sections(schema: Schema) -> Iterator[str]:
    definitions, top = schema["$defs"], schema["properties"]
    dataset = definitions["DatasetConfig"]["properties"]
    for name in ("tr_params", "inference_params", "evaluation"):
        for section in branches(top[name], schema):
            yield _table(f"`{name}`", section, schema, top[name].get("description"))
    for section in branches(top["model_config"], schema):
        title = f"`model_config`, name `{_tag(section, 'name')}`"
        yield _table(title, section, schema, section.get("description"))
    about, entry = top["dataset_config"]["description"], definitions["VolumeEntry"]
    yield _table("`dataset_config`", definitions["DatasetConfig"], schema, about)
    yield _table("An entry of `volume_paths`", entry, schema, entry["description"])
    for source, title in ((CaseTable, "a table or folder"), (BidsCases, "a BIDS data set")):
        block = definitions[source.__name__]
        own = {key: block["properties"][key] for key in source.model_fields}
        about = (
            f"{block['description']} Also the keys of an entry but {', '.join(OF_ONE)}, for all."
        )
        yield _table(f"`volume_paths` as {title}", {**block, "properties": own}, schema, about)
    yield _table("`stack`", definitions["SliceStack"], schema)
    yield _table("A label of `pseudo` as an object", definitions["PseudoLabel"], schema)
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
            ", ".join(sorted(target.allowed_losses())),
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


_LOSS_HEAD = """# Losses

<!-- Made by `vcmodels schema --losses > docs/losses.md`; do not edit. -->

The `loss` of a target is a name, several as `{name: weight}`, or with options:

```json
"sheet": {"kind": "binary", "loss": {"bce": {"weight": 1, "pos_weight": 3}, "soft_dice": 1}}
```

In all of them P is the prediction (sigmoid or softmax of the logits), T the label, sums and means
run over the voxels of a sample that count, and what lies under the others reaches neither the loss
nor the gradient. A step takes the mean over its samples, each weighted by how many of its voxels
count, however they are divided over micro-batches and processes. A sample or voxel of weight 0.1 (a
pseudo-label) pulls a tenth as hard; one without a voxel that counts costs 0. All is computed in
float32. Losses on regions average over the classes; where one takes `include_background`, class 0 is
left out by default.

`cldice`, `skeleton_recall`, `boundary`, `gap` and `unit_length` judge one thing only: use them with
another loss.

`tr_params.loss_balance` says how the losses of several targets are added.

| loss | is | options | kinds | paper |
| --- | --- | --- | --- | --- |
"""


def loss_page() -> str:
    """`docs/losses.md`: a table of all losses, ending in a newline."""
    smoothed = [name for name in LOSSES if "label_smoothing" in _keywords(name)]
    rows = "\n".join(_row_of(name) for name in LOSSES)
    foot = f"`label_smoothing` acts on {', '.join(f'`{name}`' for name in smoothed)}."
    return f"{_LOSS_HEAD}{rows}\n\n{foot}\n"


def _row_of(name: str) -> str:
    options = ", ".join(
        f"`{key}` {_short(default)}"
        for key, default in _keywords(name).items()
        if key not in ("weight", "label_smoothing")
    )
    kinds = ", ".join(kind for kind, target in KINDS.items() if name in target.allowed_losses())
    summary, paper = _summary(name)
    return table_row(f"`{name}`", summary, options, kinds, paper)


def _summary(name: str) -> tuple[str, str]:
    """The first sentence of a loss's docstring, and the paper that it names."""
    paragraphs = (inspect.getdoc(LOSSES[name].function) or "").split("\n\n")
    papers = [text.removeprefix("Paper: ") for text in paragraphs if text.startswith("Paper: ")]
    return paragraphs[0].split("; ")[0].rstrip("."), "; ".join(papers).rstrip(".")


def _keywords(name: str) -> dict[str, object]:
    parameters = inspect.signature(LOSSES[name].function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _short(default: object) -> str:
    return f"{default:.4g}" if isinstance(default, float) else json.dumps(default)
