"""The input files that PySpark's example programs expect.

The package ships `data/` but not `examples/src/main/resources`. The small files there are public and well known; they
are written here again, so that a run needs no network. `kv1.txt` and everything under `inputs/` is made up;
`dir1/file3.json` is left out, because sql/datasource.py of PySpark 4.3 stops at it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet

__all__ = ["write_inputs"]

_PEOPLE = ("Michael", None), ("Andy", 30), ("Justin", 19)
_USERS = {
    "name": pa.array(["Alyssa", "Ben"]),
    "favorite_color": pa.array([None, "red"], pa.string()),
    "favorite_numbers": pa.array([[3, 9, 15, 20], []], pa.list_(pa.int32())),
}
_TEXTS = {
    "people.txt": "Michael, 29\nAndy, 30\nJustin, 19\n",
    "people.csv": "name;age;job\nJorge;30;Developer\nBob;32;Developer\n",
    "people.xml": "<people>\n"
    + "".join(
        f"  <person>\n    <name>{name}</name>\n" + (f"    <age>{age}</age>\n" if age else "") + "  </person>\n"
        for name, age in _PEOPLE
    )
    + "</people>\n",
    "employees.json": '{"name":"Michael", "salary":3000}\n{"name":"Andy", "salary":4500}\n',
}


def write_inputs(data: Path, root: Path) -> None:
    """Make `root`/data and `root`/examples/src/main/resources, the two folders that the programs name.

    Args:
        data: PySpark's own `data` folder.
        root: The programs' working folder.
    """
    shutil.copytree(data, root / "data")
    folder = root / "examples/src/main/resources"
    (folder / "dir1/dir2").mkdir(parents=True)
    for name, text in _TEXTS.items():
        (folder / name).write_text(text)
    lines = [json.dumps({"name": name} | ({"age": age} if age else {})) for name, age in _PEOPLE]
    (folder / "people.json").write_text("\n".join(lines) + "\n")
    (folder / "kv1.txt").write_text("".join(f"{k}\x01val_{k}\n" for k in (i * 37 % 250 for i in range(500))))
    users = pa.table(_USERS)
    pyarrow.parquet.write_table(users, folder / "users.parquet")
    pyarrow.orc.write_table(users, folder / "users.orc")
    for name in ("dir1/file1.parquet", "dir1/dir2/file2.parquet"):
        pyarrow.parquet.write_table(pa.table({"file": [Path(name).name]}), folder / name)
    made = root / "examples/inputs"
    made.mkdir()
    (made / "numbers.txt").write_text("".join(f"{i * 7919 % 1009} {i * 31 % 97}\n" for i in range(500)))
    points = [[(-1) ** i, *(((i * 13 + j * 7) % 23) / 10 + (-1) ** i for j in range(10))] for i in range(200)]
    (made / "points.txt").write_text("".join(" ".join(map(str, point)) + "\n" for point in points))
    words = ["china", "japan", "india", "trade", "river", "mountain", "city", "north", "south", "east"]
    (made / "words.txt").write_text(
        "".join(" ".join(words[(i * 3 + j * (1 + i % 4)) % 10] for j in range(12)) + "\n" for i in range(200))
    )
