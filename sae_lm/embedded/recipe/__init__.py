"""How the embedded model was trained and its model card written; for maintainers."""
