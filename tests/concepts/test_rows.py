"""sae_lm.concepts.rows: which rows are taken for a concept, and on which side of the split."""

import pytest
import reference
import torch

import sae_lm
from sae_lm.concepts import rows as concepts
from sae_lm.concepts import text_units
from sae_lm.concepts.probes import fit_probes
from sae_lm.concepts.rows import (
    NEGATIVES,
    contextual_rows,
    document_subsets,
    inflected_rows,
    sample_matched,
    sample_rows,
    vocabulary_rows,
)
from sae_lm.concepts.token_labels import read_labels

pytestmark = pytest.mark.transformer_lens_3


def test_the_sample_holds_at_most_so_many_rows_per_type_each_labelled_by_its_token(tiny_store):
    store = sae_lm.open_store(tiny_store)
    rows = sample_rows(store, "blocks.0.hook_out", 600, per_type=3, seed=0)
    types, counts = rows.token_id.unique(return_counts=True)
    _, all_counts = store.tokens(600)["token_id"].unique(return_counts=True)
    assert torch.equal(counts, all_counts.clamp_max(3)) and len(types) == len(all_counts)
    whole, tokens = store.rows("blocks.0.hook_out", 600), store.tokens(600)["token_id"]
    for index in (0, len(rows.x) // 2, len(rows.x) - 1):
        where = (whole == rows.x[index]).all(1).nonzero()[0]
        assert tokens[where] == rows.token_id[index]
    text = [store.vocabulary[token] for token in rows.token_id]
    column = rows.names.index("digit")
    assert rows.labels[:, column].tolist() == [any(c.isdigit() for c in t) for t in text]


HOOK = "blocks.0.hook_out"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_labels_become_concepts_of_their_own_kind(tiny_store, tmp_path):
    store = sae_lm.open_store(tiny_store)
    given = read_labels(
        write(tmp_path / "a.csv", "string,label,child\nfox,animal,canine\ndogs,animal,\n"), store.vocabulary
    )
    rows = sample_rows(store, HOOK, 0, 3, 0, given)
    assert rows.names[-1] == "animal" and rows.kinds[-1] == "csv" and set(rows.kinds[:-1]) == {"token"}
    told = {store.vocabulary[token].strip() for token in rows.token_id[rows.labels[:, -1]].tolist()}
    assert told == {"fox", "dogs"}
    (fox,) = {token for token in rows.token_id.tolist() if store.vocabulary[token].strip() == "fox"}
    assert rows.child is not None and rows.child[fox] == "canine"
    assert rows.row is not None and torch.equal(store.tokens()["token_id"][rows.row].long(), rows.token_id)


def test_a_matched_sample_leaves_the_type_nothing_to_say():
    draw = torch.Generator().manual_seed(0)
    token_id = torch.randint(0, 40, (6000,), generator=draw)
    label = torch.rand(6000, generator=draw) < token_id / 40
    eligible = torch.rand(6000, generator=draw) < 0.7
    rows = sample_matched(token_id, label, eligible, per_type=8, seed=0)
    assert eligible[rows].all() and len(rows.unique()) == len(rows)
    for token in range(40):
        mine = token_id == token
        have, lack = int((mine & label & eligible).sum()), int((mine & ~label & eligible).sum())
        taken = label[rows[token_id[rows] == token]]
        assert int(taken.sum()) == min(have, 8, lack // NEGATIVES)
        assert int((~taken).sum()) == NEGATIVES * int(taken.sum())
    assert not torch.equal(rows, sample_matched(token_id, label, eligible, per_type=8, seed=1))


@pytest.mark.parametrize("most", [400, 60])
def test_a_matched_sample_keeps_to_its_limit_by_fewer_rows_of_a_type_before_fewer_types(monkeypatch, most):
    monkeypatch.setattr(concepts, "CONTEXTUAL_ROWS", most)
    token_id, label = torch.arange(6000) % 40, torch.arange(6000) % 7 == 0
    rows = sample_matched(token_id, label, torch.ones(6000, dtype=torch.bool), per_type=8, seed=0)
    assert most / 2 < len(rows) <= most
    assert len(token_id[rows].unique()) == min(40, most // (1 + NEGATIVES))


def test_documents_are_whole_and_in_about_the_shares_they_should_be():
    document = torch.arange(200).repeat_interleave(torch.arange(200) % 9 + 1)
    subset = document_subsets(document, 0)
    for number in range(200):
        assert len(subset[document == number].unique()) == 1
    shares = torch.bincount(subset, minlength=3) / len(subset)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.3, 0.3]), atol=0.03, rtol=0)
    assert document_subsets(torch.zeros(5, dtype=torch.int32), 0).tolist() == [1] * 5


