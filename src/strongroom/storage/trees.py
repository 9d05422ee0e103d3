"""Whole data sets: seal a folder into one, open it, verify it, move it to a newer key version."""

from strongroom.storage.tree_read import open_tree, verify_tree
from strongroom.storage.tree_run import OnProgress, Progress, TreeResult
from strongroom.storage.tree_write import reseal_tree, seal_tree

__all__ = ["OnProgress", "Progress", "TreeResult", "open_tree", "reseal_tree", "seal_tree", "verify_tree"]
