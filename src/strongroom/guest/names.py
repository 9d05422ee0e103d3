"""File names by folder, so that a listing costs what the folder holds, not what the volume holds."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["NameTree"]


class NameTree:
    """Relative paths of files; folders are there as long as something is below them.

    Args:
        paths: What it holds at first.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._folders: dict[str, set[str]] = {"": set()}
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Hold `path` from now on."""
        while path:
            folder, _, name = path.rpartition("/")
            names = self._folders.setdefault(folder, set())
            if name in names:
                return
            names.add(name)
            path = folder

    def discard(self, path: str) -> None:
        """Forget the file at `path`, and folders that are empty now."""
        while path and path not in self._folders:
            folder, _, name = path.rpartition("/")
            names = self._folders.get(folder, set())
            names.discard(name)
            if names or not folder:
                return
            self._folders.pop(folder, None)
            path = folder

    def is_folder(self, path: str) -> bool:
        """Return whether something lies below `path`."""
        return path in self._folders

    def children(self, folder: str) -> set[str]:
        """Return the names directly in `folder`."""
        return self._folders.get(folder, set())

    def below(self, path: str) -> list[str]:
        """Return the files at and below `path`."""
        if path not in self._folders:
            folder, _, name = path.rpartition("/")
            return [path] if name in self.children(folder) else []
        found: list[str] = []
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            for name in self._folders[folder]:
                child = f"{folder}/{name}" if folder else name
                (waiting if child in self._folders else found).append(child)
        return found
