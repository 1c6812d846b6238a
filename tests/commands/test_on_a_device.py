"""compare, show and splice on an accelerator, which is simulated: nothing mixes devices, and figures are those of the CPU."""

import pytest
import torch
from simulated_device import NAME, simulated_device

import sae_lm
from sae_lm.commands.compare import compare
from sae_lm.commands.show import show
from sae_lm.commands.train import train
from sae_lm.errors import SettingsError
from sae_lm.settings import CompareSettings, ShowSettings, TrainSettings

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    settings = {"hook": "blocks.1.hook_out", "d_sae": 48, "k": 4, "tokens": 3000, "batch_size": 64, "held_out": 0.5,
                "matmul": "float32"}  # fmt: skip
    arms = "none,max_cos:0.5@arch=matryoshka,none@arch=relu"
    return train(TrainSettings(store=tiny_store, arms=arms, seeds=2, lr=3e-3, dead_after=500, out=out, **settings))


def test_compare_measures_on_a_device_what_it_measures_on_the_cpu(runs, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lm.pages.figures.write_figures", lambda report, folder: [])
    values = {"runs": runs, "min_words": 1, "probe_gate": 0.5, "per_type": 20, "contextual": False, "model": str(tiny_model),
              "ce_contexts": 8}  # fmt: skip
    with simulated_device():
        there = compare(CompareSettings(out=tmp_path / "there", device=NAME, **values))
    here = compare(CompareSettings(out=tmp_path / "here", device="cpu", **values))
    for arm, entry in here["arms"].items():
        for key, figures in entry["values"].items():
            if key not in ("composition_rate", "composition_null"):  # of a training of its own
                expected, got = (
                    [float("nan") if value is None else value for value in values]
                    for values in (figures, there["arms"][arm]["values"][key])
                )
                assert got == pytest.approx(expected, rel=0.02, abs=0.02, nan_ok=True), f"{arm} {key}"
    assert here["concepts"] and len(here["concepts"]) == len(there["concepts"])


def test_compare_is_refused_on_a_device_without_float64_before_anything_is_read(tmp_path):
    with simulated_device(float64=False), pytest.raises(SettingsError, match="'simulated' has no float64"):
        compare(CompareSettings(runs=tmp_path / "nowhere", out=tmp_path / "report", device=NAME))


def test_compare_beside_other_processes_is_refused_in_a_sentence(runs, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="started by torchrun beside other processes"):
        compare(CompareSettings(runs=runs, out=tmp_path / "report", device="cpu"))
    assert not (tmp_path / "report").exists()


def test_show_writes_the_page_on_a_device_that_it_writes_on_the_cpu(runs, tiny_store, tmp_path):
    values = {"sae": str(runs / "none-seed0"), "store": str(tiny_store), "tokens": 500}
    with simulated_device():
        there = show(ShowSettings(out=tmp_path / "there.html", device=NAME, **values)).stat().st_size
    here = show(ShowSettings(out=tmp_path / "here.html", device="cpu", **values)).stat().st_size
    assert there == pytest.approx(here, rel=0.01)


def test_an_sae_and_a_model_on_a_device_take_rows_and_ids_as_a_store_gives_them(runs, tiny_model, tiny_store):
    """As README's example does: both are on a GPU where there is one, rows and token ids are on the CPU."""
    store, folder = sae_lm.open_store(tiny_store), runs / "max_cos_0.5@arch=matryoshka-seed0"
    tokens, x = store.blocks(0, 4).long(), store.rows("blocks.1.hook_out", 100, 110)
    figures = {}
    with simulated_device():
        for where, at in ((NAME, NAME), (NAME, "cpu"), ("cpu", NAME), ("cpu", "cpu")):
            model, sae = sae_lm.load_model(str(tiny_model), device=where), sae_lm.load(folder, device=at)
            z = sae.encode(x)
            assert z.device.type == at
            losses = [float(sae.decode(z).sum()), float(sae(x).sum())]
            with sae_lm.splice(model, sae, keep=store.special(tokens)) as latents:
                losses.append(model(tokens, return_type="loss").item())
                with latents.hooks(fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))]):
                    losses.append(model(tokens, return_type="loss").item())
            steering = sae_lm.Steer(3, "clamp", 2.0, largest=1.0)
            logits, cache = sae_lm.run_with_cache(model, tokens, sae, steering=steering)
            figures[where, at] = [
                *losses,
                float(logits.sum()),
                float(sum(value.float().sum() for value in cache.values())),
            ]
    for places, values in figures.items():
        assert values == pytest.approx(figures["cpu", "cpu"], rel=1e-3, abs=1e-3), places
