"""An SAE on a disk that does not let it be read is not called damaged."""

import pytest

import sae_lm
from sae_lm.commands.verify import verify
from sae_lm.errors import SaeError
from sae_lm.sae.formats import saelens
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.tensors import read_safetensors


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError(19, "No such device"), "the disk cannot map files into memory"),
        (PermissionError(13, "Permission denied"), "permission is denied"),
    ],
)
def test_an_sae_that_the_disk_does_not_give_is_not_called_damaged(make_sae, tmp_path, monkeypatch, problem, words):
    save(make_sae("topk"), tmp_path / "sae")

    def fail(*arguments, **keywords):
        raise problem

    monkeypatch.setattr(saelens, "safe_open", fail)
    monkeypatch.setattr("sae_lm.sae.tensors.load_file", fail)
    says = f"sae_weights.safetensors cannot be read, {words}; mend that, or copy the SAE to another disk"
    for read in (
        lambda: sae_lm.load(tmp_path / "sae"),
        lambda: verify(tmp_path / "sae"),
        lambda: read_safetensors(tmp_path / "sae" / "sae_weights.safetensors"),
    ):
        with pytest.raises(SaeError, match=says):
            read()
