"""The page of long tests and examples: what is recorded, and that nothing else is lost."""

from __future__ import annotations

from typing import Literal

import pytest
from tests.conftest import RECORD, record, recorded


def _report(name: str, *marks: str, when: Literal["setup", "call", "teardown"] = "call") -> pytest.TestReport:
    path = f"tests/e2e/{name}"
    keywords = dict.fromkeys((name, *marks), 1)
    return pytest.TestReport(path, (path, 1, name), keywords, "passed", None, when, duration=12.4)


def test_rows_are_kept_replaced_and_added() -> None:
    old = "| `test_a.py::one` | 2026-01-02, abc | passed | 7 |", "| `test_a.py::two` | 2026-01-02, abc | failed | 8 |"
    reports = [
        ("passed", _report("test_a.py::two")),
        ("passed", _report("test_a.py::two", when="setup")),
        ("error", _report("test_b.py::new", when="setup")),
    ]
    page = record("\n".join(old), reports, "2026-03-04, def")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        old[0],
        "| `test_a.py::two` | 2026-03-04, def | passed | 12 |",
        "| `test_b.py::new` | 2026-03-04, def | error | 12 |",
    ]
    assert record(page, [], "") == page


def test_the_page_is_as_it_is_written() -> None:
    page = RECORD.read_text()
    assert record(page, [], "") == page


@pytest.mark.parametrize(
    ("markexpr", "marks", "kept"),
    [
        ("long", ("long",), True),
        ("example", ("example",), True),
        ("(e2e or example) and not long", ("example",), True),
        ("(e2e or example) and not long", ("e2e",), False),
        ("e2e and not long", ("example",), False),
        ("not e2e and not example and not long", (), False),
        ("", ("long", "example"), False),
    ],
)
def test_what_is_recorded(markexpr: str, marks: tuple[str, ...], *, kept: bool) -> None:
    assert recorded(markexpr, _report("test_a.py::one", *marks)) is kept
