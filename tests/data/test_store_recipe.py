"""The recipe of a store gives back the settings that cache it again."""

import pytest

from sae_lm.data.manifest import Manifest, Recipe
from sae_lm.data.recipe import SHARED, model_of, settings_of, text_revision
from sae_lm.data.writer import open_writer
from sae_lm.errors import SettingsError, StoreError
from sae_lm.settings import CacheSettings

UNTOLD = {"device", "out", "model", "text", "hooks", "forward", "text_column", "shard_tokens"}
"""Settings that a store does not record, or by a name of its own: canonical hooks, the forward pass that was taken,
the column that was found, whole contexts to a shard."""
CHANGES = [
    {},
    {"pack": False, "repeat": True, "keep_special": True, "drop_sinks": 7.5},
    {"context_size": 7, "shard_tokens": 100, "prepend_bos": False},
    {"dtype": "float16", "model_dtype": "bfloat16", "tokens": 77, "batch_size": 3},
    {"hooks": "0,2", "forward": "bridge"},
    {"hooks": "blocks.*.hook_resid_pre", "text_column": "text"},
]


def manifest_of(recipe, batch_size):
    return Manifest(
        recipe=recipe, rows=0, contexts=0, documents=0, text_ended=False, sink_norms={}, shards=[], files={},
        versions={}, batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_settings_to_recipe_and_back_describe_the_same_recipe(cache_settings, tmp_path, changes):
    settings = cache_settings(tmp_path, **changes)
    with open_writer(settings) as maker:
        recipe = maker.recipe
        manifest = manifest_of(recipe, settings.batch_size)
        back = settings_of(manifest, tmp_path, model=settings.model, text=settings.text, device="cpu")
    assert back.model_dump(exclude=UNTOLD) == settings.model_dump(exclude=UNTOLD)
    assert (back.device, back.out) == ("cpu", tmp_path)
    with open_writer(back) as maker:
        assert maker.recipe == recipe


def test_what_settings_and_recipe_share_are_fields_of_both():
    assert set(SHARED) <= set(CacheSettings.model_fields) & set(Recipe.model_fields)


def test_a_local_model_and_a_local_text_have_to_be_named(cache_settings, tmp_path):
    with open_writer(cache_settings(tmp_path)) as maker:
        manifest = manifest_of(maker.recipe, 4)
    with pytest.raises(StoreError, match="a local model named 'tiny-gpt2'; give its folder with --model"):
        settings_of(manifest, tmp_path)
    with pytest.raises(StoreError, match="a local text named 'documents.jsonl'; give its path with --text"):
        settings_of(manifest, tmp_path, model="somewhere")
    merged = manifest.model_copy(update={"recipe": maker.recipe.model_copy(update={"text": {"merged": []}})})
    with pytest.raises(StoreError, match="was merged from several stores"):
        settings_of(merged, tmp_path)


def test_only_a_text_of_the_hub_has_a_revision(cache_settings, tmp_path):
    with open_writer(cache_settings(tmp_path)) as maker:
        recipe = maker.recipe
    assert text_revision(recipe) is None
    embedded = {"id": "embedded", "split": "all", "column": "text", "fingerprint": "0" * 64}
    assert text_revision(recipe.model_copy(update={"text": embedded})) is None
    on_hub = {**embedded, "id": "someone/lines", "split": "train", "fingerprint": "1" * 40}
    assert text_revision(recipe.model_copy(update={"text": on_hub})) == "1" * 40


def test_a_model_of_the_hub_that_is_in_a_folder_now_has_no_revision(cache_settings, tmp_path, tiny_model):
    with open_writer(cache_settings(tmp_path)) as maker:
        recipe = maker.recipe.model_copy(
            update={"model": {**maker.recipe.model, "id": "me/tiny", "revision": "1" * 40}}
        )
    assert model_of(recipe, tmp_path) == ("me/tiny", "1" * 40)
    assert model_of(recipe, tmp_path, str(tiny_model)) == (str(tiny_model), None)
    assert model_of(recipe, tmp_path, "embedded") == ("embedded", None)


def test_a_model_in_the_home_of_nobody_known_is_left_to_who_looks_for_it(cache_settings, tmp_path):
    with open_writer(cache_settings(tmp_path)) as maker:
        assert model_of(maker.recipe, tmp_path, "~nosuch/m")[0] == "~nosuch/m"


def test_a_context_longer_than_the_models_is_refused(cache_settings, tmp_path):
    with (
        pytest.raises(SettingsError, match="at most 32 tokens; give --context-size 32"),
        open_writer(cache_settings(tmp_path, context_size=33)),
    ):
        pass
