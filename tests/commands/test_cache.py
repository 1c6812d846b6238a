"""What is cached and what is left out; kills, signals, full disks, many ranks."""

import json

import pytest
import torch
from cache_runs import cache_until_shard, contents
from command_line import flags_of
from conftest import TEXTS

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.data.manifest import PROGRESS
from sae_lm.errors import ModelError, SettingsError, StoreError, TextError

pytestmark = pytest.mark.transformer_lens_3


# --- which tokens


def test_packing_and_batch_order_do_not_change_which_tokens_are_cached(cache_settings, tmp_path):
    """Without packing contexts are run sorted by length; rows and their order stay those of the text."""
    whole = sae_lm.open_store(cache(cache_settings(tmp_path / "packed", tokens=10**6)))
    alone = sae_lm.open_store(cache(cache_settings(tmp_path / "alone", tokens=10**6, pack=False)))
    number = len(whole)  # packing drops an incomplete last context
    assert torch.equal(alone.tokens(0, number)["token_id"], whole.tokens()["token_id"])
    assert torch.equal(alone.tokens(0, number)["document"], whole.tokens()["document"])
    padding = sum(shard.padding for shard in alone.manifest.shards)
    special = sum(shard.special_tokens for shard in alone.manifest.shards)
    assert padding > 0 and len(alone) + padding + special == alone.manifest.contexts * 16


def test_rows_of_padded_contexts_are_the_models_own(cache_settings, tmp_path, tiny_model):
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "alone", tokens=1000, pack=False)))
    model, tokens = sae_lm.load_model(str(tiny_model)), store.tokens()
    for context in (0, 11, 40):
        mine = (tokens["context"] == context).nonzero().flatten()
        length = int(tokens["position"][mine[-1]]) + 1
        ids = store.blocks(context, context + 1)[:, :length].long()
        with torch.inference_mode():
            _, seen = model.run_with_cache(ids, names_filter=["blocks.1.hook_out"])
        rows = store.rows("blocks.1.hook_out")[mine]
        torch.testing.assert_close(
            rows, seen["blocks.1.hook_out"][0][tokens["position"][mine].long()], atol=2e-5, rtol=1e-5
        )


@pytest.fixture
def awkward_text(tmp_path):
    """Documents whose lengths divide by the room of a context, which leaves contexts of BOS and separator alone."""
    path = tmp_path / "awkward.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "a b c d e f g h " * (1 + i % 3) + "z" * (i % 4)}) + "\n" for i in range(120))
    )
    return path


AWKWARD = [
    {"pack": False, "context_size": 5},
    {"context_size": 2},
    {"pack": False, "context_size": 6, "drop_sinks": 1.1},
    {"context_size": 4, "drop_sinks": 1.05, "keep_special": True},
]


@pytest.mark.parametrize("changes", AWKWARD, ids=str)
def test_every_row_is_where_its_context_and_position_say(cache_settings, awkward_text, tmp_path, changes):
    settings = cache_settings(tmp_path / "store", text=str(awkward_text), tokens=700, shard_tokens=40, **changes)
    store = sae_lm.open_store(cache(settings))
    tokens, blocks = store.tokens(), store.blocks()
    assert torch.equal(blocks[tokens["context"].long(), tokens["position"].long()], tokens["token_id"])
    rows = set(zip(tokens["context"].tolist(), tokens["position"].tolist(), strict=True))
    expected = [[(context, place) not in rows for place in range(blocks.shape[1])] for context in range(len(blocks))]
    assert store.rowless(0, len(blocks)).tolist() == expected
    assert store.rowless(5, 9).tolist() == expected[5:9]
    assert len(store.manifest.shards) > 10 and len(store) == 700 and len(blocks) == store.manifest.contexts
    assert any(bool(store.special(context[None]).all()) for context in blocks) or changes.get("keep_special")


