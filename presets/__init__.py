"""The shipped presets (YAML)."""
