"""The data doctor: what is odd about the volumes of a task, and what to do about it."""

from vcmodels.audit.audit import Audit, audit_task, cheap_findings
from vcmodels.audit.base import SEVERITIES, Finding, Severity

__all__ = ["SEVERITIES", "Audit", "Finding", "Severity", "audit_task", "cheap_findings"]
