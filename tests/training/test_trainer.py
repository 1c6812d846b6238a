"""sae_lm.training.trainer: a run's invariants in every architecture, and that it can be continued bit for bit."""

import pytest
import torch
from small_trainings import ARCHITECTURES, HYPER, NONE, batches, equal, made, recipe, sparse_batches, trained

from sae_lm.errors import SaeError, SettingsError
from sae_lm.penalties.arms import Arm
from sae_lm.training import schedules
from sae_lm.training.dead_latents import resample
from sae_lm.training.recipe import default_widths


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        *((arch, NONE) for arch in ARCHITECTURES),
        ("topk", Arm("max_cos", 0.25)),
        ("relu", Arm("coactive", 0.1)),
        ("jumprelu", Arm("c2r", 3.0)),
        ("batchtopk", Arm("silent", 0.5)),
        ("relu", Arm("align", 0.5)),
        ("matryoshka", Arm("none", 0.0, widths=(4, 11, 24))),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_continued_from_its_state_repeats_the_uninterrupted_one_bit_for_bit(arch, kind):
    h = recipe(arch=arch, steps=30, resample_every=12, dead_after=32)
    data = batches(30)
    whole = made(kind, h)
    for step in range(30):
        whole.step(data[step], step)
    for stop in (1, 19):  # before AuxK's first look; between looks, after a resampling
        first = made(kind, h)
        for step in range(stop):
            first.step(data[step], step)
        state = {name: value.clone() for name, value in first.state().items()}
        assert all(value.is_contiguous() for value in state.values())
        second = made(kind, h)
        second.restore(state)
        assert second.log(stop - 1) == first.log(stop - 1)
        for step in range(stop, 30):
            second.step(data[step], step)
        theirs = whole.state()
        assert theirs.keys() == second.state().keys()
        assert all(torch.equal(value, theirs[name]) for name, value in second.state().items())


def test_a_state_before_the_first_step_can_be_restored():
    state = {name: value.clone() for name, value in made(seed=0).state().items()}
    run = made(seed=1)
    run.restore(state)
    for step, x in enumerate(batches(5)):
        run.step(x, step)
    assert equal(run, trained(steps=5))


