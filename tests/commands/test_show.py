"""The search for contexts, against a store and an SAE whose answers are known by hand."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_lm.commands.show import show
from sae_lm.data.manifest import FileRecord, Manifest, Recipe, write_manifest
from sae_lm.data.shards import OpenShard, rows_wanted
from sae_lm.data.store import Store, open_store
from sae_lm.data.tokens import START, Block
from sae_lm.errors import SaeError, SettingsError
from sae_lm.interp.max_activating import fitting_hook, search, spread_latents
from sae_lm.runtime.files import sha256, write_json
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.settings import ShowSettings

show_module = importlib.import_module("sae_lm.interp.max_activating")
HOSTILE = "<script>document.title='ran'</script>"
WORDS = ["<bos>", " cat", " dog", "\n", HOSTILE, "\u202e\x07", "&amp;"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOOK = "blocks.1.hook_out"


def write_store(folder: Path, contexts: list[list[int]], per_shard: int = 2, scale: float = 0.25) -> Store:
    """A store of given ids whose row for token t in context c is (1 + scale c) times the unit vector t."""
    size = len(contexts[0])
    shards = []
    recipe = Recipe(
        model={"id": "owner/tiny", "revision": None, "d_model": len(WORDS), "d_vocab": len(WORDS)},
        tokenizer_sha256="0",
        text={"id": "by hand"},
        forward="by hand",
        context_size=size,
        pack=True,
        repeat=False,
        keep_special=False,
        drop_sinks=None,
        bos=0,
        separator=None,
        dtype="float32",
        hooks={HOOK: len(WORDS)},
        tokens=sum(len(context) for context in contexts),
        shard_contexts=per_shard,
    )
    for index, first in enumerate(range(0, len(contexts), per_shard)):
        part = np.array(contexts[first : first + per_shard], np.int32)
        documents = np.repeat(np.arange(first, first + len(part), dtype=np.int32)[:, None] // 2, size, 1)
        blocks = [Block(i, d, i == 0, size, START) for i, d in zip(part, documents, strict=True)]
        kept = rows_wanted(blocks, recipe)
        strength = torch.tensor([1 + scale * (first + c) for c in np.nonzero(kept)[0]], dtype=torch.float32)
        values = torch.zeros(*part.shape, len(WORDS))
        values[torch.from_numpy(kept)] = torch.eye(len(WORDS))[torch.from_numpy(part[kept]).long()] * strength[:, None]
        shard = OpenShard(index, first, blocks, kept, recipe)
        shard.add(range(len(blocks)), {HOOK: values}, kept)
        shards.append(shard.write(folder, 10**9))
    write_json(folder / "vocabulary.json", WORDS)
    save_file({"x": torch.zeros(1)}, folder / "stats.safetensors")
    names = ("vocabulary.json", "stats.safetensors")
    manifest = Manifest(
        recipe=recipe,
        rows=sum(shard.rows for shard in shards),
        contexts=len(contexts),
        documents=1 + (len(contexts) - 1) // 2,
        text_ended=False,
        sink_norms={},
        batch_size=1,
        shards=shards,
        files={n: FileRecord(bytes=(folder / n).stat().st_size, sha256=sha256(folder / n)) for n in names},
        versions={},
    )
    write_manifest(folder, manifest)
    return open_store(folder)


def write_sae(folder: Path, **metadata: Any) -> SAE:
    """Latent t fires on token t as strongly as its row is long, and on nothing else."""
    width = len(WORDS)
    weights = {"W_enc": torch.eye(width), "b_enc": torch.zeros(width), "W_dec": torch.eye(width)}
    config = SaeConfig(
        architecture="topk",
        d_in=width,
        d_sae=width,
        k=2,
        metadata={"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", **metadata},
    )
    sae = SAE(config, {**weights, "b_dec": torch.zeros(width)})
    save(sae, folder)
    return sae


CONTEXTS = [[0, 1, 2, 4, 3, 1], [0, 2, 2, 2, 6, 2], [0, 1, 3, 2, 5, 1], [0, 2, 4, 1, 2, 3], [0, 3, 3, 1, 2, 4]]


@pytest.fixture
def settings(tmp_path: Path) -> ShowSettings:
    write_store(tmp_path / "store", CONTEXTS)
    write_sae(tmp_path / "sae")
    return ShowSettings(sae=str(tmp_path / "sae"), store=tmp_path / "store", out=tmp_path / "page" / "latents.html")


def cards(page: str) -> dict[int, str]:
    """Latent -> its part of the page."""
    parts = re.split(r'<article id="latent-(\d+)">', page)[1:]
    return {int(latent): part for latent, part in zip(parts[::2], parts[1::2], strict=True)}


def places(card: str) -> list[tuple[str, str, str]]:
    """(activation, context, position) of each line of a card."""
    return re.findall(r"<li><b>([\d.]+)</b>.*?context (\d+), position (\d+)", card, re.DOTALL)


def test_a_latents_contexts_are_those_known_by_hand_strongest_first(settings: ShowSettings) -> None:
    assert show(settings.model_copy(update={"latents": (1,)})) == settings.out
    card = cards(settings.out.read_text(encoding="utf-8"))[1]
    # " cat" stands in contexts 0, 2, 3, 4; rows grow with the context, equals are told by the first
    assert places(card) == [("2.000", "4", "3"), ("1.750", "3", "3"), ("1.500", "2", "1"), ("1.000", "0", "1")]
    assert "fires on 24% of tokens (6 of 25)" in card
    assert "largest activation 2.000" in card
    assert "document 2, context 4" in card and "document 0, context 0" in card
    assert card.count('<mark title="2.000"> cat</mark>') == 1


def test_a_line_shows_the_text_around_marked_shaded_and_with_visible_line_breaks(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1,)}))
    lines = re.findall(r'<div class="text">(.*?)</div>', settings.out.read_text(encoding="utf-8"), re.DOTALL)
    assert lines[2] == (
        '<i title="no row">&lt;bos&gt;</i><mark title="1.500"> cat</mark>↵ dog⟨202E⟩⟨0007⟩'
        '<span style="--a:0.75" title="1.500"> cat</span>'
    )


def test_the_window_is_24_tokens_before_and_8_after_within_the_context(tmp_path: Path) -> None:
    ids = [0, *[2] * 29, 1, *[2] * 20]
    write_store(tmp_path / "store", [ids, [0, *[2] * 50]])
    write_sae(tmp_path / "sae")
    show(ShowSettings(sae=str(tmp_path / "sae"), store=tmp_path / "store", latents=(1,), out=tmp_path / "p.html"))
    line = re.search(r'<div class="text">(.*?)</div>', (tmp_path / "p.html").read_text(encoding="utf-8"))
    assert line and line[1] == "…" + " dog" * 24 + '<mark title="1.000"> cat</mark>' + " dog" * 8 + "…"


def test_only_the_last_rows_asked_for_are_searched(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1, 6), "tokens": 7}))
    page = settings.out.read_text(encoding="utf-8")
    assert places(cards(page)[1]) == [("2.000", "4", "3")]
    assert "the last 7 of the store's 25 rows" in page.replace("&#39;", "'")
    assert "Never fired on the 7 rows searched." in cards(page)[6]


def test_the_number_of_contexts_is_at_most_what_was_asked_for(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (1,), "contexts": 2}))
    assert [c for _, c, _ in places(cards(settings.out.read_text(encoding="utf-8"))[1])] == ["4", "3"]


@pytest.mark.parametrize("chunk", [1, 13, 40, 10**6])
@pytest.mark.parametrize("start", [0, 5, 201])
def test_the_search_agrees_with_encoding_everything_and_sorting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, start: int
) -> None:
    generator = torch.Generator().manual_seed(chunk)
    ids = torch.randint(1, len(WORDS), (40, 9), generator=generator)
    ids[:, 0] = 0
    ids[3, 4] = 0  # a special token in the middle has no row
    store = write_store(tmp_path / "store", ids.tolist(), per_shard=7, scale=0)
    width = len(WORDS)
    weights = {"W_enc": torch.randn(width, 12, generator=generator), "b_enc": torch.zeros(12)}
    weights |= {"W_dec": torch.randn(12, width, generator=generator), "b_dec": torch.zeros(width)}
    sae = SAE(SaeConfig(architecture="topk", d_in=width, d_sae=12, k=3), weights)
    monkeypatch.setattr(show_module, "CHUNK_ROWS", chunk)
    latents = [7, 0, 11]
    found = search(store, HOOK, sae, latents, start, 5)

    z = sae.encode(store.rows(HOOK))
    context = store.tokens()["context"].tolist()
    for column, latent in enumerate(latents):
        best: dict[int, tuple[float, int]] = {}
        for row in range(start, len(store)):
            value = float(z[row, latent])
            if value > 0 and value > best.get(context[row], (0.0, 0))[0] + 1e-6:
                best[context[row]] = (value, row)
        expected = sorted(best.values(), key=lambda hit: (-round(hit[0], 4), hit[1]))[:5]
        values, rows = found.value[: len(expected), column], found.row[: len(expected), column]
        assert rows.tolist() == [row for _, row in expected]
        assert torch.allclose(values, torch.tensor([value for value, _ in expected]))
        assert not found.value[len(expected) :, column].any()
        assert int(found.histogram[column].sum()) == int((z[start:, latent] > 0).sum())


def test_the_search_never_encodes_more_than_a_chunk(
    settings: ShowSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sae = open_store(tmp_path / "store"), write_sae(tmp_path / "other")
    sizes, encode = [], SAE.encode
    monkeypatch.setattr(SAE, "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    monkeypatch.setattr(show_module, "CHUNK_ROWS", 1)
    search(store, HOOK, sae, spread_latents(store, HOOK, sae, 0), 0, 10)
    assert sizes and max(sizes) <= 7  # a context and the start of the next


def test_the_default_latents_are_spread_over_the_alive_ones_in_order(
    settings: ShowSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(settings)
    assert list(cards(settings.out.read_text(encoding="utf-8"))) == [1, 2, 3, 4, 5, 6]  # 0 is BOS, which has no row
    monkeypatch.setattr(show_module, "LATENTS", 3)
    assert spread_latents(open_store(tmp_path / "store"), HOOK, write_sae(tmp_path / "other"), 0) == [1, 3, 6]


def test_latents_named_twice_are_shown_once_in_the_order_given(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (4, 1, 4)}))
    assert re.findall(r'<article id="latent-(\d+)"', settings.out.read_text(encoding="utf-8")) == ["4", "1"]


@pytest.mark.parametrize("latent", [-1, 7])
def test_a_latent_out_of_range_is_refused_with_the_range(settings: ShowSettings, latent: int) -> None:
    with pytest.raises(SettingsError, match=rf"{latent} out of range.* 0 to 6"):
        show(settings.model_copy(update={"latents": (1, latent)}))
    assert not settings.out.exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, r"blocks\.2\.hook_out.*holds blocks\.1\.hook_out"),
        ({"hook_name": None}, r"hook_name.*holds blocks\.1\.hook_out"),
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


def test_a_folder_as_output_is_refused_before_the_search(settings: ShowSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is a folder.*latents\.html"):
        show(settings.model_copy(update={"out": tmp_path}))


def test_hostile_tokens_show_as_text(settings: ShowSettings) -> None:
    show(settings.model_copy(update={"latents": (4,)}))
    page = settings.out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert '<mark title="2.000">&lt;script&gt;document.title=&#39;ran&#39;&lt;/script&gt;</mark>' in page
    assert "\u202e" not in page and "\x07" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome binary on PATH")
def test_a_browser_runs_no_script_of_a_hostile_token(settings: ShowSettings, tmp_path: Path) -> None:
    # the policy that forbids scripts is taken out, so that escaping alone is tried
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", show(settings).read_text(encoding="utf-8"))
    probe = "<script>document.documentElement.dataset.scripts = 'work'</script></body>"
    (tmp_path / "open.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "open.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-scripts="work"' in dom and "<title>ran" not in dom
    assert dom.count("<script>") == 1
    assert "&lt;script&gt;document.title='ran'&lt;/script&gt;</mark>" in dom
