"""sae_lm.concepts.rows, labels and contextual: what tokens are called, which rows are taken, what probes find."""

import re

import numpy as np
import pytest
import torch

import sae_lm
from sae_lm.concepts import rows as concepts
from sae_lm.concepts.context_labels import ARTICLES, CLOSING, CONTEXTUAL, INDENTED, OPENING, QUOTES, contextual_labels
from sae_lm.concepts.probes import PROBE_L2, f1, fit_probes, logistic, permuted
from sae_lm.concepts.rows import (
    NEGATIVES,
    TEST,
    TRAIN,
    ConceptRows,
    contextual_rows,
    document_parts,
    sample_matched,
    sample_rows,
    vocabulary_rows,
)
from sae_lm.concepts.token_labels import LABELS, WORD_LISTS, read_labels
from sae_lm.errors import SettingsError

HOOK = "blocks.0.hook_out"


# --- what a token is


def test_each_class_of_punctuation_and_each_word_list_knows_its_own():
    texts = ("()", " [", '."', "==", ":", " -", "__", " January", "the", " ELSE", "x_y", "\u201d", "\ufffd", "  ")
    told = {name: [text for text in texts if has(text)] for name, has in LABELS.items()}
    assert told["bracket"] == ["()", " ["]
    assert told["quotation mark"] == ['."', "\u201d"]
    assert told["sentence end"] == ['."']
    assert told["operator"] == ["==", " -"]
    assert told["comma, colon or semicolon"] == [":"]
    assert told["dash or underscore"] == [" -", "__"]
    assert told["month or weekday"] == [" January"]
    assert told["Python keyword or builtin"] == [" ELSE"]
    assert told["not ASCII"] == ["\u201d", "\ufffd"]
    assert all(words == words.lower() for words in WORD_LISTS.values())


# --- a user's labels

VOCABULARY = ["<s>", " dog", "dog", " Dog", " cat", "s", "\n", ","]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_string_means_every_spelling_of_a_word_and_a_token_one(tmp_path):
    loose = read_labels(write(tmp_path / "a.csv", "string,label,child\nDOG,animal,hound\ncat,animal,\n"), VOCABULARY)
    assert loose.tokens == {"animal": {1, 2, 3, 4}} and loose.unknown is None
    assert loose.child == {1: "hound", 2: "hound", 3: "hound"}
    exact = read_labels(write(tmp_path / "b.csv", 'label,token\nanimal, dog\nmark,","\nbreak,"\n"\n'), VOCABULARY)
    assert exact.tokens == {"animal": {1}, "mark": {7}, "break": {6}}


def test_unknown_tokens_are_counted_and_named_once(tmp_path):
    lines = "".join(f"w{i},animal\n" for i in [*range(7), 0])
    given = read_labels(write(tmp_path / "a.csv", f"string,label\ndog,animal\n{lines}"), VOCABULARY)
    assert given.unknown is not None and "7 of its entries" in given.unknown
    assert "('w0', 'w1', 'w2', 'w3', 'w4', ...)" in given.unknown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("string,label\nwolf,animal\n", r"none of its 1 lines matches .*'wolf'"),
        ("word,label\ndog,animal\n", "has the columns word, label; expected `token` or `string`"),
        ("token,string,label\n a,a,x\n", "expected `token` or `string`"),
        ("", "has the columns \\(none\\)"),
        ("string,label\ndog\n", "row 2 has 1 field and"),
        ("string,label,label\ndog,a,b\n", "string, label, label; .* each once"),
        ("string;label\ndog;a\n", "string;label; expected .* separated by commas"),
        ("string,label\ndog,inside brackets\n", "'inside brackets' is a concept already"),
        ("string,label\ndog, \n", "row 2 has 2 fields and the label ''"),
        ("string,label\ndog,digit\n", "'digit' is a concept already"),
        ("string,label\n", "has no rows below its header; expected one for each token or string"),
    ],
)
def test_a_table_that_cannot_serve_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        read_labels(write(tmp_path / "a.csv", text), VOCABULARY, (*LABELS, *CONTEXTUAL))


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00string")
    for name, says in (("bytes.csv", "cannot be read as CSV"), ("missing.csv", "does not exist; expected a CSV file")):
        with pytest.raises(SettingsError, match=f"{name} {says}"):
            read_labels(tmp_path / name, VOCABULARY)


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


