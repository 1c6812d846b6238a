"""What holds for any input: settings, arms, commands, TOML, batches, tokens and sparse codes, on examples that are drawn."""

import json
import shlex
from decimal import Decimal
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lm.cli import parse
from sae_lm.data.characters import pieces
from sae_lm.errors import SaeLmError, SettingsError
from sae_lm.fields import parse_count, split_commas
from sae_lm.metrics.codes import encode_sparse
from sae_lm.penalties.arms import parse_arm, parse_arms
from sae_lm.runtime.files import json_bytes
from sae_lm.runtime.toml import parse_toml
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.settings import command_line

some = settings(max_examples=60, deadline=None, derandomize=True)
texts = st.text(st.characters(exclude_categories=()), max_size=30)


@some
@given(st.integers(0, 10**15), st.sampled_from(["", "k", "M", "b", "K"]))
def test_a_count_is_its_number_times_its_unit(number, unit):
    factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[unit.lower()]
    assert parse_count(f"{number}{unit}") == parse_count(f" {number:,}{unit} ") == number * factor
    shown = f"{Decimal(number) / factor:f}"
    assert parse_count(f"{shown}{unit}") == number


@some
@given(texts)
def test_a_text_is_a_count_or_is_refused_in_a_sentence(text):
    try:
        assert parse_count(text) >= 0
    except ValueError as error:
        assert str(error).startswith("expected a whole number")


@some
@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5), max_size=5))
def test_a_list_is_what_its_commas_part(items):
    assert split_commas(" , ".join(items)) == tuple(items)


penalties = st.sampled_from(["abs_cos", "sq_cos", "max_cos", "coactive", "freq_cos", "c2r", "silent", "align"])
options = st.lists(st.sampled_from(["arch=relu", "arch=batchtopk", "k=8", "exact", "every=2"]), unique=True, max_size=3)


@some
@given(penalties, st.floats(1e-4, 1e4), options)
def test_an_arms_name_is_read_as_that_arm_again(penalty, coefficient, given_options):
    text = "@".join([f"{penalty}:{coefficient:.6g}", *given_options])
    try:
        arm = parse_arm(text)
    except SettingsError:
        return  # options that exclude each other
    assert parse_arm(arm.name) == arm
    assert parse_arm(parse_arm(arm.name).name).name == arm.name


@some
@given(texts)
def test_any_text_is_an_arm_or_is_refused_in_one_sentence(text):
    try:
        assert all(parse_arm(arm.name) == arm for arm in parse_arms([text]))
    except SaeLmError as error:
        assert str(error) and str(error).isprintable()


@some
@given(
    st.integers(1, 10**6),
    st.floats(1e-6, 1),
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12).filter(lambda text: text == text.strip()),
)
def test_a_command_line_makes_its_settings_again(d_sae, lr, name):
    words = ["train", f"--store={name}", f"--d-sae={d_sae}", "--k", "1", f"--lr={lr!r}", "--out", "saes"]
    try:
        verb, made = parse(words)
    except SettingsError:
        return  # a name that is no address, say
    assert parse(shlex.split(command_line(made))[1:]) == (verb, made)


keys = st.text(st.sampled_from("abcdefgh_-"), min_size=1, max_size=6)
plain = st.integers(-(2**63), 2**63 - 1) | st.booleans() | texts.filter(str.isprintable)


@some
@given(st.dictionaries(keys, plain, max_size=5))
def test_toml_is_read_as_it_was_written(values):
    written = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    assert parse_toml(written, "it") == values


@some
@given(texts)
def test_any_text_is_toml_or_is_refused_in_one_sentence(text):
    try:
        assert isinstance(parse_toml(text, "it"), dict)
    except SettingsError as error:
        assert str(error).startswith("it: is not valid TOML") and str(error).isprintable()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@some
@given(values)
def test_json_is_read_as_it_was_written_half_characters_too(value):
    assert json.loads(json_bytes(value).decode()) == value


@pytest.fixture(scope="module")
def store(tiny_store):
    import sae_lm

    return sae_lm.open_store(tiny_store)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(0, 2**32), st.integers(0, 1200), st.integers(1, 300), st.integers(1, 4))
def test_batches_of_all_ranks_together_hold_each_row_once(store, each, seed, start, count, ranks):
    batch_size = each * ranks
    stop, columns = start + count, ["context", "position"]
    asked = {"columns": columns, "start": start, "stop": stop}
    seen = []
    for rank in range(ranks):
        for batch in store.batches(batch_size, seed, rank=rank, world_size=ranks, **asked):
            seen += zip(batch["context"].tolist(), batch["position"].tolist(), strict=True)
    tokens = store.tokens(start, stop)
    there = set(zip(tokens["context"].tolist(), tokens["position"].tolist(), strict=True))
    assert len(seen) == len({*seen}) == count // batch_size * batch_size and {*seen} <= there


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.data())
def test_pieces_of_tokens_cover_each_token_once_and_give_the_text_again(text, data):
    raw = text.encode()
    cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=10))})
    parts = [raw[low:high] for low, high in pairwise(cuts)]
    vocabulary = [part.decode("utf-8", "replace") for part in parts]
    partial = {i: part for i, part in enumerate(parts) if "\ufffd" in vocabulary[i] and not _decodes(part)}
    found = pieces(list(range(len(parts))), vocabulary, partial)
    assert [n for piece in found for n in range(piece.first, piece.last)] == list(range(len(parts)))
    if all(piece.whole for piece in found):
        assert "".join(piece.text for piece in found) == text


def _decodes(part):
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


@some
@given(
    st.sampled_from(["standard", "topk", "jumprelu"]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_sparse_codes_are_the_dense_ones(architecture, d_in, d_sae, rows, seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {"threshold": (d_sae,)} if architecture == "jumprelu" else {}
    weights = {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    k = min(2, d_sae) if architecture == "topk" else None
    sae = SAE(SaeConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, k=k), weights)
    x = torch.randn(rows, d_in, generator=draw)
    codes = encode_sparse(sae, x.split(7))
    torch.testing.assert_close(
        codes.columns(list(range(d_sae))), sae.encode(x) * sae.W_dec.norm(dim=1), atol=1e-5, rtol=1e-4
    )
