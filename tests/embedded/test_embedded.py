"""The embedded text and the embedded model: real, held out, and better than counting."""

import builtins
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from sae_lm.embedded import MODEL_DIR
from sae_lm.embedded.recipe import train as recipe
from sae_lm.embedded.text import embedded_dataset, embedded_documents, is_held_out


@pytest.fixture(scope="module")
def documents():
    return embedded_documents()


def test_the_documents_are_the_interpreters_own_and_come_in_a_stable_order(documents):
    names = [document.name for document in documents]
    assert len(set(names)) == len(names) > 300
    assert sum(len(document.text) for document in documents) > 1_500_000
    assert "topic:assert" in names and "module:json.decoder" in names and "module:builtins" in names
    assert documents == embedded_documents.__wrapped__()
    text = next(document.text for document in documents if document.name == "module:json.decoder")
    assert "class JSONDecoder" in text and "Simple JSON <https://json.org> decoder" in text


def test_an_error_or_a_result_at_the_prompt_does_not_change_the_documents(monkeypatch):
    monkeypatch.setattr(sys, "last_type", ZeroDivisionError, raising=False)
    monkeypatch.setattr(builtins, "_", sorted, raising=False)
    assert embedded_documents.__wrapped__() == embedded_documents()


def test_the_split_is_by_name_with_training_documents_first(documents):
    held_out = [document.held_out for document in documents]
    assert held_out == sorted(held_out)
    assert held_out == [is_held_out(document.name) for document in documents]
    assert 0.05 < sum(held_out) / len(held_out) < 0.15
    train, kept, every = (embedded_dataset(split) for split in ("train", "held_out", "all"))
    assert [*train["name"], *kept["name"]] == list(every["name"]) == [document.name for document in documents]


def test_no_docstring_stands_in_two_documents(documents):
    paragraphs = [document.text for document in documents if "Return self<value." in document.text]
    assert len(paragraphs) <= 1  # slot wrappers repeat this line in hundreds of classes


def test_the_models_card_states_its_recipe_and_beats_the_bigram_by_a_nat():
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    figures = {
        name: float(value)
        for name, value in re.findall(r"\| (this model|best smoothed bigram|unigram).*\| ([\d.]+) \|", card)
    }
    assert figures["this model"] + 1.0 <= figures["best smoothed bigram"] < figures["unigram"]
    for number in (1399, 1023, 2554, 766, 345, 158, 1400, 145, 1342, 1661, 28054, 174, 2600, 76):
        assert f"({number})" in card
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 10_000_000


def test_the_models_held_out_loss_is_what_the_card_says(documents):
    """On a part of the held-out documentation of this interpreter, so within a margin of the card's number."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"\| this model \| ([\d.]+) \|", card)[1])
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    stream = recipe.encode(tokenizer, [d.text for d in documents if d.held_out])
    rows = stream[: len(stream) // 256 * 256].reshape(-1, 256)[::16]  # every sixteenth context
    loss = recipe.cross_entropy(model, rows.flatten())
    assert abs(loss - stated) < 0.25


def test_crops_depend_on_seed_and_step_alone():
    corpus = recipe.Corpus(
        np.arange(5000, dtype=np.int32) % 4000, np.arange(9000, dtype=np.int32) % 4000, np.zeros(0), []
    )
    first, again, other = (recipe.crops(corpus, 0.3, 4, 0, step) for step in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4, recipe.CONTEXT + 1) and (first[:, 0] == 0).all()


def test_the_bigram_is_a_distribution_and_learns_what_follows_what(monkeypatch):
    monkeypatch.setattr(recipe, "VOCABULARY", 20)
    train = np.array([1, 2, 3] * 200, np.int32)
    assert recipe.bigram_cross_entropy([(train, 1.0)], np.array([1, 2, 3, 1, 2, 3]), 0.75) < 0.05
    assert recipe.unigram_cross_entropy(train, np.array([1, 2, 3])) > np.log(3)
    # over every possible next token the probabilities sum to 1; the start token 0 is never scored
    after_1 = [np.exp(-recipe.bigram_cross_entropy([(train, 1.0)], np.array([1, t]), 0.75)) for t in range(1, 20)]
    start = 0.75 / 200 * 0.5 / (3 + 0.5 * 20)  # what is left over times the start token's continuation share
    assert sum(after_1) + start == pytest.approx(1.0, abs=1e-9)


def test_a_checkpoint_resumes_bit_for_bit(tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )

    def run(model, optimizers, steps):
        for step in steps:
            ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(step))
            recipe.training_loss(model, ids).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def fresh(seed):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(small)
        return model, recipe.make_optimizers(model, 0.02, 0.1)

    whole = fresh(0)
    run(*whole, range(6))
    half = fresh(0)
    run(*half, range(3))
    recipe.save_checkpoint(tmp_path / "c.safetensors", *half, 3, 1.5)
    resumed = fresh(1)
    assert recipe.load_checkpoint(tmp_path / "c.safetensors", *resumed) == (3, 1.5)
    run(*resumed, range(3, 6))
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_opening_the_embedded_text_imports_neither_datasets_nor_torch():
    program = (
        "import sys; from sae_lm.data.text import open_text; text = open_text('embedded'); next(text.chunks()); "
        "print([m for m in ('torch', 'datasets', 'pandas') if m in sys.modules], text.fingerprint)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[] ")
