"""What tests share: a tiny random model on disk, a tiny store, a tiny SAE."""

import hashlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach out; those about the hub set their own
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for every core already

import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from sae_lm.sae.model import SAE, SaeConfig

sys.path.insert(0, str(Path(__file__).parent / "support"))

import simulated_device  # noqa: F401  its device has to be known before the first backward pass

TEXTS = [f"Document {i}: the quick brown fox number {i} jumps over {i * 7} lazy dogs. " * 6 for i in range(40)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A GPT-2 of 3 layers and width 16 with a byte-level tokenizer, in Hugging Face format."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-gpt2")


def save_tiny_model(folder: Path, width: int = 16, layers: int = 3) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=width, n_layer=layers, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Forty short documents as JSON lines."""
    import json

    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="session")
def cache_settings(tiny_model, text_file):
    """Settings for a store of 1500 rows in shards of 8 contexts, two hooks; takes the output folder."""
    from sae_lm.settings import CacheSettings

    def make(out, **changes):
        values = {
            "model": str(tiny_model),
            "text": str(text_file),
            "hooks": "blocks.0.hook_out,blocks.1.hook_resid_post",
            "tokens": 1500,
            "context_size": 16,
            "batch_size": 4,
            "shard_tokens": 128,
            "dtype": "float32",
            "out": out,
        }
        return CacheSettings(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_store(cache_settings, tmp_path_factory):
    """A finished store of the tiny model; read only."""
    from sae_lm.commands.cache import cache

    return cache(cache_settings(tmp_path_factory.mktemp("stores") / "tiny"))


@pytest.fixture(scope="module")
def few_words():
    """The tiny text has so few words that hardly any is left for each side of a split, and chance tells all of them: let
    every token be a word, dealt out by a hash alone, and chance not be asked."""

    def by_hash(words, labels, seed):
        draws = torch.tensor([hashlib.sha256(f"{seed},{word}".encode()).digest()[0] for word in words])
        return torch.bucketize(draws / 256, torch.tensor([0.64, 0.8]), right=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_lm.concepts.rows.word_of", lambda token_id, vocabulary: str(token_id))
        patch.setattr("sae_lm.concepts.rows.split_words", by_hash)
        patch.setattr("sae_lm.concepts.probes.CHANCE", 0.0)
        yield


@pytest.fixture
def make_sae():
    """A random SAE; ``unit=False`` leaves decoder rows at uneven norms."""

    def make(architecture="topk", d_in=6, d_sae=10, k=3, unit=True, seed=0, **metadata):
        draw = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(d_sae, d_in, generator=draw)
        weights = {
            "W_enc": torch.randn(d_in, d_sae, generator=draw),
            "b_enc": torch.randn(d_sae, generator=draw) * 0.1,
            "W_dec": W_dec / W_dec.norm(dim=1, keepdim=True) if unit else W_dec * 2,
            "b_dec": torch.randn(d_in, generator=draw),
        }
        if architecture == "jumprelu":
            weights["threshold"] = torch.rand(d_sae, generator=draw)
        config = SaeConfig(
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            k=k if architecture in ("topk", "groupmax") else None,
            metadata={"hook_name": "blocks.1.hook_out", "context_size": 16, "prepend_bos": True, **metadata},
        )
        return SAE(config, weights)

    return make


@pytest.fixture
def unchecked():
    """Shapes and types of every call are checked by shorter tests: that is a third of a training of small steps."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
