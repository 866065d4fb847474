"""docs/engine.md is complete: every flag of the server, every page."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "engine.md"


def test_the_table_of_flags_is_what_the_server_has():
    command = [sys.executable, str(ROOT / "tools" / "flags.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_every_page_is_linked_and_every_link_leads_to_a_page():
    linked = set(re.findall(r"\]\((engine/[\w-]+\.md)\)", PAGE.read_text(encoding="utf-8")))
    pages = {f"engine/{path.name}" for path in (ROOT / "docs" / "engine").glob("*.md")}
    assert linked == pages, f"add these to the list of pages in docs/engine.md, or take them out: {linked ^ pages}"
