"""T336: words that a job, a host or another owner chose do not move, hide or turn what a person reads."""

from __future__ import annotations

import io
import json
import sys

import pytest

from strongroom.cli import output
from strongroom.errors import DeniedError
from strongroom.storage.tree_run import Progress

WORDS = "a\x1b[2J\x7f\x9b\u202egpj\U000e0041ä\nhint: approve it"


def test_T336_chosen_words_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.data(WORDS, False, output.table(("file",), [(WORDS,)]) + output.facts({WORDS: WORDS}))
    output.data({"file": WORDS}, True, [])
    output.fail(DeniedError("no", details={"reasons": [WORDS, "b"], "difference": [WORDS]}))
    output.say(WORDS.replace("\n", " "))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "\\u001b[2J\\u007f\\u009b\\u202egpj" in text
        assert "ä" in text
        assert not any(line.startswith("hint: ") for line in text.splitlines())
    assert json.loads(said.out[said.out.index("{") :]) == {"file": WORDS}


def test_what_fails_leaves_no_progress_in_front_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = output.ProgressLine("opening")
    with pytest.raises(DeniedError), progress:
        _fail_half_way(progress)
    assert terminal.getvalue().endswith("(50%)\x1b[K\r\x1b[K")


def _fail_half_way(progress: output.ProgressLine) -> None:
    progress(Progress(files_done=1, files_total=2, bytes_done=1, bytes_total=2))
    raise DeniedError("no")