def test_the_names_in_a_checkpoint_stay_what_they_are_on_disk():
    run = trained(Arm("max_cos", 0.25, coherence=0.2, arch="jumprelu"), steps=3)
    moments = {f"{kept}.{name}" for name in ("encoder", "W_dec") for kept in ("mean_square", "events")}
    vectors = ("b_enc", "b_dec", "log_threshold")
    adam = {f"adam.{name}.{key}" for name in vectors for key in ("step", "exp_avg", "exp_avg_sq")}
    assert set(run.state()) == moments | adam | {
        *(f"weights.{name}" for name in ("encoder", "b_enc", "W_dec", "b_dec", "log_threshold")),
        *("rows_since_fired", "rate", "dead", "threshold", "draws.penalty", "draws.resample"),
        *("control.first", "control.integral", "control.log_l0", "pressure.held", "pressure.value"),
        *("pressure.neighbours.candidates", "pressure.neighbours.cosines", "pressure.neighbours.turn"),
        *("pressure.controller.log_coefficient", "pressure.controller.average"),
        *(
            "parts.loss",
            "parts.fvu",
            "parts.l0",
            "parts.penalty",
            "parts.sparsity",
            "parts.coefficient",
            "parts.coherence",
        ),
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_lowers_the_loss_and_keeps_decoder_rows_at_unit_norm(arch):
    run, fvu = made(h=recipe(arch=arch)), []
    for step, x in enumerate(sparse_batches(40)):
        run.step(x, step)
        fvu.append(float(run.parts["fvu"]))
    torch.testing.assert_close(run.W_dec.norm(dim=1), torch.ones(24))
    assert sum(fvu[-5:]) < 0.8 * sum(fvu[:5])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_sae_made_at_the_end_computes_what_training_measured(arch, monkeypatch):
    monkeypatch.setattr(schedules, "THRESHOLD_MEMORY", 1)  # the threshold of the last batch, not an average
    run = trained(h=recipe(arch=arch, lr=1e-6))  # weights stand still: the SAE is that of the last step
    x = batches(40)[-1]
    sae = run.finish(scale=3.0, metadata={})
    z = sae.encode(3 * x)
    figures = run.log(39)
    assert sae.config.architecture == {"relu": "standard", "topk": "topk"}.get(arch, "jumprelu")
    # jumprelu is strictly above: the batch's smallest selected is then not
    missing = 1 / len(x) if arch in ("batchtopk", "matryoshka") else 0
    assert float((z > 0).sum(1).float().mean()) == pytest.approx(figures["l0"] - missing)
    fvu = float((3 * x - sae.decode(z)).square().sum(1).mean()) / 9
    assert fvu == pytest.approx(figures["fvu"], rel=1e-2 if missing else 1e-4)


@pytest.mark.parametrize("arch", ["relu", "jumprelu"])
def test_the_controller_brings_l0_to_k(arch):
    run, l0 = made(h=recipe(arch=arch, steps=400, lr=5e-3)), []
    for step, x in enumerate(sparse_batches(400)):
        run.step(x, step)
        l0.append(float(run.parts["l0"]))
    assert sum(l0[-40:]) / 40 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("arch", ["relu", "jumprelu"])
def test_a_fixed_sparsity_coefficient_stays_and_more_of_it_makes_codes_sparser(arch):
    little, much = (trained(h=recipe(arch=arch, sparsity_coefficient=c)) for c in (0.01, 0.3))
    assert float(little.parts["sparsity"]) == pytest.approx(0.01) and float(much.parts["sparsity"]) == pytest.approx(
        0.3
    )
    assert much.parts["l0"] < little.parts["l0"]


def test_relu_and_jumprelu_start_with_k_active_latents():
    for arch in ("relu", "jumprelu"):
        run = trained(h=recipe(arch=arch), steps=1)
        assert float(run.parts["l0"]) == pytest.approx(3, abs=0.1)


def test_batchtopks_threshold_follows_the_smallest_selected_activation():
    h = recipe(arch="batchtopk", lr=0.0, steps=80)
    run, data = made(h=h), batches(3)
    smallest = []
    for step, x in enumerate(data):
        pre = x @ run.W_enc
        smallest.append(pre.flatten().topk(48).values[-1].detach())
        run.step(x, step)
    expected = smallest[0].lerp(smallest[1], 0.25).lerp(smallest[2], 0.25)
    torch.testing.assert_close(run.threshold, expected)


def test_matryoshkas_short_prefixes_learn_to_reconstruct_alone():
    def prefix_error(arch):
        run = trained(h=recipe(arch=arch, widths=(6, 24)))
        x = batches(40)[0]
        sae = run.finish(1.0, {})
        z = sae.encode(x)
        return float((x - z[:, :6] @ sae.W_dec[:6] - sae.b_dec).square().sum(1).mean())

    assert prefix_error("matryoshka") < 0.95 * prefix_error("batchtopk")


def test_default_widths_are_the_papers_shares_and_distinct():
    assert default_widths(65_536) == (2048, 6144, 14_336, 30_720, 65_536)
    assert default_widths(48) == (1, 4, 10, 22, 48)
    for d_sae in range(1, 70):
        widths = default_widths(d_sae)
        assert widths == tuple(sorted(set(widths))) and widths[0] >= 1 and widths[-1] == d_sae


@pytest.mark.parametrize("widths", ["16,8,48", "8,8,48", "0,48", "8,16"])
def test_widths_that_do_not_nest_up_to_d_sae_are_refused(widths, tiny_store, tmp_path):
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    settings = TrainSettings(
        store=tiny_store, hook="blocks.1.hook_out", d_sae=48, k=4, arch="matryoshka", widths=widths, batch_size=64,
        out=tmp_path / "runs",
    )  # fmt: skip
    with pytest.raises(SettingsError, match="expected ascending widths from 1, the last d_sae \\(48\\)"):
        train(settings)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_selecting_in_bfloat16_trains_as_well_as_in_float32(arch):
    fvu = {"bfloat16": 0.0, "float32": 0.0}
    for matmul in fvu:
        for seed in range(3):  # one seed more or less lucky says nothing
            run = made(h=recipe(arch=arch, matmul=matmul, steps=100, lr=2e-3), seed=seed)
            for step, x in enumerate(sparse_batches(100)):
                run.step(x, step)
                fvu[matmul] += float(run.parts["fvu"]) if step >= 80 else 0.0
    # jumprelu's is the path of a controller and of thresholds as well
    assert fvu["bfloat16"] == pytest.approx(fvu["float32"], rel=0.03 if arch == "jumprelu" else 0.01)


def test_an_arm_may_have_an_architecture_and_k_of_its_own():
    run = trained(Arm("none", 0.0, arch="batchtopk", k=5))
    assert run.arch == "batchtopk" and float(run.parts["l0"]) == pytest.approx(5, abs=0.1)
    assert equal(run, trained(h=recipe(arch="batchtopk", k=5)))


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka"])
def test_a_latent_selected_at_zero_counts_as_silent(arch):
    run = made(h=recipe(arch=arch))
    with torch.no_grad():
        run.weights.b_enc[:] = -50.0
    for step, x in enumerate(batches(5)):
        run.step(x, step)
    assert run.log(4)["dead"] == 24 and run.log(4)["l0"] == 0 and not run.firing_frequency.any()


def test_the_firing_frequency_is_the_share_of_rows_at_first_and_an_average_later():
    h = recipe(lr=0.0, steps=3)
    run, data = made(h=h), batches(3)
    for step, x in enumerate(data):
        run.step(x, step)
    fires = torch.stack([(run.finish(1.0, {}).encode(x) > 0).float().mean(0) for x in data])
    torch.testing.assert_close(run.firing_frequency, fires.mean(0))


@pytest.mark.parametrize(
    ("arch", "way"),
    [("topk", "auxk"), ("relu", "auxk"), ("jumprelu", "auxk"), ("topk", "resampling"), ("relu", "resampling")],
)
def test_dead_latents_are_revived(arch, way):
    def dead_and_fvu(aux, every):
        h = recipe(arch=arch, k=1, aux_coefficient=aux, resample_every=every, steps=120, dead_after=128, d_sae=16)
        run = made(h=h, d_in=16)
        with torch.no_grad():
            run.weights.b_enc[:12] = -0.4  # the other four outdo them
        draw = torch.Generator().manual_seed(7)
        for step in range(120):  # sixteen features, one at a time
            run.step(torch.eye(16)[torch.randint(0, 16, (32,), generator=draw)], step)
        figures = run.log(119)
        return figures["dead"], figures["fvu"]

    dead_without, fvu_without = dead_and_fvu(0.0, 0)
    dead_with, fvu_with = dead_and_fvu(1 / 32, 0) if way == "auxk" else dead_and_fvu(0.0, 40)
    assert dead_without > 6 and dead_with <= 0.75 * dead_without
    assert fvu_with < 0.7 * fvu_without


def test_a_step_is_adams_on_clipped_gradients_without_their_radial_part(monkeypatch):
    """Clipping inside Adam and gradients set by hand change nothing that torch's own way would not give."""
    monkeypatch.setattr("sae_lm.training.optimizer.CLIP_NORM", 0.05)
    run, data = made(h=recipe(optimizer="adam")), batches(6)
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in run.named.items()}
    plain = torch.optim.Adam(leaves.values(), fused=False)
    from reference import dense_loss

    for step, x in enumerate(data):
        run.step(x, step)
        encoder, b_enc, W_dec, b_dec = leaves.values()
        dense_loss("topk", x, encoder.T, b_enc, W_dec, b_dec, k=3)[0].backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            assert torch.nn.utils.clip_grad_norm_(leaves.values(), 0.05) > 0.05
            plain.param_groups[0]["lr"] = HYPER.learning_rate(step)
            plain.step()
            plain.zero_grad()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        for name, weight in run.named.items():
            torch.testing.assert_close(weight, leaves[name], atol=2e-5, rtol=1e-4)