@pytest.mark.parametrize("changes", AWKWARD, ids=str)
def test_awkward_stores_resume_and_are_repaired_to_the_same_bytes(
    cache_settings, awkward_text, tmp_path, changes, monkeypatch
):
    from sae_lm.data.repair import repair

    common = {"text": str(awkward_text), "tokens": 700, "shard_tokens": 40, **changes}
    whole = contents(cache(cache_settings(tmp_path / "whole", **common)))
    settings = cache_settings(tmp_path / "store", **common)
    cache_until_shard(7, settings, monkeypatch)
    assert contents(cache(settings)) == whole
    for index in (3, 8, 9):
        (settings.out / "blocks.1.hook_out" / f"{index:05d}.safetensors").unlink()
    repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == whole


def test_special_tokens_have_rows_when_they_are_kept(cache_settings, tmp_path, tiny_store):
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "kept", tokens=320, keep_special=True)))
    assert store.manifest.contexts == 20  # every position is a row
    assert torch.equal(store.tokens()["token_id"], store.blocks().flatten())
    counted = sum(shard.special_tokens for shard in store.manifest.shards)
    assert counted == int(store.special(store.blocks()).sum()) >= 20


def test_a_text_is_repeated_only_when_asked(cache_settings, tmp_path):
    once = sae_lm.open_store(cache(cache_settings(tmp_path / "once", tokens=10**6)))
    wanted = 2 * len(once) + 100
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "again", tokens=wanted, repeat=True)))
    assert len(store) == wanted and not store.manifest.text_ended and store.manifest.documents == 40
    text = "".join(store.vocabulary[token] for token in store.tokens()["token_id"])
    assert text.startswith("".join(TEXTS) * 2)
    assert store.text_repeats and not once.text_repeats
    early = sae_lm.open_store(cache(cache_settings(tmp_path / "early", tokens=len(once) - 20, repeat=True)))
    assert not early.text_repeats, "allowed, and did not come to it"


def test_attention_sinks_are_left_out_and_counted(cache_settings, tmp_path, tiny_model):
    settings = cache_settings(tmp_path / "whole", keep_special=True, tokens=400)
    whole = sae_lm.open_store(cache(settings))
    norms = {hook: whole.rows(hook).norm(dim=1) for hook in whole.hooks}
    limit = 1.15
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "less", keep_special=True, tokens=300, drop_sinks=limit)))
    kept = torch.ones(400, dtype=torch.bool)
    for hook, norm in norms.items():
        assert store.manifest.sink_norms[hook] > limit * 0.9 * float(norm.median())
        kept &= norm <= store.manifest.sink_norms[hook]
    rows = kept.nonzero().flatten()[:300]
    assert len(store) == 300 and len(rows) == 300
    for hook in store.hooks:
        torch.testing.assert_close(store.rows(hook), whole.rows(hook)[rows], atol=2e-5, rtol=1e-5)
    sinks = sum(shard.sinks for shard in store.manifest.shards)
    used = store.manifest.contexts * 16
    assert sinks == int((~kept[:used]).sum()) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 5])
def test_what_is_not_finite_is_no_sink(cache_settings, tmp_path, tiny_model, value, position):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["transformer.wpe.weight"][position] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"gave a NaN or infinite activation at document 0"):
        cache(cache_settings(tmp_path / "store", model=str(broken), drop_sinks=10.0, keep_special=True))


def test_numbers_beyond_float16_are_said_to_be(cache_settings, tmp_path, tiny_model):
    import shutil

    from safetensors.torch import load_file, save_file

    loud = shutil.copytree(tiny_model, tmp_path / "loud")
    weights = load_file(loud / "model.safetensors")
    weights["transformer.wpe.weight"][5] = 1e5
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match="beyond float16's largest number; cache with --dtype bfloat16"):
        cache(cache_settings(tmp_path / "store", model=str(loud), dtype="float16"))
    cache(cache_settings(tmp_path / "other", model=str(loud), dtype="bfloat16", tokens=50))


@pytest.mark.parametrize("repeat", [False, True])
def test_a_text_without_a_token_that_gets_a_row_ends(cache_settings, tmp_path, repeat):
    text = tmp_path / "special.jsonl"
    text.write_text('{"text": "<|end|><|end|><|end|>"}\n' * 200)
    for changes in ({}, {"drop_sinks": 3.0}, {"pack": False}):
        with pytest.raises(TextError, match="with a token that gets a row"):
            cache(cache_settings(tmp_path / "store", text=str(text), repeat=repeat, **changes))
    assert not (tmp_path / "store").exists()


