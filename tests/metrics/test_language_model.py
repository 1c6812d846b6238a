"""sae_lm.metrics.language_model: cross-entropies against plain runs of the model, with and without its first blocks."""

import math

import pytest
import torch

import sae_lm
from sae_lm.metrics.language_model import CrossEntropy, HeldOutText, cross_entropies

pytestmark = pytest.mark.transformer_lens_3


def test_cross_entropies_equal_plain_runs_with_special_tokens_left_out(tiny_model, make_sae):
    model = sae_lm.load_model(str(tiny_model))
    sae = make_sae(d_in=16, d_sae=32)
    blocks = torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    blocks[:, 0] = 0
    special = blocks == 0
    mean = torch.linspace(-1, 1, 16)
    result = cross_entropies(model, HeldOutText(blocks, special, "blocks.1.hook_out", mean), {"a": sae}, batch_size=2)[
        "a"
    ]

    def plain(function):
        hook = ("blocks.1.hook_out", lambda tensor, hook: function(tensor))
        logits = model.run_with_hooks(blocks, fwd_hooks=[hook])
        counted = [(c, p) for c in range(5) for p in range(11) if not special[c, p]]
        return torch.stack([logits[c, p].double().log_softmax(-1) for c, p in counted])

    targets = torch.tensor([int(blocks[c, p + 1]) for c in range(5) for p in range(11) if not special[c, p]])

    def loss(logs):
        return float(-logs[torch.arange(len(targets)), targets].mean())

    clean = plain(lambda x: x)
    assert result.tokens == len(clean) == int((~special[:, :-1]).sum())
    assert result.clean == pytest.approx(loss(clean), abs=1e-5)
    kept = {
        "spliced": plain(lambda x: torch.where(special[..., None], x, sae(x))),
        "ablated": plain(torch.zeros_like),
        "mean_ablated": plain(lambda x: torch.where(special[..., None], x, mean)),
    }
    for name, logs in kept.items():
        assert getattr(result, name) == pytest.approx(loss(logs), abs=1e-5)
    for name in ("spliced", "ablated"):
        divergence = float((clean.exp() * (clean - kept[name])).sum(1).mean())
        assert getattr(result, f"kl_{name}") == pytest.approx(divergence, abs=1e-5) and divergence > 0


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_in", "blocks.1.hook_in", "blocks.1.attn.hook_out", "blocks.2.hook_out"]
)
def test_passes_that_start_at_the_hook_come_to_what_whole_passes_do(tiny_model, make_sae, hook):
    model = sae_lm.load_model(str(tiny_model))
    saes = {"a": make_sae(d_in=16, d_sae=32), "b": make_sae("standard", d_in=16, d_sae=32, seed=1)}
    blocks = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    runs = [0]
    model.blocks[0].attn.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    short = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    if hook != "blocks.0.hook_in":
        assert runs == [3]  # once per batch, however many SAEs
    left, runs[0] = [], 0
    model.blocks[0].attn.register_forward_hook(lambda *_: left.append(True))
    model.blocks[2].register_forward_pre_hook(lambda *_: left.pop() and None)  # nothing left: IndexError
    whole = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    # as it is, with zeros and with each SAE; where no block is left out, the check is a pass as well
    assert runs == [3 * 4 + (hook == "blocks.0.hook_in")]
    for name in saes:
        assert list(short[name][:6]) == pytest.approx(list(whole[name][:6]), abs=1e-6)
    assert not any("forward" in vars(block.original_component) for block in model.blocks)


