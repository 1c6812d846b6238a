"""sae_lm.training.recipe: what the weights of an SAE depend on, and how that is written to disk."""

import pydantic
import pytest
import torch
from recipes import training_recipe

from sae_lm.data.store import Moments, open_store
from sae_lm.errors import SettingsError, StoreError
from sae_lm.penalties.arms import parse_arms
from sae_lm.settings import TrainSettings
from sae_lm.training.heeded import check_heeded
from sae_lm.training.recipe import NOT_IN_RECIPE, TrainingRecipe, default_lr, rows_per_step

WRITTEN = [
    "hook", "d_sae", "k", "arch", "widths", "sparsity_coefficient", "bandwidth", "tokens", "batch_size", "lr", "optimizer", "whiten", "warm_up", "decay",
    "held_out", "penalty_every", "penalty_start", "penalty_warm_up", "penalty_on", "aux_coefficient", "aux_k", "dead_after",
    "resample_every", "matmul", "store_id", "held_out_from_context", "held_out_from_row", "scale",
]  # fmt: skip
"""Keys of `facts` in run.json and of `training` in an SAE's metadata, in their order on disk."""


def heeded(settings):
    """Raises SettingsError where a setting does nothing, as the first command of a folder does."""
    arms = parse_arms(settings.arms)
    check_heeded(settings, arms, TrainingRecipe.from_settings(settings, open_store(settings.store), arms))


def test_the_recipe_on_disk_has_these_keys_in_this_order():
    assert list(training_recipe().record()) == WRITTEN


def test_every_setting_of_training_is_part_of_the_recipe_or_is_known_not_to_matter():
    fields = set(TrainingRecipe.model_fields)
    assert not fields & set(NOT_IN_RECIPE)
    assert set(TrainSettings.model_fields) == (fields & set(TrainSettings.model_fields)) | set(NOT_IN_RECIPE)


def test_every_field_of_the_recipe_says_what_it_is():
    assert [name for name, field in TrainingRecipe.model_fields.items() if not field.description] == []


def test_what_the_settings_leave_open_is_worked_out_from_the_store(tiny_store):
    store = open_store(tiny_store)
    settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, k=4, batch_size=100, tokens=1234, out=tiny_store)
    recipe = TrainingRecipe.from_settings(settings, store, parse_arms(["none"]))
    assert (recipe.hook, recipe.tokens, recipe.steps) == ("blocks.1.hook_out", 1200, 12)
    assert recipe.lr == pytest.approx(0.08 / 16**0.5 * (100 / 512) ** 0.5)
    assert (recipe.aux_k, recipe.dead_after) == (8, 123)  # half of width 16, a tenth of the rows
    moments = store.moments(recipe.hook, recipe.held_out_from_row)
    assert recipe.scale == pytest.approx(moments.variance**0.5) and recipe.store_id == store.manifest.id


def test_where_an_sae_sees_few_rows_a_step_takes_fewer_unless_it_is_told():
    asked = {None: 1024, 499_999: 512, 500_000: 1024}
    assert {
        tokens: rows_per_step(TrainSettings(store="acts", d_sae=64, out="o", tokens=tokens)) for tokens in asked
    } == asked
    assert rows_per_step(TrainSettings(store="acts", d_sae=64, out="o", tokens=1000, batch_size=64)) == 64


def test_a_recipe_that_is_written_and_read_is_the_same_and_cannot_be_changed():
    recipe = training_recipe(widths=(6, 24), arch="matryoshka")
    assert TrainingRecipe(**recipe.record()) == recipe
    with pytest.raises(pydantic.ValidationError):
        recipe.k = 5  # pyright: ignore


def test_a_recipe_of_another_version_is_compared_in_what_both_know():
    recipe = training_recipe(k=4)
    stored = recipe.record()
    assert recipe.differences({**stored, "of a later version": 1}) == []
    del stored["widths"], stored["whiten"]  # of an earlier version, which did what is their default
    assert recipe.differences(stored) == []
    assert [str(one) for one in training_recipe(k=5, whiten=True).differences(stored)] == [
        "k is 4, asked for 5",
        "whiten is false, asked for true",
    ]
    assert recipe.differences({**recipe.record(), "k": 5}, but="k") == []


