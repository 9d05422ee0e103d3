"""A Python program in a process that has files of its own, as under Gramine, where memory file systems are not shared.

The guest hands this process every volume over a pipe before the program starts, and takes those that it may write to
back after it has ended well. No key comes here. Started by path, not imported, by the program's own interpreter:
standard library only, and nothing of the package is imported, for the program may import another part of it.

Stream: per file or folder a line of JSON `{"path", "size"}` and that many bytes (a folder has size -1, anything else
that is no file -2), then `{"end": true}`, or `{"error"}` where the rest could not be read. A link to a file of its
volume is that file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

__all__ = ["main", "receive_files", "send_files"]

_BLOCK = 1 << 20
_MAX_LINE = 1 << 16
_MAX_ERROR = 200


def send_files(root: Path, names: list[str], stream: BinaryIO) -> None:
    """Write what is below `root`/`names` to the stream; OSError if a folder or file there cannot be read."""
    for name in names:
        for folder, folders, files in os.walk(root / name, onerror=_fail):
            folders.sort()
            inside = os.path.relpath(folder, root)
            _line(stream, {"path": inside, "size": -1})
            for file in (*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))):
                path = os.path.realpath(os.path.join(folder, file))
                if not os.path.isfile(path) or not path.startswith(f"{os.path.realpath(root / name)}/"):
                    _line(stream, {"path": f"{inside}/{file}", "size": -2})
                    continue
                with open(path, "rb") as source:
                    size = os.fstat(source.fileno()).st_size
                    _line(stream, {"path": f"{inside}/{file}", "size": size})
                    _copy(source, stream, size)
    _line(stream, {"end": True})


def _fail(error: OSError) -> None:
    raise error  # else what is in the folder would be taken for removed


def receive_files(root: Path, names: list[str], stream: BinaryIO) -> list[str]:
    """Make `root`/`names` hold what the stream says and nothing else; return the paths of what is no file there.

    Raises:
        ValueError: The stream is not whole, leads elsewhere, or has a path twice; or what kept its other side from it.
    """
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
    left: list[str] = []
    while True:
        raw = stream.readline(_MAX_LINE)
        item = json.loads(raw) if raw.endswith(b"\n") else None
        if item == {"end": True}:
            if any(os.path.lexists(root / path) for path in left):
                raise ValueError("the stream has a path twice")
            return left
        if isinstance(item, dict) and isinstance(item.get("error"), str):
            raise ValueError(ascii(item["error"])[1:-1][:_MAX_ERROR])  # the program's word, in the host's report
        if not isinstance(item, dict) or not isinstance(item.get("path"), str) or type(item.get("size")) is not int:
            raise ValueError("the stream is not whole")
        path, size = str(item["path"]), int(item["size"])
        parts = path.split("/")
        if parts[0] not in names or {"", ".", ".."} & set(parts) or "\0" in path or (len(parts) == 1 and size != -1):
            raise ValueError("the stream leads elsewhere")
        if size == -1:
            (root / path).mkdir(parents=True, exist_ok=True)
        elif size < 0:
            left.append(path)
        else:
            with open(root / path, "xb") as target:
                _copy(stream, target, size)


def _line(stream: BinaryIO, value: object) -> None:
    stream.write(json.dumps(value).encode() + b"\n")


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, _BLOCK))
        if not block:
            raise ValueError("the stream is not whole")
        target.write(block)
        size -= len(block)


def main(words: list[str]) -> None:
    """Receive, run the program, send back, and end with the program's exit code.

    Args:
        words: Descriptors to read from and to write to, the volumes and those to send back as JSON lists, whether a
            failed program's outputs count, then the program's command.
    """
    source, back, all_names, written, always, _python, *command = words
    root = Path.cwd()
    with open(int(source), "rb") as stream:
        receive_files(root, json.loads(all_names), stream)
    os.set_inheritable(int(back), False)
    code = _run(command)
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does: threads of the program may write yet
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0 or always == "true":
        with contextlib.suppress(OSError), open(int(back), "wb") as out:  # OSError: nobody reads any more
            _send_back(root, json.loads(written), out)
    os._exit(code)


def _send_back(root: Path, names: list[str], out: BinaryIO) -> None:
    try:
        send_files(root, names, out)
    except (OSError, ValueError, RecursionError) as exc:
        at = getattr(exc, "filename", None)
        what = os.path.relpath(at, root)[:100] if isinstance(at, (str, Path)) else "a file or folder"
        _line(out, {"error": f"{what} cannot be read: {getattr(exc, 'strerror', None) or exc}"})


def _run(command: list[str]) -> int:
    inline = command[0] == "-c"
    sys.argv = ["-c", *command[2:]] if inline else command
    sys.path[0] = "" if inline else os.path.dirname(command[0])
    try:
        if inline:
            scope = {"__name__": "__main__", "__builtins__": __builtins__}
            exec(compile(command[1], "<string>", "exec"), scope)  # noqa: S102  # the job's own, measured
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return (exc.code or 0) & 0xFF
        print(exc.code, file=sys.stderr)  # noqa: T201  # as the interpreter does
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