def test_contextual_rows_share_no_type_and_no_document_between_the_parts(tiny_store, monkeypatch):
    monkeypatch.setattr(text_units, "FEWEST_DOCUMENTS", 2)
    monkeypatch.setattr(text_units, "FEWEST_EFFECTIVE", 2)
    store = sae_lm.open_store(tiny_store)
    sets = contextual_rows(store, HOOK, 100, 4, 0)
    tokens = store.tokens()
    assert {kind for rows in sets for kind in rows.kinds} == {"contextual"}
    filled = [rows for rows in sets if len(rows.x)]
    assert filled
    for rows in filled:
        assert rows.row is not None and rows.row.min() >= 100
        assert torch.equal(store.gather(HOOK, rows.row), rows.x)
        assert torch.equal(tokens["token_id"][rows.row].long(), rows.token_id)
        for column in (rows.token_id, tokens["document"][rows.row]):
            sides = [set(column[rows.subset == subset].tolist()) for subset in range(3)]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert int((~rows.labels).sum()) == NEGATIVES * int(rows.labels.sum())


def test_where_documents_are_few_contextual_rows_share_no_context_and_no_border_between_the_parts(tiny_store):
    store = sae_lm.open_store(tiny_store)
    tokens = store.tokens()
    assert len(tokens["document"].unique()) < text_units.FEWEST_DOCUMENTS
    sets = contextual_rows(store, HOOK, 0, 4, 0)
    side = dict[int, int]()
    for rows in sets:
        assert rows.row is not None
        for context, subset in zip(tokens["context"][rows.row].tolist(), rows.subset.tolist(), strict=True):
            assert side.setdefault(context, subset) == subset
    assert len(set(side.values())) > 1
    for context, subset in side.items():
        assert side.get(context + 1, subset) == subset, "neighbours are on two sides with no context between them"


def test_inflected_rows_are_listed_words_split_by_lemma_and_named_by_it(tiny_store):
    store = sae_lm.open_store(tiny_store)
    sampled = sample_rows(store, HOOK, 0, 3, 0)
    texts = {2: " dogs", 3: " Dog", 4: " dog", 5: "Dogs", 6: " this", 7: " works", 8: "ings", 9: " went", 10: " go"}
    vocabulary = [texts.get(token, text) for token, text in enumerate(store.vocabulary)]
    token_id = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9, 10, 2])
    rows = sampled._replace(x=sampled.x[:10], token_id=token_id, row=torch.arange(10), child={10: "mine"})
    inflected = inflected_rows(rows, vocabulary, seed=0)
    assert [vocabulary[token] for token in inflected.token_id] == [
        *(" dogs", " Dog", " dog", "Dogs", " this", " went", " go", " dogs")
    ]
    assert inflected.row is not None and inflected.row.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert torch.equal(inflected.x, rows.x[inflected.row])
    told = {name: inflected.labels[:, c].tolist() for c, name in enumerate(inflected.names)}
    assert told["plural noun"] == [True, False, False, True, False, False, False, True]
    assert told["past tense"] == [False] * 5 + [True, False, False]
    assert len(inflected.subset[[0, 1, 2, 3, 7]].unique()) == len(inflected.subset[[5, 6]].unique()) == 1
    assert inflected.child == {2: "dog", 3: "dog", 4: "dog", 5: "dog", 6: "this", 9: "go", 10: "mine"}


def test_contextual_rows_are_labelled_by_the_text_of_their_own_document_and_context(tiny_store):
    store = sae_lm.open_store(tiny_store)
    tokens = store.tokens()
    filled = [rows for rows in contextual_rows(store, HOOK, 0, 4, 0) if len(rows.x)]
    assert filled and {label for rows in filled for label in rows.labels[:40, 0].tolist()} == {True, False}
    for rows in filled:
        assert rows.row is not None
        for row, label in list(zip(rows.row.tolist(), rows.labels[:, 0].tolist(), strict=True))[:40]:
            same = (tokens["context"] == tokens["context"][row]) & (tokens["document"] == tokens["document"][row])
            ids = tokens["token_id"][: row + 1][same[: row + 1]].tolist()
            assert reference.contextual_labels([store.vocabulary[token] for token in ids])[-1][rows.names[0]] == label


