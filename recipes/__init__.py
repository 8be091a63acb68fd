"""The rows of the README's table, each a small file of flags: python -m recipes NAME."""
