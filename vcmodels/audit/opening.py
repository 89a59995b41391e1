"""What was said while the volumes were opened: axes, metadata, volumes shorter than a patch."""

from collections.abc import Iterator

from vcmodels.audit.base import AuditScene, Check, Finding


def _find(scene: AuditScene) -> Iterator[Finding]:
    for line in dict.fromkeys(scene.lines):
        yield Finding("note", "dataset_config", line.removeprefix("note: "), "")


CHECK = Check("opening", "Opened volumes", _find)