# --- the place of a token

PIECES = ["a", " a", "the", " the", "The", ".", ". ", "x.", ".com", "os", " os", "_", "_b", "a_", "1", "12", " 3", '"', ' "', '."',
          "(", " (", ")", ")(", "]", "())", "\n", "\n\n", "\n  ", "\n \n\n", "  ", " ", "    ", "   if", ":\n", '"\n\n(', "\nx", "!",
          "\u201c", "\u201d", "\r\n", ",", "os.pa", "a.b c", "s"]  # fmt: skip


def plain_labels(tokens: list[str]) -> list[dict[str, bool]]:
    """The definitions, read off the text before each token by regular expressions and loops."""
    out = []
    for t, token in enumerate(tokens):
        past, seen = "".join(tokens[:t]), "".join(tokens[: t + 1])
        previous = tokens[t - 1] if t else ""
        paragraph = re.split(r"\n[^\S\n]*(?=\n)", past)[-1]
        paragraph_ends = len(re.split(r"\n[^\S\n]*(?=\n)", seen)) > len(re.split(r"\n[^\S\n]*(?=\n)", past))
        depth = 0
        for c in paragraph:
            depth = max(0, depth + (c in OPENING) - (c in CLOSING))
        line = past.rpartition("\n")[2] if "\n" in past else None
        first = line is not None and not line.strip() and bool(token.strip()) and "\n" not in token
        line_first = next((u for u in range(t, -1, -1) if out_first(tokens, u)), None)
        indented = False
        if (
            line_first is not None
            and line_first < t
            and "\n" not in "".join(tokens[line_first : t + 1])
            and token.strip()
        ):
            whole = "".join(tokens[: line_first + 1]).rpartition("\n")[2]
            indented = len(whole) - len(whole.lstrip()) >= INDENTED
        word = bool(re.fullmatch(r"\w+", token))
        name = re.search(r"\w*\Z", past)
        content = [u for u in range(t) if tokens[u].strip()]
        gap = token[:1].isspace() or (bool(content) and (content[-1] < t - 1 or tokens[content[-1]][-1:].isspace()))
        ended = bool(content) and bool(re.search(r"[.!?][\"')\]\u201d\u2019]*\Z", tokens[content[-1]].strip()))
        article = previous.strip().lower() in ARTICLES and (
            previous[:1].isspace() or not "".join(tokens[: t - 1])[-1:].isalpha()
        )
        letter = any(c.isalpha() for c in token)
        pairs = [(tokens[u - 1], tokens[u]) for u in range(1, t)]
        out.append(
            {
                "inside quotation marks": sum(c in QUOTES for c in paragraph) % 2 == 1
                and not any(c in QUOTES for c in token)
                and not paragraph_ends,
                "inside brackets": depth > 0 and not any(c in OPENING + CLOSING for c in token) and not paragraph_ends,
                "first on its line": first,
                "on an indented line": indented,
                "part of a dotted name": word and bool(re.search(r"\w\.[^\W\d]\w*\Z", seen)),
                "after an underscore in a name": word and name is not None and "_" in name.group(),
                "inside a number": token.isdigit() and past[-1:].isdigit(),
                "inside a word": token[:1].isalpha() and past[-1:].isalpha(),
                "first of a sentence": token.strip()[:1].isalpha() and ended and gap,
                "after an article": token[:1].isspace() and token.strip()[:1].isalpha() and article,
                "repeated token": letter and token in tokens[:t],
                "repeated pair": letter and t > 0 and (previous, token) in pairs,
            }
        )
    return out


def out_first(tokens: list[str], u: int) -> bool:
    """Whether token u is the first on its line."""
    past = "".join(tokens[:u])
    return "\n" in past and not past.rpartition("\n")[2].strip() and bool(tokens[u].strip()) and "\n" not in tokens[u]


