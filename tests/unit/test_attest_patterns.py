from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.attest.patterns import MAX_PATTERN_CHARS, MAX_TEXT_CHARS, compile_pattern
from strongroom.errors import InputError

ATOMS = st.sampled_from(["a", "b", "-", ".", r"\d", r"\w", r"\.", "[ab]", "[^a]", "[a-c_]", r"[\d-]", "é"])
COUNTS = st.sampled_from(["", "", "?", "*", "+", "{2}", "{0,2}", "{1,}", "{1,3}", "{0}"])
PATTERN = st.lists(st.builds(str.__add__, ATOMS, COUNTS), max_size=6).map("".join)


@given(pattern=PATTERN, text=st.text("abc1-._é\n", max_size=8))
def test_it_means_what_re_means(pattern: str, text: str) -> None:
    assert compile_pattern(pattern).matches(text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d{4}-\d\d-\d\d", ["2026-03-01"], ["2026-3-01", "2026-03-01\n", " 2026-03-01", ""]),
        ("2026-[0-9]{2}", ["2026-03"], ["2026-3", "2026-033"]),
        (".*", ["", "x" * MAX_TEXT_CHARS], ["x" * (MAX_TEXT_CHARS + 1), "a\nb"]),
        ("", [""], ["a"]),
        ("s3://bucket/[a-z0-9/]+", ["s3://bucket/a/b"], ["s3://bucket/", "s3://other/a", "s3://bucket/A"]),
    ],
)
def test_patterns_of_every_day(pattern: str, good: list[str], bad: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [t for t in good if not compiled.matches(t)] == []
    assert [t for t in bad if compiled.matches(t)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        *["(a)", "(a+)+", "a|b", "^a", "a$", r"\1", r"\b", r"\A", r"\x41", "*", "a**", "a*?", "a*+", "a+?", "a{2}{2}"],
        *["a{2,1}", "a{,2}", "a{", "}", "[", "[]", "[a", "]", "[[a]]", "[z-a]", "[a--b]", "[a&&b]", "(?i)a", "\\"],
        *["a" * (MAX_PATTERN_CHARS + 1), "a{9999}", "a{300}b{300}"],
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError):
            compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a?" * 60 + "a" * 60, "a" * 59),
        ("a*" * 128, "a" * 1023 + "b"),
        (".*" * 127 + "b", "a" * 1024),
        ("a{0,500}b", "a" * 1024),
        ("[ab]{0,9}" * 28, "a" * 1024),
        ("".join(f"[{chr(0x4E00 + n)}x]" for n in range(64)), "".join(chr(0x3000 + n) for n in range(1024))),
    ],
)
def test_T165_no_pattern_and_no_argument_costs_much(pattern: str, text: str) -> None:
    started = time.process_time()
    assert not compile_pattern(pattern).matches(text)
    assert time.process_time() - started < 1
