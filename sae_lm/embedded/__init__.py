"""The embedded default: a small language model and the text every CPython already carries."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""Hugging Face folder of the embedded model; its README.md is the model's card."""
