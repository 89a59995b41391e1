"""The findings as one HTML page, which needs nothing from anywhere."""

from collections.abc import Iterator
from html import escape
from string import Template

from vcmodels.audit.audit import Audit
from vcmodels.audit.base import Finding

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
.finding { border-left: 4px solid #9aa5b1; padding: .3rem .8rem; margin: .5rem 0; background: #f6f8fa }
.error { border-color: #c62828 } .warning { border-color: #e69500 }
.subject { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere }
.remedy { color: #33566b } .fine { color: #5c6773 }
summary { cursor: pointer; color: #5c6773; font-size: .85em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; margin: .3rem 0 }
@media (prefers-color-scheme: dark) { body { color: #e4e8ee; background: #14181d }
  .finding { background: #1d232b } .remedy { color: #9cc4dc } }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
$sections
</body></html>
""")


def page(audit: Audit) -> str:
    """The page, as HTML; checks with findings first."""
    sections = [
        f"<h2>{escape(title)}</h2>\n" + "\n".join(map(_finding, found))
        for name, title in audit.titles.items()
        if (found := audit.findings.get(name))
    ]
    clean = [title for name, title in audit.titles.items() if audit.findings.get(name) == []]
    if clean:
        titles = ", ".join(escape(title.lower()) for title in clean)
        sections.append(f'<p class="fine">Nothing was found in: {titles}.</p>')
    return _PAGE.substitute(
        title=escape(f"Audit of {audit.subject}"),
        summary=escape(audit.summary),
        sections="\n".join(sections),
    )


def _finding(finding: Finding) -> str:
    lines = "\n".join(_lines(finding))
    return f'<div class="finding {finding.severity}">\n{lines}\n</div>'


def _lines(finding: Finding) -> Iterator[str]:
    yield f'<b>{finding.severity}</b> <span class="subject">{escape(finding.subject)}</span>'
    yield f"<div>{escape(finding.found)}</div>"
    if finding.remedy:
        yield f'<div class="remedy">{escape(finding.remedy)}</div>'
    if finding.figures:
        figures = "\n".join(f"{name}: {value}" for name, value in finding.figures.items())
        yield f"<details><summary>figures</summary><pre>{escape(figures)}</pre></details>"