def test_the_default_learning_rate_turns_a_row_by_as_much_at_any_width_and_stops_rising_with_the_batch():
    assert default_lr(1024, 512, "row_rms") * 32 == pytest.approx(default_lr(64, 512, "row_rms") * 8)
    assert default_lr(64, 8192, "row_rms") == default_lr(64, 2048, "row_rms") == 2 * default_lr(64, 512, "row_rms")
    assert default_lr(64, 512, "adam") == pytest.approx(0.006)


@pytest.mark.parametrize(
    ("arms", "changes", "said"),
    [
        ("none@arch=relu@k=8", {"sparsity_coefficient": 0.1}, "arms: 'none@arch=relu@k=8' aims at k, which sparsity_coef"),
        ("none@k=8", {"sparsity_coefficient": 0.1, "arch": "jumprelu"}, "arms: 'none@k=8' aims at k, which sparsity_coef"),
        ("none,none@arch=batchtopk", {"sparsity_coefficient": 0.1}, "sparsity_coefficient is 0.1, and no arm is relu or"),
        ("none,none@arch=relu", {"widths": "8,64"}, "widths is 8, 64, and no arm is matryoshka, which alone has nested"),
        ("none,none@arch=relu", {"bandwidth": 0.1}, "bandwidth is 0.1, and no arm is jumprelu, whose thresholds alone have"),
        ("none,none@k=8", {"penalty_every": 3}, "penalty_every is 3, and no arm has a penalty that heeds it; leave it out"),
        ("none,max_cos:0", {"penalty_start": 0.5}, "penalty_start is 0.5, and no arm has a penalty that heeds it"),
        ("max_cos@warm_up=0.1", {"penalty_warm_up": 0.2}, "or name one that does, without @warm_up"),
        ("none,align", {"penalty_on": "encoder"}, "penalty_on is encoder, and no arm has a penalty that heeds it"),
        ("none", {"aux_k": 4, "aux_coefficient": 0}, "aux_k is 4, and with aux_coefficient 0 there is no AuxK; leave one"),
        ("none@arch=matryoshka", {"widths": ()}, "widths: got .*; expected one or more, separated by commas"),
    ],
)  # fmt: skip
def test_a_setting_that_no_arm_heeds_is_refused(tiny_store, arms, changes, said):
    with pytest.raises(SettingsError, match=said):
        settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, arms=arms, out=tiny_store, **changes)
        heeded(settings)


@pytest.mark.parametrize(
    ("arms", "changes", "said"),
    [
        ("max_cos@chunk=64", {}, "arms: max_cos:0.25@chunk=64 searches chunks of 64 rows, of which there are 64 in all; "),
        ("max_cos@start=0.5@warm_up=0.6", {}, r"start \(0.5\) and warm_up \(0.6\) .* end at 1 or before"),
        ("max_cos@warm_up=0.6", {"penalty_start": 0.5}, r"start \(0.5\) and warm_up \(0.6\) .* end at 1 or before"),
        ("max_cos@start=0.99", {}, "never acts in 10 steps: it starts at 0.99 of them; give an earlier start"),
        ("max_cos@fvu=0.01@start=0.8", {}, "is steered from 0.85 of the steps on; .* start of 0.7 at most"),
        ("none@arch=matryoshka@fvu=0.01,max_cos@coherence=0.2@start=0.8", {}, "is steered from 0.85 of the steps on"),
        ("silent", {"tokens": 64}, "silent:0.4 never acts in 1 step: it starts at 0 of them; .* or more --tokens"),
        ("none@arch=matryoshka", {"widths": "64"}, "is matryoshka with the one width 64, .* which is batchtopk; give a"),
        ("none@arch=matryoshka@widths=64@balance=0.25", {}, "balance=0.25@widths=64 is matryoshka with the one width 64"),
        ("none", {"batch_size": 1}, "batch_size is 1, expected 2 or more: .* dead latents .* the batch's mean"),
    ],
)  # fmt: skip
def test_what_would_train_another_sae_than_its_name_says_is_refused(tiny_store, arms, changes, said):
    asked = {"tokens": 640, "batch_size": 64, **changes}
    with pytest.raises(SettingsError, match=said):
        settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, arms=arms, out=tiny_store, **asked)
        TrainingRecipe.from_settings(settings, open_store(tiny_store), parse_arms(settings.arms))


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_told_before_the_work(tiny_store, monkeypatch, damage):
    store = open_store(tiny_store)
    settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, tokens=640, batch_size=64, out=tiny_store)
    monkeypatch.setattr(store, "moments", lambda hook, stop: Moments(torch.full((16,), damage).double(), damage))
    with pytest.raises(StoreError, match=r"rows of blocks.1.hook_out before row \d+ hold a NaN .* --repair"):
        TrainingRecipe.from_settings(settings, store, parse_arms(["none"]))


