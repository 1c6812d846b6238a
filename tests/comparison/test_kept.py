"""What an unfinished comparison keeps: what each part depends on, and whose it is."""

import math

import pytest
import torch
from compare_runs import comparing, two_arms

from sae_lm.comparison.kept import Kept, kept_parts
from sae_lm.comparison.runs import Run, read_runs
from sae_lm.data.store import open_store
from sae_lm.penalties.arms import Arm, parse_arm


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    return two_arms(tiny_store, tmp_path_factory.mktemp("runs") / "tiny")


def test_parts_of_other_settings_or_saes_are_measured_anew(runs, tiny_store, tmp_path):
    store, settings, found = open_store(tiny_store), comparing(runs, tmp_path), read_runs(runs, "none")
    saes, others = [found.by_key[parse_arm("max_cos:0.5@k=4"), 1]], [found.by_key[parse_arm("none@k=4"), 1]]
    value = {"figures": {"fvu": 0.1, "none": math.nan}, "fired": torch.tensor([True, False]), "none": torch.zeros(0)}

    def part(what="an SAE", of=saes, measure=lambda: 7, found=found, device="cpu", **changes):
        with kept_parts(settings.model_copy(update=changes), store, found, device) as kept:
            return kept.part(what, of, measure)

    def unwanted():
        raise AssertionError

    first = part(measure=lambda: value)
    assert first["fired"].tolist() == [True, False] and math.isnan(first["figures"]["none"])
    assert first["none"].dtype == torch.float32 and first["none"].shape == (0,)
    assert part(measure=unwanted, fvu_cost=(0.1,))["figures"]["fvu"] == 0.1
    elsewhere = found._replace(training=found.training | {"hook": "blocks.0.hook_out"})
    narrow = found.by_key[parse_arm("none@k=4"), 0]
    narrow = narrow._replace(training=narrow.training | {"d_sae": 8})  # n of the decoder projection hangs on the least
    narrower = found._replace(by_key=found.by_key | {(narrow.arm, narrow.seed): narrow})
    for change in ({"seed": 9}, {"tokens": 7}, {"max_k": 3}, {"device": "cuda"}, {"found": elsewhere}, {"found": narrower},
                   {"what": "another thing"}, {"of": others}):  # fmt: skip
        assert part(**change) == 7, change
    assert part(measure=unwanted)["figures"]["fvu"] == 0.1


def test_parts_are_of_the_concepts_in_use_too(runs, tiny_store, tmp_path):
    store, settings, found = open_store(tiny_store), comparing(runs, tmp_path), read_runs(runs, "none")
    with kept_parts(settings, store, found, "cpu") as kept:
        assert kept.about([["digit", [1, 2]]]).part("a", [], lambda: 1) == 1
        for concepts, expected in (
            ([["digit", [1, 2]]], 1),
            ([["digit", [1]]], 2),
            ([["capitalised", [1, 2]]], 2),
            ([], 2),
        ):
            assert kept.about(concepts).part("a", [], lambda: 2) == expected, concepts
        kept.remove()


def test_an_sae_of_another_program_is_known_by_what_is_loaded(make_sae, tmp_path, monkeypatch):
    sums = []
    for sae in (make_sae("topk", k=3), make_sae("topk", k=3), make_sae("topk", k=4)):
        monkeypatch.setattr(Run, "load", lambda run, device, sae=sae: sae)
        run = Run(Arm("none", 0.0, label="x.pt"), 0, tmp_path / "x.pt", {}, "topk")
        sums.append(Kept(tmp_path, "", {}).checksum(run))
    assert sums[0] == sums[1] != sums[2]


def test_of_two_comparisons_at_once_into_one_folder_one_keeps_no_parts(runs, tiny_store, tmp_path):
    store, settings, found = open_store(tiny_store), comparing(runs, tmp_path), read_runs(runs, "none")
    with kept_parts(settings, store, found, "cpu") as kept, kept_parts(settings, store, found, "cpu") as other:
        kept.part("a", [], lambda: 1)
        assert other.part("a", [], lambda: 2) == 2 and other.parts() == []
        other.remove()
        assert len(kept.parts()) == 1
        kept.remove()
    assert not (tmp_path / "measured").exists()
