"""The progress bar accepts what the trainer reports, shown or hidden."""

from __future__ import annotations

import pytest

from paceline.zoo.display import training_display


@pytest.mark.parametrize("enabled", [True, False])
def test_reports_are_accepted(enabled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with training_display("pocket-code", enabled=enabled) as report:
        report(0.5, {"cross_entropy": 1.25})
        report(1.0, {"cross_entropy": 0.75})
    shown = capsys.readouterr().err
    assert ("pocket-code" in shown) == enabled
    assert ("0.750 nats/token" in shown) == enabled
