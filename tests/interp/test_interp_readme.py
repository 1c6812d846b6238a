"""The Python blocks of sae_lm/interp/README.md run, one after the other, as a reader would paste them."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.transformer_lens_3

README = Path(__file__).parents[2] / "sae_lm" / "interp" / "README.md"


def test_the_documents_blocks_run_and_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, "README.md", "exec"), space)
    assert not torch.allclose(space["logits"], space["without"])
    assert space["acts"].shape == (2, space["tokens"].shape[1], 256)
    assert space["plain"] != space["steered"] and space["plain"].startswith(space["prompt"])
    assert len(space["exact"]) == 5 and space["agreement"].correlation > 0.3
    assert len(space["effect"].promoted) == 5