def test_prompts_of_one_token_give_what_the_model_gives_for_bos_and_that_token(tiny_model, tiny_store):
    store, model = sae_lm.open_store(tiny_store), sae_lm.load_model(str(tiny_model))
    rows = vocabulary_rows(model, HOOK, store, seed=0)
    whole = [token for token, text in enumerate(store.vocabulary) if token and text != "\ufffd"]
    assert rows.token_id.tolist() == whole and len(whole) < 299
    assert rows.row is not None and (rows.row == -1).all()
    _, cached = model.run_with_cache(torch.tensor([[0, int(rows.token_id[7])]]))
    torch.testing.assert_close(rows.x[7], cached[HOOK][0, 1], atol=1e-5, rtol=1e-5)
    digit = rows.names.index("digit")
    assert rows.labels[:, digit].tolist() == [any(c.isdigit() for c in store.vocabulary[t]) for t in rows.token_id]
    assert len(vocabulary_rows(model, HOOK, store, seed=0, limit=20).x) == 20


def spelled_variously(words):
    return [spelling for word in words for spelling in (word, f" {word}", word.upper(), f" {word}s")]


def test_no_probe_knows_a_word_by_another_spelling_or_form_of_it():
    """Labels of random words mean nothing, but the rows of a word's four spellings lie together."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = spelled_variously([f"w{number}x" for number in range(400)])
    token_id = torch.arange(len(vocabulary)).repeat_interleave(3)
    x = torch.randn(400, 256, generator=draw)[token_id // 4] + 0.1 * torch.randn(len(token_id), 256, generator=draw)
    label = (torch.rand(400, generator=draw) < 0.2)[token_id // 4]
    subset, word = concepts._split(token_id, vocabulary, torch.zeros(len(vocabulary), 0, dtype=torch.bool), seed=0)
    assert torch.equal(word.unique(return_inverse=True)[1], word) and len(word.unique()) == 400
    assert torch.bincount(subset).min() > 100
    rows = concepts.ConceptRows(x, token_id, label[:, None], subset, ["random words"], word=word)
    (probe,) = fit_probes(rows, 8, 0.6)
    assert probe.f1 < 0.4 and probe.skipped is not None
    by_type = torch.randint(0, 3, (len(vocabulary),), generator=draw)[token_id]
    assert fit_probes(rows._replace(subset=by_type), 8, 0.6)[0].f1 > 0.6


@pytest.mark.parametrize("of", ["tokens", "places", "forms"])
def test_whatever_a_concept_is_of_a_word_is_on_one_side(tiny_store, monkeypatch, of):
    store = sae_lm.open_store(tiny_store)
    vocabulary = [text if text.isascii() else "?" for text in store.vocabulary]
    seen = store.tokens()["token_id"].unique().tolist()[3:]
    for token, spelling in zip(seen, spelled_variously(["fox", "dog", "river", "walk", "seem"]), strict=True):
        vocabulary[token] = spelling
    monkeypatch.setattr(store, "vocabulary", vocabulary)
    if of == "places":
        sets = [rows for rows in contextual_rows(store, HOOK, 0, 4, 0) if len(rows.x)]
    else:
        sampled = sample_rows(store, HOOK, 0, 3, 0)
        sets = [sampled] if of == "tokens" else [inflected_rows(sampled, vocabulary, 0)]
    several = 0
    for rows in sets:
        sides, spellings = dict[str, set[int]](), dict[str, set[str]]()
        for token, word, side in zip(rows.token_id.tolist(), rows.words.tolist(), rows.subset.tolist(), strict=True):
            text = vocabulary[token].strip().casefold()
            stem = text.removesuffix("s") if len(text) > 3 else text
            for name in (stem, f"word {word}"):
                sides.setdefault(name, set()).add(side)
            spellings.setdefault(stem, set()).add(vocabulary[token])
        assert sides and all(len(found) == 1 for found in sides.values())
        several += sum(len(found) > 1 for found in spellings.values())
    assert several, "no word has two spellings"
