"""sdm: semi-supervised segmentation of medical scans with few labels (S&D Messenger)."""

__version__ = "0.1.0"