def test_a_run_killed_in_its_first_moments_is_begun_again(cache_settings, tmp_path, tiny_store):
    settings = cache_settings(tmp_path / "store")
    (settings.out / PROGRESS).mkdir(parents=True)
    for name in ("lock", "recipe.json.part"):
        (settings.out / PROGRESS / name).touch()
    assert contents(cache(settings)) == contents(tiny_store)


def test_what_is_not_ours_is_never_deleted(cache_settings, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("hi")
    for name in ("progress/thesis.txt", "photos/download.part"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).write_text("years of work")
    before = contents(tmp_path / "mine")
    for settings in (cache_settings(tmp_path / "mine"), cache_settings(tmp_path / "mine", text=str(short))):
        with pytest.raises(StoreError, match="not empty and not an activation store"):
            cache(settings)
    assert contents(tmp_path / "mine") == before


def test_a_text_in_the_home_of_nobody_known_is_one_that_is_not_there(cache_settings, tmp_path):
    with pytest.raises(TextError, match="no such file or folder: '~nosuch/text.txt'"):
        cache(cache_settings(tmp_path / "store", text="~nosuch/text.txt"))


def test_a_store_inside_the_folder_of_its_text_is_refused(cache_settings, text_file, tmp_path):
    import shutil

    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(text_file, folder)
    with pytest.raises(SettingsError, match="inside the text's folder"):
        cache(cache_settings(folder / "acts", text=str(folder)))
    assert [path.name for path in folder.iterdir()] == [text_file.name]


def test_a_shard_that_vanished_while_caching_is_not_taken_for_the_texts_end(
    cache_settings, tmp_path, monkeypatch, tiny_store
):
    from sae_lm.data.shards import OpenShard

    settings, real = cache_settings(tmp_path / "store"), OpenShard.write
    last = len(sae_lm.open_store(tiny_store).manifest.shards) - 1

    def loses_one(shard, *arguments):
        if shard.index == last:
            (settings.out / "tokens" / "00002.safetensors").unlink()
        return real(shard, *arguments)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="files of a shard are gone"):
        patch.setattr(OpenShard, "write", loses_one)
        cache(settings)
    assert contents(cache(settings)) == contents(tiny_store)


def test_hooks_are_named_by_number_alias_and_glob(cache_settings, tmp_path):
    for hooks, expected in {
        "0,-1": ["blocks.0.hook_out", "blocks.2.hook_out"],
        "blocks.*.hook_out": [f"blocks.{i}.hook_out" for i in range(3)],
        "blocks.[12].hook_resid_pre": ["blocks.1.hook_in", "blocks.2.hook_in"],
        "blocks.1.hook_resid_post,1": ["blocks.1.hook_out"],
        "blocks.*.hook_attn_out": [f"blocks.{i}.hook_attn_out" for i in range(3)],
    }.items():
        store = sae_lm.open_store(cache(cache_settings(tmp_path / hooks.replace("*", "x"), tokens=50, hooks=hooks)))
        assert list(store.hooks) == expected, hooks
    with pytest.raises(ModelError, match=r"'7' is not a hook point .* residual streams are 0 to 2"):
        cache(cache_settings(tmp_path / "none", hooks="7"))


def test_what_cannot_be_computed_fast_is_refused_when_asked_for(cache_settings, tmp_path):
    with pytest.raises(
        SettingsError, match="got hooks blocks.0.hook_attn_out of GPT2LMHeadModel; give --forward bridge"
    ):
        cache(cache_settings(tmp_path / "store", hooks="blocks.0.hook_attn_out", forward="huggingface"))


def test_settings_survive_the_way_over_the_command_line(cache_settings, tmp_path):
    from sae_lm.cli import parse

    settings = cache_settings(tmp_path / "store", pack=False, repeat=True, drop_sinks=7.5)
    assert parse(["cache", *flags_of(settings)]) == ("cache", settings)
    assert json.loads(settings.model_dump_json())["hooks"] == list(settings.hooks)


