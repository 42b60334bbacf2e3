"""Scans to slices: reading, geometry, normalisation, the store, training pairs. Knows no network."""
