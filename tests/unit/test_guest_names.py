"""NameTree against a plain set of paths."""

from hypothesis import given
from hypothesis import strategies as st

from strongroom.guest.names import NameTree

# A name is a file or a folder, never both, as on disk.
PATHS = st.lists(st.sampled_from(["a", "b/c", "b/d/e", "b/d/f", "g/h/i/j", "g/k"]))


@given(PATHS, PATHS)
def test_what_is_added_and_not_discarded_is_there(added: list[str], discarded: list[str]) -> None:
    tree, paths = NameTree(added), set(added) - set(discarded)
    for path in discarded:
        tree.discard(path)
    assert sorted(tree.below("")) == sorted(paths)
    for folder in ("", "b", "b/d", "g/h", "nowhere"):
        start = folder + "/" if folder else ""
        names = {p[len(start) :].split("/")[0] for p in paths if p.startswith(start)}
        assert tree.children(folder) == names
        assert sorted(tree.below(folder)) == sorted(p for p in paths if p.startswith(start))
    for path in paths:
        assert tree.below(path) == [path]
        assert not tree.is_folder(path)
