"""A model that lies on several devices, or waits on disk, gives what it gives on one."""

import importlib.util

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from simulated_device import NAME, SIMULATION, SimulatedTensor, simulated_device
from tiny_models import save

from sae_lm.commands.cache import cache
from sae_lm.concepts.embedding import input_embeddings
from sae_lm.concepts.rows import ConceptRows
from sae_lm.data.store import open_store
from sae_lm.errors import ModelError, SettingsError
from sae_lm.interp.promoted_tokens import promoted_tokens
from sae_lm.lm.bridge import Capture, load_model
from sae_lm.lm.device_map import check_device_map, input_device, waiting
from sae_lm.lm.forward import open_forward
from sae_lm.lm.source import find_model
from sae_lm.metrics.language_model import HeldOutText, cross_entropies
from sae_lm.runtime.device import OnItsWay
from sae_lm.sae.model import SAE, SaeConfig

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.arange(2 * 12).view(2, 12) * 7 % 290 + 1
HOOKS = ["blocks.0.hook_out", "blocks.2.hook_in", "blocks.2.hook_out"]
ON_DISK = {"embed_tokens": "disk", "layers.0": "cpu", "layers.1": "disk", "layers.2": "disk", "norm": "cpu", "rotary_emb": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_model):
    return save("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), tiny_model)


def of_bridge(places):
    return {f"model.{module}": place for module, place in places.items()} | {"lm_head": places["embed_tokens"]}


def run(folder, kind, device_map, ids=IDS):
    with open_forward(find_model(str(folder)), HOOKS, kind=kind, device="auto", dtype=torch.float32,
                      device_map=device_map) as forward:  # fmt: skip
        return {name: value.cpu() for name, value in forward(ids).items()}, forward.remark


@pytest.fixture
def disk_with_the_bridge():
    import transformer_lens.model_bridge.sources.transformers as source

    if "offload_folder" not in source.boot.__code__.co_varnames:
        pytest.skip("TransformerLens 3 has no model wait on disk")


def test_a_model_whose_blocks_wait_on_disk_gives_the_same_rows(llama):
    plain, remark = run(llama, "huggingface", None)
    assert remark == ""
    waited, remark = run(llama, "huggingface", ON_DISK)
    assert all(torch.equal(waited[name], plain[name]) for name in HOOKS)
    assert remark.startswith("of 6 parts of the model, 3 on disk and 3 on the CPU wait for each pass")


def test_the_bridges_blocks_may_wait_on_disk_too(llama, disk_with_the_bridge):
    plain, _ = run(llama, "bridge", None)
    waited, remark = run(llama, "bridge", of_bridge(ON_DISK))
    assert all(torch.equal(waited[name], plain[name]) for name in HOOKS)
    assert "wait for each pass" in remark


def test_what_reads_weights_reads_those_that_wait(llama, disk_with_the_bridge):
    plain = load_model(str(llama), device="cpu")
    waited = load_model(str(llama), device_map=of_bridge(ON_DISK))
    assert input_device(waited) == torch.device("cpu")
    rows = ConceptRows(
        torch.zeros(2, 16), torch.tensor([3, 200]), torch.ones(2, 1).bool(), torch.zeros(2).long(), ["a"], ("token",)
    )
    assert torch.equal(input_embeddings(waited, rows), input_embeddings(plain, rows))
    with pytest.raises(ModelError, match="unembedding waits .* load the model without device_map"):
        promoted_tokens(waited, torch.ones(3, 16), 2)
    assert torch.equal(waited(IDS), plain(IDS))
    keywords = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    assert torch.equal(waited.generate(IDS, **keywords), plain.generate(IDS, **keywords))


@pytest.mark.parametrize("kind", ["huggingface", "bridge"])
def test_a_store_is_the_same_however_the_model_is_placed(tmp_path, cache_settings, kind):
    here = open_store(cache(cache_settings(tmp_path / "here", tokens=300, forward=kind, device="cpu")))
    there = open_store(cache(cache_settings(tmp_path / "there", tokens=300, forward=kind, device_map="auto")))
    assert here.manifest.shards == there.manifest.shards
    assert here.manifest.recipe == there.manifest.recipe


def laid_over_two(bridge, first):
    """What accelerate makes of {blocks before first: cpu, the others: another device}, for a device it does not know."""
    blocks = [block.original_component for block in list(bridge.blocks)[first:]]
    for module in [*blocks, bridge.ln_final.original_component]:
        module.to(NAME)
        add_hook_to_module(module, AlignDevicesHook(execution_device=torch.device(NAME)))
    add_hook_to_module(bridge.unembed.original_component, AlignDevicesHook(execution_device="cpu"))
    return bridge


def test_activations_come_from_the_device_of_their_block(llama):
    plain = load_model(str(llama), device="cpu")
    with Capture(plain, HOOKS) as capture:
        expected = {name: value.clone() for name, value in capture(IDS).items()}
    with simulated_device():
        bridge = laid_over_two(load_model(str(llama), device="cpu"), 1)
        with Capture(bridge, HOOKS) as capture:
            seen = capture(IDS)
        assert [seen[name].device.type for name in HOOKS] == ["cpu", NAME, NAME]
        got = OnItsWay(seen).get()
        for name in HOOKS:
            torch.testing.assert_close(got[name], expected[name])


def test_cross_entropies_of_a_model_on_two_devices_are_those_on_one(llama):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    sae = SAE(SaeConfig(architecture="topk", d_in=16, d_sae=24, k=4), {"W_enc": W_dec.T.clone(), "W_dec": W_dec, "b_enc": torch.zeros(24), "b_dec": torch.zeros(16)})  # fmt: skip
    text = HeldOutText(IDS, IDS % 5 == 0, "blocks.1.hook_out", torch.full((16,), 0.1))
    expected = cross_entropies(load_model(str(llama), device="cpu"), text, {"a": sae})["a"]
    with simulated_device():
        bridge = laid_over_two(load_model(str(llama), device="cpu"), 1)
        got = cross_entropies(bridge, text, {"a": sae})["a"]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected))