def test_contextual_labels_equal_their_definition_on_text_made_to_be_awkward():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, 150)
    ids = draw.integers(0, len(PIECES), lengths.sum())
    begins = np.zeros(len(ids), bool)
    begins[np.cumsum(lengths) - lengths] = True
    found = contextual_labels(ids, begins, PIECES)
    expected = [
        row
        for part in np.split(ids, np.cumsum(lengths)[:-1])
        for row in plain_labels([PIECES[token] for token in part])
    ]
    for name, label in found.items():
        wrong = [place for place in range(len(ids)) if label[place] != expected[place][name]]
        assert not wrong, (name, [PIECES[token] for token in ids[max(0, wrong[0] - 8) : wrong[0] + 1]])
        assert 0 < label.sum() < len(label), name


def test_the_names_of_the_contextual_concepts_are_those_that_the_labeller_gives_in_its_order():
    assert tuple(contextual_labels(np.zeros(1, int), np.ones(1, bool), ["a"])) == CONTEXTUAL


def test_a_label_depends_on_nothing_after_its_token_or_before_its_document():
    draw = np.random.default_rng(1)
    ids = draw.integers(0, len(PIECES), 300)
    begins = np.zeros(300, bool)
    begins[[0, 100]] = True
    whole = contextual_labels(ids, begins, PIECES)
    cut = contextual_labels(ids[100:200], begins[100:200], PIECES)
    for name, label in whole.items():
        assert np.array_equal(label[100:200], cut[name]), name


def test_contextual_labels_of_a_text_one_can_read():
    tokens = ["He", " said", ' "', "no", '".', "\n", "  ", "The", " os", ".", "path", " (", "a", ")", "."]
    ids = np.array([sorted(set(tokens)).index(token) for token in tokens])
    begins = np.arange(len(ids)) == 0
    told = {
        name: [token for token, label in zip(tokens, labels, strict=True) if label]
        for name, labels in contextual_labels(ids, begins, sorted(set(tokens))).items()
    }
    assert told["inside quotation marks"] == ["no"]
    assert told["inside brackets"] == ["a"]
    assert told["first on its line"] == told["first of a sentence"] == ["The"]
    assert told["on an indented line"] == [" os", ".", "path", " (", "a", ")", "."]
    assert told["part of a dotted name"] == ["path"]
    assert told["after an article"] == [" os"]


# --- which rows are taken


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
    part = document_parts(document, 0)
    for number in range(200):
        assert len(part[document == number].unique()) == 1
    shares = torch.bincount(part, minlength=3) / len(part)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.3, 0.3]), atol=0.03, rtol=0)
    assert document_parts(torch.zeros(5, dtype=torch.int32), 0).tolist() == [1] * 5


def test_contextual_rows_share_no_type_and_no_document_between_the_parts(tiny_store):
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
            sides = [set(column[rows.part == part].tolist()) for part in range(3)]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert int((~rows.labels).sum()) == NEGATIVES * int(rows.labels.sum())


def test_contextual_rows_are_labelled_by_the_text_of_their_own_document_and_context(tiny_store):
    store = sae_lm.open_store(tiny_store)
    tokens = store.tokens()
    for rows in contextual_rows(store, HOOK, 0, 4, 0):
        assert rows.row is not None
        for row, label in list(zip(rows.row.tolist(), rows.labels[:, 0].tolist(), strict=True))[:40]:
            same = (tokens["context"] == tokens["context"][row]) & (tokens["document"] == tokens["document"][row])
            ids = tokens["token_id"][: row + 1][same[: row + 1]].tolist()
            assert plain_labels([store.vocabulary[token] for token in ids])[-1][rows.names[0]] == label


def test_prompts_of_one_token_give_what_the_model_gives_for_bos_and_that_token(tiny_model, tiny_store):
    store, model = sae_lm.open_store(tiny_store), sae_lm.load_model(str(tiny_model))
    rows = vocabulary_rows(model, HOOK, store, seed=0)
    assert 0 not in rows.token_id and len(rows.token_id.unique()) == len(rows.x) == 299
    assert rows.row is not None and (rows.row == -1).all()
    _, cached = model.run_with_cache(torch.tensor([[0, int(rows.token_id[7])]]))
    torch.testing.assert_close(rows.x[7], cached[HOOK][0, 1], atol=1e-5, rtol=1e-5)
    digit = rows.names.index("digit")
    assert rows.labels[:, digit].tolist() == [any(c.isdigit() for c in store.vocabulary[t]) for t in rows.token_id]
    assert len(vocabulary_rows(model, HOOK, store, seed=0, limit=20).x) == 20


