"""The page of latents, made of a store and SAEs whose answers are known by hand."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import CONTEXTS, HOOK, WORDS, random_contexts, random_sae, write_sae, write_store
from latents_page import LatentsPage

from sae_lm.commands.show import show, spread_latents
from sae_lm.data.store import open_store
from sae_lm.errors import ModelError, SaeError, SettingsError
from sae_lm.interp.max_activating import fitting_hook
from sae_lm.pages import latents as latents_module
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.settings import ShowSettings

show_module = importlib.import_module("sae_lm.commands.show")


@pytest.fixture
def settings(tmp_path: Path) -> ShowSettings:
    write_store(tmp_path / "store", CONTEXTS)
    write_sae(tmp_path / "sae")
    return ShowSettings(sae=str(tmp_path / "sae"), store=tmp_path / "store", out=tmp_path / "page" / "latents.html")


def places(page: Path, latent: int, group: str = "top") -> list[tuple[float, int, int]]:
    """(activation, context, position) of each line of a group."""
    return [(line.value, line.context, line.position) for line in LatentsPage(page).lines(latent)[group]]


def test_a_latents_contexts_are_those_known_by_hand_strongest_first(settings: ShowSettings) -> None:
    assert show(settings.model_copy(update={"latents": (1,)})) == settings.out
    # " cat" stands in contexts 0, 2, 3, 4; rows grow with the context, equals are told by the first
    assert places(settings.out, 1) == [(2.0, 4, 3), (1.75, 3, 3), (1.5, 2, 1), (1.0, 0, 1)]
    page = LatentsPage(settings.out)
    assert (page.column("count", 1), page.head["rows"], page.column("max", 1)) == (6, 25, 2.0)
    top = page.lines(1)["top"]
    assert [line.document for line in top] == [2, 1, 1, 0]
    assert top[0].window.count(" cat") == 1 and top[0].levels[0][0] == 1.0
    assert page.label(1) == "token “ cat”" and (page.column("precision", 1), page.column("recall", 1)) == (1.0, 1.0)
    rows = open_store(settings.store).tokens()["token_id"]
    drawn = [line.row for line in page.lines(1)["random"]]
    assert len(drawn) == 5 and {int(rows[row]) for row in drawn} == {1}
    fifths = [[line.value for line in page.lines(1)[f"fifth {n}"]] for n in range(1, 6)]
    assert sorted(value for fifth in fifths for value in fifth) == [value for fifth in fifths for value in fifth]
    assert sum(map(len, fifths)) == 6


def test_a_line_shows_the_text_around_shaded_and_with_visible_line_breaks(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1,)}))
    line = LatentsPage(settings.out).lines(1)["top"][2]
    assert line.window == ["<bos>", " cat", "↵", " dog", "⟨202E⟩⟨0007⟩", " cat"]
    assert {offset: round(level, 2) for offset, level in line.levels[0].items()} == {0: 0.75, 4: 0.75}


def test_the_window_is_24_tokens_before_and_8_after_within_the_context(tmp_path: Path) -> None:
    ids = [0, *[2] * 29, 1, *[2] * 20]
    write_store(tmp_path / "store", [ids, [0, *[2] * 50]])
    write_sae(tmp_path / "sae")
    show(ShowSettings(sae=str(tmp_path / "sae"), store=tmp_path / "store", latents=(1,), out=tmp_path / "p.html"))
    (line,) = LatentsPage(tmp_path / "p.html").lines(1)["top"]
    assert line.window == [" dog"] * 24 + [" cat"] + [" dog"] * 8


def test_only_the_last_rows_asked_for_are_searched(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1, 6), "tokens": 7}))
    page = LatentsPage(settings.out)
    assert places(settings.out, 1) == [(2.0, 4, 3)]
    assert "7, the last of 25" in page.html and page.head["rows"] == 7
    assert page.column("count", 6) == 0 and not any(page.lines(6).values())


def test_on_a_single_row_no_concept_is_read(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"tokens": 1}))
    head = LatentsPage(settings.out).head
    assert head["rows"] == 1 and not head["concepts"]


def test_the_number_of_contexts_is_at_most_what_was_asked_for(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1,), "contexts": 2}))
    assert [context for _, context, _ in places(settings.out, 1)] == [4, 3]


def test_the_default_latents_are_all_that_fire_or_many_spread_evenly_in_order(
    settings: ShowSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(settings)
    assert LatentsPage(settings.out).latents() == [1, 2, 3, 4, 5, 6]  # 0 is BOS, which has no row
    monkeypatch.setattr(show_module, "LATENTS", 3)
    show(settings)
    assert LatentsPage(settings.out).latents() == [1, 3, 6] == spread_latents([1, 2, 3, 4, 5, 6])
    assert "3 of 6 latents that fire are on this page" in LatentsPage(settings.out).html


def test_latents_named_twice_are_shown_once_in_the_order_given(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (4, 1, 4)}))
    assert LatentsPage(settings.out).latents() == [4, 1]


@pytest.mark.parametrize("latent", [-1, 7])
def test_a_latent_out_of_range_is_refused_with_the_range(settings: ShowSettings, latent: int) -> None:
    with pytest.raises(SettingsError, match=rf"{latent} out of range.* 0 to 6"):
        show(settings.model_copy(update={"latents": (1, latent)}))
    assert not settings.out.exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, r"blocks\.2\.hook_out.*holds blocks\.1\.hook_out"),
        ({"hook_name": None}, r"not say which hook.*holds blocks\.1\.hook_out.*convert with --hook"),
        ({"model_name": "another"}, r"'another'.*'owner/tiny'"),
        ({"model_name": "another", "training": {"store_id": "f" * 64}}, r"'another'.*'owner/tiny'"),
    ],
)
def test_an_sae_of_another_hook_or_model_is_refused(
    settings: ShowSettings, tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    write_sae(tmp_path / "sae", **metadata)
    with pytest.raises(SaeError, match=message):
        show(settings)


def test_an_sae_of_another_width_is_refused(settings: ShowSettings, tmp_path: Path) -> None:
    weights = {"W_enc": torch.zeros(3, 4), "b_enc": torch.zeros(4), "W_dec": torch.zeros(4, 3), "b_dec": torch.zeros(3)}
    save(
        SAE(SaeConfig(architecture="standard", d_in=3, d_sae=4, metadata={"hook_name": HOOK}), weights),
        tmp_path / "sae",
    )
    with pytest.raises(SaeError, match=r"width 3.*width 7"):
        show(settings)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("pythia-70m", "EleutherAI/pythia-70m", True), ("gpt2-small", "openai-community/gpt2", True), ("a", "b", False)],
)
def test_an_sae_fits_a_store_of_its_model_under_its_short_name(
    tmp_path: Path, one: str, other: str, same: bool
) -> None:
    for of_store, of_sae in ((one, other), (other, one)):
        store = write_store(tmp_path / of_store.replace("/", "-"), CONTEXTS)
        store.manifest.recipe.model["id"] = of_store
        sae = write_sae(tmp_path / "sae", model_name=of_sae)
        if same:
            assert fitting_hook("sae", sae, store) == HOOK
        else:
            with pytest.raises(SaeError, match=f"trained on model '{of_sae}', store .* activations of '{of_store}'"):
                fitting_hook("sae", sae, store)


def test_the_store_an_sae_was_trained_on_fits_whatever_its_model_is_called(
    settings: ShowSettings, tmp_path: Path
) -> None:
    store_id = open_store(tmp_path / "store").manifest.id
    write_sae(tmp_path / "sae", model_name="renamed since", training={"store_id": store_id})
    assert show(settings).is_file()


def test_an_sae_that_never_fires_is_told_so(settings: ShowSettings, tmp_path: Path) -> None:
    width = len(WORDS)
    weights = {"W_enc": torch.eye(width), "b_enc": torch.full((width,), -99.0), "W_dec": torch.eye(width)}
    config = SaeConfig(architecture="standard", d_in=width, d_sae=width, metadata={"hook_name": HOOK})
    save(SAE(config, {**weights, "b_dec": torch.zeros(width)}), tmp_path / "sae")
    with pytest.raises(SaeError, match="--latents"):
        show(settings)
    assert show(settings.model_copy(update={"latents": (1,)})).is_file()


def test_a_folder_as_output_is_refused_before_the_search(settings: ShowSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is a folder.*latents\.html"):
        show(settings.model_copy(update={"out": tmp_path}))


def test_hostile_tokens_stand_in_the_page_as_data_that_can_end_nothing(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (4,)}))
    page = LatentsPage(settings.out)
    assert page.html.count("<script") == len(page.blocks) + 1
    assert "<script>document" not in page.html and "&amp;" not in page.html.split("</main>")[1]
    assert page.lines(4)["top"][0].window[-1] == "<script>document.title='ran'</script>"
    assert "\u202e" not in page.html and "\x07" not in page.html


def test_a_large_page_gets_a_folder_of_data_and_a_small_one_again_none(
    settings: ShowSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(settings)
    whole = LatentsPage(settings.out)
    monkeypatch.setattr(latents_module, "PAGE_BYTES", 1000)
    show(settings)
    cut = LatentsPage(settings.out)
    folder = settings.out.with_name("latents_data")
    assert cut.head["folder"] == "latents_data" and sorted(file.name for file in folder.iterdir()) == [
        "a-0.js",
        "c-0.js",
    ]
    assert len(cut.html) < len(whole.html) and all(cut.lines(n) == whole.lines(n) for n in whole.latents())
    monkeypatch.undo()
    show(settings)
    assert not folder.exists() and LatentsPage(settings.out).html == whole.html


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and path.name != "latent_codes"}


def test_a_folder_of_someone_elses_is_left_alone_even_an_empty_one(
    settings: ShowSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, further = settings.out.with_name("latents_data"), settings.out.with_name("latents_data_2")
    further.mkdir(parents=True)
    (further / "mine.txt").write_text("keep")
    folder.mkdir()
    show(settings)
    assert names(settings.out.parent) == {"latents_data", "latents_data_2"}
    monkeypatch.setattr(latents_module, "PAGE_BYTES", 1000)
    show(settings)
    assert LatentsPage(settings.out).head["folder"] == "latents_data_3" and LatentsPage(settings.out).lines(1)["top"]
    assert (further / "mine.txt").read_text() == "keep" and not list(folder.iterdir())
    (settings.out.with_name("latents_data_3") / "mine.txt").write_text("keep")
    monkeypatch.undo()
    show(settings)
    assert (settings.out.with_name("latents_data_3") / "mine.txt").read_text() == "keep"


def test_a_page_takes_no_folder_of_another_page(settings: ShowSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one whose name begins like its own, nor that of a page it was copied from."""
    pages = [settings.out.with_name(f"{name}.html") for name in ("none_latents", "none", "copy")]
    monkeypatch.setattr(latents_module, "PAGE_BYTES", 1000)
    for page in pages[:2]:
        show(settings.model_copy(update={"out": page}))
    shutil.copyfile(pages[1], pages[2])
    assert names(settings.out.parent) == {"none_latents_data", "none_data"}
    monkeypatch.undo()
    show(settings.model_copy(update={"out": pages[2]}))
    assert names(settings.out.parent) == {"none_latents_data", "none_data"}
    show(settings.model_copy(update={"out": pages[1]}))
    assert names(settings.out.parent) == {"none_latents_data"}
    assert LatentsPage(pages[0]).lines(1)["top"]


