"""`unimm bench search`: it asks what it made, and what it writes says where it comes from."""

import json
from pathlib import Path

from typer.testing import CliRunner

from unimm.cli.app import app


def test_queries_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    words = ["bench", "search", "--num", "300", "--dim", "16", "--queries", "5", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert told["found"] == 1.0 and 0 < told["median_ms"] <= told["slowest_ms"] and told["megabytes"] > 0.01
    assert told["num"] == 300 and "commit" in told["provenance"] and "median ms" in result.stdout