def test_a_run_in_one_thread_repeats_bit_for_bit():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for arch in ARCHITECTURES:
            assert equal(trained(h=recipe(arch=arch)), trained(h=recipe(arch=arch)))
    finally:
        torch.set_num_threads(threads)


def test_the_log_changes_nothing():
    def run(logged):
        made_now = made(Arm("max_cos", 0.25))
        for step, x in enumerate(batches(20)):
            made_now.step(x, step)
            if logged:
                made_now.log(step)
        return made_now

    assert equal(run(True), run(False))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_tensor_of_a_step_is_as_large_as_batch_by_latents(arch, monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    from sae_lm.training import selection

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple) else [out]:
                if isinstance(one, torch.Tensor) and one.layout == torch.strided:
                    self.elements = max(self.elements, one.numel())
            return out

    monkeypatch.setattr(selection, "TILE", 16)
    run = made(h=recipe(arch=arch, matmul="bfloat16", d_sae=512))
    for step, x in enumerate(batches(2, rows=128)):
        with Largest() as seen:
            run.step(x, step)
        assert 512 * 8 <= seen.elements <= 128 * 512 / 4  # the weights have 512 x 8; a whole code has 128 x 512


def test_learning_rate_rises_holds_and_falls_to_nothing():
    rates = [HYPER.learning_rate(step) for step in range(40)]
    assert rates[0] == pytest.approx(HYPER.lr / 4)  # warm-up of 4 steps
    assert rates[10] == HYPER.lr
    assert rates[-1] == pytest.approx(HYPER.lr / 8)  # the last of 8 decay steps
    assert rates[:4] == sorted(rates[:4]) and rates[-8:] == sorted(rates[-8:], reverse=True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_loss_that_is_no_longer_finite_stops_with_arm_and_seed(arch):
    run = made(seed=3, h=recipe(arch=arch))
    run.step(torch.full((16, 8), float("nan")), 0)
    with pytest.raises(SaeError, match="arm none, seed 3"):
        run.log(0)


def test_a_weight_that_is_no_longer_finite_stops_too_though_this_steps_loss_is_not_from_it():
    run = made()
    run.step(batches(1)[0], 0)
    run.W_dec[0, 0] = float("nan")
    assert run.parts["loss"].isfinite()
    with pytest.raises(SaeError, match="arm none, seed 0: the loss or a weight became NaN or infinite by step 0"):
        run.log(0)


@pytest.mark.parametrize("kind", [NONE, Arm("max_cos", 5.0), Arm("align", 5.0)], ids=lambda kind: kind.name)
@pytest.mark.parametrize("optimizer", ["row_rms", "adam"])
def test_a_resampled_latent_keeps_its_new_row_in_the_step_that_gave_it(kind, optimizer, monkeypatch):
    """That step's gradient, and the penalty's that is kept from earlier ones, are of the row it had before."""
    given = []

    def spied(*args):
        resample(*args)
        given.append((args[3], args[2].W_dec[args[3]].clone()))

    monkeypatch.setattr("sae_lm.training.trainer.resample", spied)
    run = made(kind, recipe(steps=60, resample_every=13, dead_after=48, penalty_every=5, k=1, optimizer=optimizer))
    for step, x in enumerate(batches(40)):
        run.step(x, step)
        for dead, rows in given:
            torch.testing.assert_close(run.W_dec[dead], rows)
        given.clear()
        if step == 13:
            break
    assert step == 13 and (run.rows_since_fired == 0).any()
