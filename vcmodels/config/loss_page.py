"""`docs/losses.md` from the registry of losses: what each is, its options, and which kinds take it."""

import inspect
import json

from vcmodels.config.markdown import table_row
from vcmodels.losses import LOSSES
from vcmodels.targets import KINDS

_HEAD = """# Losses

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

`cldice`, `skeleton_recall`, `boundary` and `unit_length` judge one thing alone: use them beside
another loss.

`tr_params.loss_balance` says how the losses of several targets are added.

| loss | is | options | kinds | paper |
| --- | --- | --- | --- | --- |
"""


def document_losses() -> str:
    """The whole page, ending in a newline."""
    smoothed = [name for name in LOSSES if "label_smoothing" in _keywords(name)]
    rows = "\n".join(_row_of(name) for name in LOSSES)
    foot = f"`label_smoothing` acts on {', '.join(f'`{name}`' for name in smoothed)}."
    return f"{_HEAD}{rows}\n\n{foot}\n"


def _row_of(name: str) -> str:
    options = ", ".join(
        f"`{key}` {_short(default)}"
        for key, default in _keywords(name).items()
        if key not in ("weight", "label_smoothing")
    )
    kinds = ", ".join(kind for kind, target in KINDS.items() if name in target.allowed_losses)
    summary, paper = _summary(name)
    return table_row(f"`{name}`", summary, options, kinds, paper)


def _summary(name: str) -> tuple[str, str]:
    """The first sentence of a loss's docstring, and the paper that it names."""
    paragraphs = (inspect.getdoc(LOSSES[name]) or "").split("\n\n")
    papers = [text.removeprefix("Paper: ") for text in paragraphs if text.startswith("Paper: ")]
    return paragraphs[0].split("; ")[0].rstrip("."), "; ".join(papers).rstrip(".")


def _keywords(name: str) -> dict[str, object]:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _short(default: object) -> str:
    return f"{default:.4g}" if isinstance(default, float) else json.dumps(default)