def test_an_earlier_page_and_its_folder_stay_until_the_new_page_is_there(
    settings: ShowSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents_module, "PAGE_BYTES", 1000)
    show(settings)
    before, lines = settings.out.read_bytes(), LatentsPage(settings.out).lines(1)

    def cut(path: Path, write: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(latents_module, "write_whole", cut)
        with pytest.raises(KeyboardInterrupt):
            show(settings.model_copy(update={"contexts": 1}))
    assert settings.out.read_bytes() == before and LatentsPage(settings.out).lines(1) == lines
    assert names(settings.out.parent) == {"latents_data"}
    show(settings.model_copy(update={"contexts": 1}))
    assert names(settings.out.parent) == {"latents_data_2"} and len(LatentsPage(settings.out).lines(1)["top"]) == 1


def test_codes_lie_beside_the_page_or_where_they_are_wanted(settings: ShowSettings, tmp_path: Path) -> None:
    show(settings)
    assert len(list((settings.out.parent / "latent_codes").glob("*/codes.json"))) == 1
    show(settings.model_copy(update={"codes": tmp_path / "there", "out": tmp_path / "other.html"}))
    assert len(list((tmp_path / "there").glob("*/codes.json"))) == 1 and not (tmp_path / "latent_codes").exists()
    assert LatentsPage(tmp_path / "other.html").blocks == LatentsPage(settings.out).blocks


def test_two_saes_stand_side_by_side_on_the_same_rows(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", random_contexts(40, 9, 0), per_shard=7, scale=0.01)
    for name, seed in (("left", 1), ("right", 2)):
        save(random_sae(len(WORDS), 12, 3, seed), tmp_path / name)
    settings = ShowSettings(
        sae=str(tmp_path / "left"), beside=str(tmp_path / "right"), store=tmp_path / "store", out=tmp_path / "two.html"
    )
    show(settings)
    page = LatentsPage(tmp_path / "two.html")
    assert [of["name"] for of in page.head["saes"]] == ["left", "right"]
    z = [load(tmp_path / name).encode(store.rows(HOOK)) for name in ("left", "right")]
    compared = 0
    for latent in page.latents():
        match = page.column("match", latent)
        assert page.column("status", latent) in ("kept", "split", "merged", "absorbed", "only here")
        for line in page.lines(latent)["random"]:
            assert line.value == pytest.approx(float(z[0][line.row, latent]), rel=1e-5)
            other = float(z[1][line.row, match])
            assert (other > 0) == (0 in line.levels[1])
            if other > 0:
                assert line.levels[1][0] == pytest.approx(other / float(z[1][:, match].max()), abs=0.004)
                compared += 1
    assert compared
    show(settings.model_copy(update={"latents": (3, 1)}))
    page = LatentsPage(tmp_path / "two.html")
    assert page.latents() == [3, 1] and set(page.latents(1)) == {page.column("match", n) for n in (3, 1)}


def test_saes_of_different_hooks_are_refused_in_a_sentence(settings: ShowSettings, tmp_path: Path) -> None:
    write_sae(tmp_path / "other", hook_name="blocks.2.hook_resid_post")
    with pytest.raises(SaeError, match=r"blocks\.2\.hook_out.*holds blocks\.1\.hook_out"):
        show(settings.model_copy(update={"beside": str(tmp_path / "other")}))


def test_near_misses_name_the_latent_that_fired_instead(tmp_path: Path) -> None:
    """Latent 1 is " cat" but for the contexts 0 to 2, on which latent 2 is."""
    contexts = [[0, *[1, 2, 3] * 4] for _ in range(8)]
    write_store(tmp_path / "store", contexts, scale=1)
    weights = {"W_enc": torch.zeros(7, 4), "b_enc": torch.zeros(4), "W_dec": torch.zeros(4, 7), "b_dec": torch.zeros(7)}
    weights["W_enc"][1, 1], weights["b_enc"][1] = 1, -3.5  # rows of context c have length 1 + c
    weights["W_enc"][1, 2] = 1
    weights["W_dec"][1, 1] = weights["W_dec"][2, 1] = 1
    weights["W_dec"][2, 5] = 1
    sae = SAE(
        SaeConfig(architecture="standard", d_in=7, d_sae=4, metadata={"hook_name": HOOK, "model_name": "tiny"}), weights
    )
    save(sae, tmp_path / "sae")
    show(ShowSettings(sae=str(tmp_path / "sae"), store=tmp_path / "store", out=tmp_path / "page.html"))
    page = LatentsPage(tmp_path / "page.html")
    assert page.label(1) == "token “ cat”" and page.column("recall", 1) == 0.625
    missed = page.lines(1)["near misses"]
    assert len(missed) == 5 and all(line.context < 3 and line.value == 0 for line in missed)
    assert all(line.window[min(24, line.position)] == " cat" for line in missed)
    assert {other for other, _ in page.entry(1)["m"]} == {2}


def test_promoted_tokens_are_shown_with_the_model_and_their_absence_is_said_without(
    settings: ShowSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(settings)
    page = LatentsPage(settings.out)
    assert "p" not in page.entry(1) and not page.head["saes"][0]["logits"]
    assert "Not shown: that takes the language model; name it with --model owner/tiny" in page.html
    show(settings.model_copy(update={"model": "none"}))
    assert "was left out (--model none)" in settings.out.read_text(encoding="utf-8")
    with pytest.raises(ModelError, match="unembeds width 256 to 4096 tokens, the SAE and store have width 7"):
        show(settings.model_copy(update={"model": "embedded"}))


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_the_page_says_of_an_sae_that_rescales_activations_that_logits_are_times_their_size(norm: str) -> None:
    plain = random_sae(7, 12, 3, 0)
    sae = SAE(replace(plain.config, normalize_activations=norm), dict(plain.named_parameters()))
    said = show_module.what_is_promoted([("a", plain), ("b", sae)])
    assert "per unit of activation" in said and ("Of b it is times the size of each" in said) == (norm != "none")
