"""Whatever is written, a full disk is one sentence and leaves nothing half-written; one case for each library that writes."""

import signal
from contextlib import contextmanager

import pytest
from fuzz_targets import _group

import sae_lm
from sae_lm.errors import HubError, SaeLmError
from sae_lm.hub.errors import one_sentence
from sae_lm.metrics.stored_codes import store_codes
from sae_lm.runtime.files import write_json
from sae_lm.sae.export import export
from sae_lm.settings import ExportSettings
from sae_lm.training.state import write_checkpoint

resource = pytest.importorskip("resource")


@contextmanager
def disk_of(bytes_of_a_file):
    """Inside, no file may be longer: the system refuses the rest as it does on a full disk, by another number."""
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def _checkpoint(out, sae, store):
    group, trainers, recipe = _group()
    write_checkpoint(group, trainers, out, recipe, 5)


def _delphi(out, sae, store):
    sae_lm.export(
        ExportSettings(sae=str(sae), to="delphi", store=str(store), codes=out.parent / "codes", device="cpu", out=out)
    )


WRITES = {
    "saelens": lambda out, sae, store: export(sae_lm.load(sae, "cpu"), "saelens", out),
    "dictionary_learning": lambda out, sae, store: export(sae_lm.load(sae, "cpu"), "dictionary_learning", out),
    "sparsify": lambda out, sae, store: export(sae_lm.load(sae, "cpu"), "sparsify", out),
    "a checkpoint": _checkpoint,
    "codes": lambda out, sae, store: store_codes(
        sae_lm.open_store(store), "blocks.1.hook_resid_post", sae_lm.load(sae, "cpu"), 0, 1500, out
    ),
    "json": lambda out, sae, store: write_json(out / "a.json", ["x" * 100] * 100),
    "delphi": _delphi,
}


@pytest.fixture(scope="module")
def sae_of_the_store(tmp_path_factory):
    from hand_made import random_sae

    from sae_lm.sae.formats.saelens import save

    folder = tmp_path_factory.mktemp("saes") / "sae"
    save(random_sae(16, 64, 3, 0, hook_name="blocks.1.hook_resid_post", model_name="tiny-gpt2"), folder)
    return folder


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(what, sae_of_the_store, tiny_store, tmp_path):
    with disk_of(700), pytest.raises(SaeLmError, match="cannot be written, the disk is full") as caught:
        WRITES[what](tmp_path / "out", sae_of_the_store, tiny_store)
    assert "\n" not in str(caught.value)
    left = files(tmp_path)
    WRITES[what](tmp_path / "out", sae_of_the_store, tiny_store)  # the same again goes on
    whole = files(tmp_path)
    assert whole and left.items() < whole.items(), left.keys()


def test_a_full_disk_under_a_download_is_not_called_a_hub_out_of_reach():
    with (
        pytest.raises(HubError, match=r"fetching a failed: the disk is full.*free some room"),
        one_sentence("fetching a", "me/acts"),
    ):
        try:
            raise OSError(28, "No space left on device")
        except OSError as problem:
            raise RuntimeError("the download ended early") from problem
