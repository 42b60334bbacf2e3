"""The shipped splits (YAML)."""
