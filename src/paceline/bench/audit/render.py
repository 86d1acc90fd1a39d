"""The certificate as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.bench.audit.certificate import Certificate, Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {
    Outcome.PASSED: "green",
    Outcome.TIES: "yellow",
    Outcome.MEASURED: "cyan",
    Outcome.SKIPPED: "dim",
    Outcome.FAILED: "bold red",
}
MOST_DIFFERENCES = 8  # shown; the JSON has all


def render(certificate: Certificate) -> RenderableType:
    """Checks, differences, controls and the verdict, ready for `Console.print`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    checks = Table(title=f"Audit of {certificate.method} on {certificate.model}", title_justify="left")
    for heading, justify in (("check", "left"), ("subject", "left"), ("compared", "right"), ("outcome", "left"), ("", "left")):
        checks.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich wants literals
    for check in certificate.checks:
        outcome = Text(str(check.outcome), STYLES[check.outcome])
        checks.add_row(check.name, check.subject, str(check.compared), outcome, check.detail)
    parts: list[RenderableType] = [checks]
    found = [difference for check in certificate.checks for difference in check.differences]
    parts.extend(Text(f"  {difference.describe()}", "dim") for difference in found[:MOST_DIFFERENCES])
    if len(found) > MOST_DIFFERENCES:
        parts.append(Text(f"  and {len(found) - MOST_DIFFERENCES} more differences, in the JSON certificate", "dim"))
    if certificate.controls:
        controls = Table(title="Faults the audit must notice", title_justify="left")
        for heading in ("fault", "seen by", "noticed", ""):
            controls.add_column(heading)
        for control in certificate.controls:
            seen = Text("yes", "green") if control.caught else Text("NO", "bold red")
            controls.add_row(control.name, control.check, seen, control.detail)
        parts.append(controls)
    promise = ", ".join(f"{mode}: {guarantee}" for mode, guarantee in certificate.guarantee.items())
    parts.append(Text.assemble("Declared ", (promise, "bold"), ". Verdict: ", (str(certificate.outcome), STYLES[certificate.outcome])))
    return Group(*parts)
