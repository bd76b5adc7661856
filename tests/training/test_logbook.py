"""What a run prints while it goes on."""

import time

import pytest

from unimm.training.logbook import ProgressLine


def test_the_time_that_is_left_is_told_from_where_a_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on in its middle has not done half of its work in a second; and a line is one line in a file."""
    now = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    line = ProgressLine("training", seconds_between_lines=0)
    line.update(0.5, lambda: "a note that is longer than a terminal is wide: " + 60 * ".")
    line.update(0.6, lambda: "on")
    first, second = capsys.readouterr().out.splitlines()
    assert "eta" not in first and second == "training:  60%, 11 s, eta 40 s, on"
