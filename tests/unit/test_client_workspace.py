from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.client.workspace import Workspace, write_workspace


@pytest.mark.parametrize("service", ["/home/zoë/\N{GRINNING FACE}", 'a"b\\c\x7f\td', "shop.example:8700"])
def test_a_workspace_reads_what_it_wrote(service: str, tmp_path: Path) -> None:
    write_workspace(tmp_path, {"identity": "i", "owner": "o", "name": "n", "service": service})
    assert Workspace.find(tmp_path).service == service