def test_a_hook_with_heads_is_read_with_its_heads_side_by_side(tiny_model, make_sae):
    model = sae_lm.load_model(str(tiny_model))
    hook, sae = "blocks.1.attn.hook_z", make_sae(d_in=16, d_sae=32)
    blocks = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    blocks[:, 0] = 0
    special, mean = blocks == 0, torch.linspace(-1, 1, 16)
    found = cross_entropies(model, HeldOutText(blocks, special, hook, mean), {"a": sae}, batch_size=2)["a"]

    def loss(function):
        def replaced(z, hook):
            return torch.where(special[..., None], z.flatten(2), function(z.reshape(5, 12, 16))).view(z.shape)

        logits = model.run_with_hooks(blocks, fwd_hooks=[(hook, replaced)])[:, :-1][~special[:, :-1]]
        return float(torch.nn.functional.cross_entropy(logits, blocks[:, 1:][~special[:, :-1]]))

    assert found.clean == pytest.approx(loss(lambda z: z), abs=1e-5)
    assert found.spliced == pytest.approx(loss(sae), abs=1e-5)
    assert found.mean_ablated == pytest.approx(loss(lambda z: mean.expand_as(z)), abs=1e-5)
    with sae_lm.splice(model, sae, hook=hook, keep=special):
        logits = model(blocks)[:, :-1][~special[:, :-1]]
    assert found.spliced == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, blocks[:, 1:][~special[:, :-1]])), abs=1e-5
    )


def test_saes_that_do_not_fit_in_memory_together_share_the_models_passes_too(
    tiny_model, make_sae, tmp_path, monkeypatch
):
    from sae_lm.comparison import runs as runs_module
    from sae_lm.comparison.runs import Loaded, Run
    from sae_lm.penalties.arms import parse_arm
    from sae_lm.sae.formats.saelens import save

    model = sae_lm.load_model(str(tiny_model))
    saes = {(parse_arm("none"), seed): make_sae(d_in=16, d_sae=32, seed=seed) for seed in range(3)}
    for (_, seed), sae in saes.items():
        save(sae, tmp_path / f"{seed}")
    of = {(arm, seed): Run(arm, seed, tmp_path / f"{seed}", {}, "topk") for arm, seed in saes}
    monkeypatch.setattr(runs_module, "KEPT_BYTES", 0)
    loaded = Loaded(of, "cpu")
    blocks = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    runs, done = [0], []
    model.blocks[0].attn.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    hook = "blocks.1.hook_out"
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), loaded, batch_size=2, tell=done.append)
    assert runs == [3] and sum(done) == 15 and loaded.kept is None
    expected = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    assert list(found) == list(expected)
    for key in saes:
        assert list(found[key][:6]) == pytest.approx(list(expected[key][:6]), abs=1e-6)


def test_a_model_whose_blocks_hand_on_more_than_their_output_runs_whole(tiny_model, make_sae):
    model = sae_lm.load_model(str(tiny_model))
    saes = {"a": make_sae(d_in=16, d_sae=32)}
    blocks = torch.randint(1, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    expected = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    left = []
    model.blocks[0].attn.register_forward_hook(lambda *_: left.append(True))
    fails = model.blocks[2].register_forward_pre_hook(lambda *_: left.pop() and None)  # nothing left: IndexError
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    assert list(found[:6]) == pytest.approx(list(expected[:6]), abs=1e-6)
    fails.remove()

    def off_unless_left(module, inputs, output):
        return output if left and left.pop() else output * 3

    left.clear()
    model.blocks[2].attn.register_forward_hook(
        lambda module, inputs, output: (off_unless_left(module, inputs, output[0]), *output[1:])
    )
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    assert list(found[:6]) == pytest.approx(list(expected[:6]), abs=1e-6)


def test_recovered_is_one_for_a_lossless_splice_and_zero_for_one_as_bad_as_zeros():
    assert CrossEntropy(10, clean=3.0, spliced=3.0, ablated=9.0).recovered == 1
    assert CrossEntropy(10, clean=3.0, spliced=9.0, ablated=9.0).recovered == 0
    assert CrossEntropy(10, clean=3.0, spliced=4.5, ablated=9.0).recovered == 0.75
    assert CrossEntropy(10, 3.0, 4.5, 9.0, kl_spliced=1.0, kl_ablated=4.0).kl_recovered == 0.75
    assert CrossEntropy(10, 3.0, 4.5, 9.0, mean_ablated=6.0).recovered_from_mean == 0.5
    free = CrossEntropy(10, 3.0, 4.5, 3.0, kl_spliced=0.1, kl_ablated=0.0, mean_ablated=3.0)
    assert all(map(math.isnan, (free.recovered, free.kl_recovered, free.recovered_from_mean)))
