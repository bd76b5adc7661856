"""The guide's requests, recipes/serve.md, as they stand there, by curl."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "recipes/serve.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests_of_the_guide(server: str) -> None:
    blocks = re.findall(r"^```bash\n(curl.*?)^```", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(lines) >= 4
    for line in lines:
        words = line.replace("http://127.0.0.1:8000", server)
        answer = subprocess.run(
            ["bash", "-c", f"{words} --fail"], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        assert answer.endswith("data: [DONE]\n\n") or answer.endswith("}"), answer[-200:]
