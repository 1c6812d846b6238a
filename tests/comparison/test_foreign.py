"""SAEs of other programs are measured side by side, and nothing is claimed of what they do not say."""

import json
from types import SimpleNamespace

import pytest

from sae_lm.commands.compare import compare
from sae_lm.comparison import measure
from sae_lm.comparison.foreign import MEASURED, first_measured, is_foreign, read_foreign
from sae_lm.data.store import Store, open_store
from sae_lm.errors import SaeError
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.settings import CompareSettings

pytestmark = pytest.mark.transformer_lens_3

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def folder(make_sae, tmp_path):
    for name, d_sae in (("one", 32), ("deep/two", 48)):
        save(named(make_sae("standard", d_in=16, d_sae=d_sae)), tmp_path / "saes" / name)
    return tmp_path / "saes"


def named(sae, hook=HOOK):
    config = SaeConfig(**{**vars(sae.config), "metadata": {"hook_name": hook} if hook else {}})
    return SAE(config, dict(sae.named_parameters()))


@pytest.fixture
def settings(folder, tiny_store, tmp_path):
    def make(**changes):
        return CompareSettings(
            **{
                "runs": folder,
                "store": tiny_store,
                "out": tmp_path / "report",
                "model": "none",
                "min_words": 1,
                **changes,
            }
        )

    return make


def test_saes_at_all_depths_are_arms_of_their_own_and_one_seed(settings, folder):
    assert is_foreign(folder) and not is_foreign(folder / "nowhere")
    runs = read_foreign(settings())
    assert [arm.name for arm in runs.arms] == ["deep/two", "one"] and runs.seeds == [0]
    assert [run.load("cpu").config.d_sae for run in runs.by_key.values()] == [48, 32]
    assert "They are of several widths" in " ".join(runs.partial)
    assert read_foreign(settings(baseline="one")).arms[0].name == "one"


def test_a_report_has_their_figures_and_no_claim(settings, tmp_path):
    report = compare(settings())
    assert list(report["arms"]) == ["deep/two", "one"]
    for arm in report["arms"].values():
        assert arm["values"]["fvu"][0] > 0 and arm["values"]["l0"][0] > 0
        assert arm["values"]["start_cos"] == [None], "their random start is not known"
        assert arm["k"] is None
    assert {difference["verdict"] for difference in report["differences"]} == {"no claim"}
    assert report["partial"][0].startswith(
        "These SAEs are of other programs or runs: how they were trained is not known"
    )
    assert "not known" in (tmp_path / "report" / "report.html").read_text()


def test_saes_of_several_widths_are_projected_at_one_n_which_is_above_their_l0(settings, folder, make_sae, monkeypatch):
    for name, d_sae, k in (("one", 32, 3), ("deep/two", 80, 3), ("dense", 80, 5)):
        save(named(make_sae("topk", d_in=16, d_sae=d_sae, k=k)), folder / name)
    monkeypatch.setattr(measure, "nth_decoder_projection", lambda sae, x, n: float(n))
    arms = compare(settings())["arms"]
    assert {name: arm["values"]["nth_projection"] for name, arm in arms.items()} == {
        "deep/two": [4.0],
        "dense": [None],
        "one": [4.0],
    }


def trained_here(sae, store, start):
    """As sae-lm train writes it: with the place in its store where its training rows end."""
    context, row = start
    training = {"store_id": store.manifest.id, "held_out_from_context": context, "held_out_from_row": row}
    return SAE(
        SaeConfig(**vars(sae.config) | {"metadata": {"hook_name": HOOK, "training": training}}),
        dict(sae.named_parameters()),
    )


def starts(runs):
    return {(run.training["held_out_from_context"], run.training["held_out_from_row"]) for run in runs.by_key.values()}


def test_rows_that_an_sae_was_trained_on_are_not_measured(settings, folder, make_sae, tiny_store):
    store = open_store(tiny_store)
    assert starts(read_foreign(settings())) == {store.held_out_from(MEASURED)}
    told = "Whether they were trained on this text is not known either"
    assert any(said.startswith(told) for said in read_foreign(settings()).partial)
    for name, held_out in (("ours", 0.3), ("ours too", 0.5)):
        save(trained_here(make_sae(d_in=16), store, store.held_out_from(held_out)), folder / name)
    runs = read_foreign(settings())
    assert starts(runs) == {store.held_out_from(0.3)}, "where all of them have rows that are new"
    assert any(said.startswith("Whether deep/two, one were trained on this text is not known") for said in runs.partial)
    assert runs.training["held_out_from_row"] == store.held_out_from(0.3)[1]


def test_of_saes_that_all_say_what_they_were_trained_on_nothing_is_unknown(settings, folder, make_sae, tiny_store):
    store = open_store(tiny_store)
    for name in ("one", "deep/two"):
        save(trained_here(make_sae(d_in=16), store, store.held_out_from(0.3)), folder / name)
    assert not any("on this text" in said for said in read_foreign(settings()).partial)


@pytest.mark.parametrize("contexts", [1, 2, 3, 9, 10, 11, 19, 200])
def test_before_what_is_measured_there_is_a_context_for_the_mean_row(contexts):
    store = Store.__new__(Store)
    store.manifest, store._first_row_of = SimpleNamespace(contexts=contexts), lambda context: 7 * context
    before = 0 if contexts == 1 else max(1, int(contexts * (1 - MEASURED)))
    assert first_measured(store, []) == (before, 7 * before)


def test_what_cannot_be_measured_is_left_out_and_told(settings, folder, make_sae):
    save(named(make_sae("standard", d_in=6, d_sae=10)), folder / "narrow")
    save(named(make_sae("standard", d_in=16, d_sae=10), hook=None), folder / "nameless")
    (folder / "broken").mkdir()
    (folder / "broken" / "cfg.json").write_text(json.dumps({"architecture": "standard"}))
    runs = read_foreign(settings())
    told = " ".join(runs.partial)
    assert [arm.name for arm in runs.arms] == ["deep/two", "one"]
    assert "narrow is left out: its d_in is 6, the store's blocks.1.hook_out has width 16." in told
    assert "nameless is left out: " in told and "broken is left out: " in told
    with_hook = read_foreign(settings(hook="1"))
    assert [arm.name for arm in with_hook.arms] == ["deep/two", "nameless", "one"]


def test_saes_of_several_hooks_need_one_named(settings, folder, make_sae):
    save(named(make_sae("standard", d_in=16, d_sae=10), hook="blocks.0.hook_resid_post"), folder / "early")
    with pytest.raises(SaeError, match=r"SAEs of several hooks .*blocks.0.hook_out: early.*; name one with --hook"):
        read_foreign(settings())
    runs = read_foreign(settings(hook="blocks.1.hook_out"))
    assert [arm.name for arm in runs.arms] == ["deep/two", "one"]
    assert "early is left out: it is for blocks.0.hook_out." in runs.partial


def test_what_is_missing_or_misspelt_is_one_sentence(settings, folder):
    with pytest.raises(SaeError, match="holds SAEs of other programs, which name no store; give one with --store"):
        read_foreign(settings(store=None))
    with pytest.raises(SaeError, match="holds no SAE 'oen'; expected 'one'"):
        read_foreign(settings(baseline="oen"))
    for config in folder.rglob("cfg.json"):
        config.write_text("{")
    with pytest.raises(SaeError, match="holds no SAE that can be measured: deep/two is left out"):
        read_foreign(settings())