def test_a_few_rows_without_sinks_do_not_take_a_whole_shard(cache_settings, tmp_path, monkeypatch):
    """The rows are those of a store that goes on; what the model is given is bounded by what is asked for."""
    from sae_lm.data.writer import ShardMaker

    common = {"drop_sinks": 1.15, "shard_tokens": 16 * 1000, "tokens": 1500}
    long = sae_lm.open_store(cache(cache_settings(tmp_path / "long", **common)))
    real, contexts = ShardMaker.activations, []

    def counted(self, batch, longest):
        contexts.append(len(batch))
        return real(self, batch, longest)

    monkeypatch.setattr(ShardMaker, "activations", counted)
    monkeypatch.setattr("sae_lm.data.writer.SINK_SAMPLE", 64)
    monkeypatch.setattr(ShardMaker, "sink_norms", lambda self: long.manifest.sink_norms)
    short = sae_lm.open_store(cache(cache_settings(tmp_path / "short", **{**common, "tokens": 100})))
    assert sum(contexts) < 20 and len(long.manifest.shards) == 1
    for name, values in short.tokens().items():
        assert torch.equal(values, long.tokens(0, 100)[name])
    assert torch.equal(short.rows("0"), long.rows("0", 0, 100))


@pytest.mark.parametrize("ends", [100, 333])
def test_a_few_rows_without_packing_take_no_more_batches_than_contexts_they_are_of(
    cache_settings, tmp_path, monkeypatch, ends
):
    from sae_lm.data.writer import ShardMaker

    common = {"drop_sinks": 1.15, "shard_tokens": 16 * 1000, "tokens": 1500, "pack": False, "batch_size": 2}
    long = sae_lm.open_store(cache(cache_settings(tmp_path / "long", **common)))
    real, batches = ShardMaker.activations, []

    def counted(self, batch, longest):
        batches.append(len(batch))
        return real(self, batch, longest)

    monkeypatch.setattr(ShardMaker, "activations", counted)
    monkeypatch.setattr(ShardMaker, "sink_norms", lambda self: long.manifest.sink_norms)
    short = sae_lm.open_store(cache(cache_settings(tmp_path / "short", **{**common, "tokens": ends})))
    assert len(long.manifest.shards) == 1 and len(batches) <= short.manifest.contexts < long.manifest.contexts / 3
    assert short.manifest.shards[0].sinks > 0
    for name, values in short.tokens().items():
        assert torch.equal(values, long.tokens(0, ends)[name])
    assert torch.equal(short.rows("0"), long.rows("0", 0, ends))


def test_of_several_ranks_the_first_alone_makes_tokens(cache_settings, tmp_path, monkeypatch):
    from sae_lm.commands import cache as command
    from sae_lm.data.partial_store import PartialStore
    from sae_lm.data.writer import ShardMaker, open_writer
    from sae_lm.runtime.distributed import Ranks

    settings = cache_settings(tmp_path / "store")
    with open_writer(settings) as maker:
        dealt = [*command._turns(maker.jobs({}), Ranks(0, 1, 0)), None]
        shards = len(dealt) - 1
        monkeypatch.setattr(ShardMaker, "jobs", lambda *given: pytest.fail("a rank beside the first makes tokens"))
        monkeypatch.setattr(Ranks, "dealt", lambda self, deal: dealt.pop(0))
        monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
        state = PartialStore(settings.out, maker.recipe)
        state.begin(maker.batch_size, {})
        command._fill(maker, state, Ranks(1, 2, 1))
    assert len([*(settings.out / PROGRESS).glob("*.place.json")]) == shards > 10 and not dealt


def test_rows_with_extreme_norms_are_counted_with_what_leaves_them_out(cache_settings, tmp_path, tiny_model, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    cache(cache_settings(tmp_path / "even"))
    assert "median" not in capsys.readouterr().out
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["transformer.wpe.weight"][3] *= 1e4  # one position of each context is a sink
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", model=str(model))))
    sinks = int((store.tokens()["position"] == 3).sum())
    assert f"{sinks} of 1,500 rows of blocks.0.hook_out have norms beyond 10 times" in capsys.readouterr().out
    assert store.rows_beyond(10.0, "0") == sinks
    cache(cache_settings(tmp_path / "dropped", model=str(model), drop_sinks=10.0))
    assert "median" not in capsys.readouterr().out