def test_what_is_on_its_way_from_two_devices_is_waited_for_on_both(monkeypatch):
    class OnTheSecond(SimulatedTensor):
        device = property(lambda self: torch.device(NAME, 1))

    recorded, waited = [], []

    class Event:
        def record(self, stream):
            recorded.append(stream)
            self.stream = stream

        def synchronize(self):
            waited.append(self.stream)

    with simulated_device():
        monkeypatch.setattr(type(SIMULATION), "Event", Event)
        monkeypatch.setattr(type(SIMULATION), "current_stream", lambda self, device: device.index)
        first, second = torch.ones(2).to(NAME), OnTheSecond(torch.ones(2))
        OnItsWay({"a": first, "b": second, "c": first}).get()
    assert sorted(set(waited)) == [0, 1]
    assert recorded == [0, 1, 0]


def test_what_cannot_be_laid_out_is_refused_in_a_sentence_before_anything_is_loaded(
    tmp_path, cache_settings, monkeypatch
):
    check_device_map(None, "cuda", one_of_many=True)
    with pytest.raises(SettingsError, match="device_map is 'auto' and device is 'cpu', .* give one of the two"):
        cache(cache_settings(tmp_path / "a", device="cpu", device_map="auto"))
    with pytest.raises(SettingsError, match="one of several processes .* start a single one, without torchrun"):
        check_device_map("auto", one_of_many=True)
    with pytest.raises(SettingsError, match="expected 'auto', 'balanced', 'balanced_low_0' or 'sequential'"):
        cache_settings(tmp_path / "a", device_map="both")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "sae_lm.lm.device_map.find_spec", lambda name: None if name == "accelerate" else find_spec(name)
    )
    with pytest.raises(
        SettingsError, match="needs the package accelerate, and it is not installed; pip install accelerate"
    ):
        load_model("embedded", device_map="auto")


def test_nothing_is_said_of_a_model_that_is_all_where_it_runs():
    from types import SimpleNamespace

    assert waiting(SimpleNamespace(hf_device_map={"": "cpu"})) == ""
    assert waiting(SimpleNamespace(hf_device_map={"a": 0, "b": 1})) == ""
    assert waiting(SimpleNamespace(hf_device_map={"a": 0, "b": 1, "c": "cpu"})) == (
        "of 3 parts of the model, 1 on the CPU wait for each pass to fetch them, which is slow"
    )
