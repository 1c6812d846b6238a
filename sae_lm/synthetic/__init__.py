"""Train many small SAEs on synthetic worlds whose features are known, and score what they find."""
