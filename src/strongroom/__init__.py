"""Strongroom runs unmodified data and machine-learning programs inside trusted execution environments."""

__version__ = "0.1.0"
__all__ = ["__version__"]