# --- probes


def test_probes_of_rows_far_from_round_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw) * torch.logspace(0, -1.5, 8) + torch.linspace(-3, 5, 8)
    labels = torch.stack([x[:, 0] + x[:, 1] > -4.8, x[:, 7] > 5.05, torch.rand(600, generator=draw) < 0.1], 1)
    weight, bias = logistic(x, labels)
    scale = float(x.square().mean().sqrt())
    for c in range(3):
        twin = LogisticRegression(C=1 / (PROBE_L2 * 600), class_weight="balanced", tol=1e-10, solver="newton-cholesky")
        twin.fit((x / scale).double().numpy(), labels[:, c].numpy())
        torch.testing.assert_close(weight[:, c] * scale, torch.tensor(twin.coef_[0]).float(), atol=5e-3, rtol=2e-3)
        assert float(bias[c]) == pytest.approx(np.ravel(twin.intercept_)[0], abs=5e-3, rel=2e-3)


def test_rows_that_do_not_vary_or_have_one_label_break_nothing():
    weight, bias = logistic(torch.zeros(20, 3), torch.zeros(20, 2, dtype=torch.bool))
    assert weight.abs().max() == 0 and torch.isfinite(bias).all()
    assert logistic(torch.ones(20, 3), torch.zeros(20, 0, dtype=torch.bool))[0].shape == (3, 0)


def type_rows(kinds=(), share=0.25, types=400, each=4):
    """Rows of which axis 0 tells the concept; all rows of a type have it or none."""
    draw = torch.Generator().manual_seed(0)
    token_id = torch.arange(types).repeat_interleave(each)
    label = (torch.rand(types, generator=draw) < share)[token_id]
    x = torch.randn(types * each, 5, generator=draw) * 0.1
    x[:, 0] += label
    part = torch.randint(0, 3, (types,), generator=draw)[token_id]
    return ConceptRows(x, token_id, label[:, None], part, ["concept"], kinds)


def test_permuted_labels_stay_whole_types_and_as_many_and_fail_the_gate():
    rows = type_rows()
    control = permuted(rows, 0)
    assert int(control.sum()) == int(rows.labels.sum()) and not torch.equal(control, rows.labels)
    assert all(len(control[rows.token_id == token].unique()) == 1 for token in range(400))
    (probe,) = fit_probes(rows, 50, 0.6)
    assert probe.skipped is None and probe.kind == "token" and probe.f1 > 0.95 and probe.permuted_f1 < 0.5


def test_permuted_contextual_labels_move_between_rows():
    rows = type_rows(("contextual",))
    control = permuted(rows, 0)
    assert any(len(control[rows.token_id == token].unique()) == 2 for token in range(400))
    assert int(control.sum()) == int(rows.labels.sum())
    assert fit_probes(rows, 50, 0.6)[0].kind == "contextual"


def test_a_concept_so_frequent_that_chance_passes_the_gate_is_not_used():
    (probe,) = fit_probes(type_rows(share=0.9), 50, 0.6)
    assert probe.f1 > 0.95 and probe.permuted_f1 >= 0.6
    assert probe.skipped is not None and probe.skipped.startswith("probe F1 0.") and "permuted" in probe.skipped


def test_concepts_that_cannot_be_scored_are_not_fitted_and_change_no_other():
    rows = type_rows()
    more = torch.cat([torch.zeros_like(rows.labels), rows.labels, rows.labels & (rows.part == TRAIN)[:, None]], 1)
    rare, good, one_sided = fit_probes(rows._replace(labels=more, names=["rare", "good", "one-sided"]), 20, 0.6)
    assert rare.skipped == "0 token types, fewer than 20" and np.isnan(rare.f1) and rare.weight.norm() == 0
    assert one_sided.skipped == "no examples on both sides in train, validation and test types"
    alone = fit_probes(rows, 50, 0.6)[0]
    assert good.skipped is None and good.f1 == alone.f1
    torch.testing.assert_close(good.weight, alone.weight)
    told = rows.x[rows.part == TEST] @ good.weight + good.bias > 0
    assert f1(told, rows.labels[rows.part == TEST, 0]) == good.f1