def test_a_setting_of_penalties_is_for_those_arms_that_have_one_and_no_own(tiny_store):
    arms, changes = "none,max_cos,max_cos:1@every=2", {"penalty_every": 3, "penalty_on": "encoder", "aux_k": 4}
    settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, arms=arms, out=tiny_store, **changes)
    heeded(settings)


def test_rows_that_are_all_equal_teach_nothing_however_their_squares_are_rounded(tiny_store, monkeypatch):
    """E|x|^2 - |E x|^2 of equal rows is now above 0 and now below."""
    store = open_store(tiny_store)
    settings = TrainSettings(
        store=tiny_store, hook="1", d_sae=64, arms="none", tokens=640, batch_size=64, out=tiny_store
    )
    draw, signs = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        row = torch.randn(16, generator=draw) * 10
        rows = row.double().expand(1000, -1)
        moments = Moments(rows.sum(0) / 1000, float(rows.square().sum() / 1000))
        signs.add(moments.variance > 0)
        monkeypatch.setattr(store, "moments", lambda hook, stop, moments=moments: moments)
        with pytest.raises(SettingsError, match="all rows of blocks.1.hook_out are equal, there is nothing to learn"):
            TrainingRecipe.from_settings(settings, store, parse_arms(settings.arms))
    assert signs == {True, False}


def test_a_sparsity_coefficient_and_widths_are_for_those_arms_that_heed_them(tiny_store):
    arms, changes = "none@k=8,none@arch=relu,none@arch=matryoshka@k=8", {"sparsity_coefficient": 0.1, "widths": "8,64"}
    settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, arms=arms, out=tiny_store, **changes)
    heeded(settings)
    recipe = TrainingRecipe.from_settings(settings, open_store(tiny_store), parse_arms(settings.arms))
    assert (recipe.sparsity_coefficient, recipe.widths) == (0.1, (8, 64))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dead_after": 640}, "dead_after is 640, and the run has 640 rows, so no latent would ever count as dead .* fewer"),
        ({"dead_after": "10M", "resample_every": 2}, "dead_after is 10,000,000, and the run has 640 rows, so no latent"),
        ({"resample_every": 10, "decay": 0.0}, "resample_every is 10, .* in the first 10 of 10 steps; give fewer"),
        ({"resample_every": 8}, "resample_every is 8, .* falls, in the first 8 of 10 steps; give fewer than that, or 0"),
        ({"resample_every": 1000}, "resample_every is 1,000, and latents are resampled before the learning rate falls"),
        ({"resample_every": 3, "dead_after": 385}, r"at step 6 at the latest, and dead_after is 385 rows, .* it \(384\)"),
    ],
)  # fmt: skip
def test_a_run_that_is_too_short_for_what_is_done_about_dead_latents_is_refused(tiny_store, changes, said):
    asked = {"tokens": 640, "batch_size": 64, "decay": 0.2, **changes}
    with pytest.raises(SettingsError, match=said):
        heeded(TrainSettings(store=tiny_store, hook="1", d_sae=64, arms="none", out=tiny_store, **asked))


@pytest.mark.parametrize(
    "changes", [{"dead_after": 639}, {"resample_every": 7}, {"resample_every": 3, "dead_after": 384}, {}]
)
def test_a_run_that_is_just_long_enough_for_dead_latents_is_not_refused(tiny_store, changes):
    asked = {"tokens": 640, "batch_size": 64, "decay": 0.2, **changes}
    heeded(TrainSettings(store=tiny_store, hook="1", d_sae=64, arms="none", out=tiny_store, **asked))
