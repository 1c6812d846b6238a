"""A document cut into pieces has the tokens of the whole document, whatever the kind of tokenizer."""

# ruff: noqa: RUF001  (letters of several scripts)

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from sae_lm.data.pieces import Chunk, pieces
from sae_lm.data.text import open_text
from sae_lm.data.tokens import BEGINNING, SpecialTokens, blocks, in_memory
from sae_lm.embedded.text import embedded_documents
from sae_lm.lm.source import find_model, load_tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PROSE = "".join(document.text for document in embedded_documents()[:60])[:60_000]
OTHER = (
    "Чужая душа — потёмки.\nНе всё то золото, что блестит\nи так далее, и так далее. " * 12
    + "千里之行，始于足下。\n学而时习之，不亦说乎？\n" * 40
    + "naïve café 🙂 12345 67,890.12\n\n\n\tdef f(x):\n\t\treturn x  # <s> 5\n" * 20
    + "א ב ג שלום עולם\nمرحبا بالعالم\n" * 20
)
TEXT = PROSE[:30_000] + OTHER + PROSE[30_000:]


def trained(model, trainer, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator([PROSE[:20_000], OTHER], trainer)
    return tokenizer


def byte_pairs_of_words(pre_tokenizer):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    return trained(models.BPE(), trainer, pre_tokenizer=pre_tokenizer)


def qwen():
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    return byte_pairs_of_words(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )


def sentence_piece():
    """Byte pairs over the whole document, as Llama 2 and stories260k have them: a space before the text, no words."""
    learned = trained(
        models.BPE(unk_token="<unk>"),
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False),
        pre_tokenizer=pre_tokenizers.Metaspace(),
    )
    content = json.loads(learned.to_str())
    content["pre_tokenizer"] = None
    found = Tokenizer.from_str(json.dumps(content))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return found


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[UNK]"], show_progress=False)
    parts = {"normalizer": normalizers.BertNormalizer(), "pre_tokenizer": pre_tokenizers.BertPreTokenizer()}
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, **parts)


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=700, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    parts = {"normalizer": normalizers.NFKC(), "pre_tokenizer": pre_tokenizers.Metaspace()}
    return trained(models.Unigram(), trainer, **parts)


def embedded():
    return load_tokenizer(find_model("embedded")).backend_tokenizer


MAKERS = {
    "gpt2": lambda: byte_pairs_of_words(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "roberta with a space before the text": lambda: byte_pairs_of_words(pre_tokenizers.ByteLevel()),
    "qwen": qwen, "sentence piece": sentence_piece, "word piece": word_piece, "unigram": unigram, "embedded": embedded,
}  # fmt: skip


class Wrapped:
    """A tokenizer as transformers gives it, which counts the characters it is given at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest = tokenizer, 0

    def __call__(self, texts, **options):
        self.longest = max([self.longest, *map(len, texts)])
        return {"input_ids": [found.ids for found in self.tokenizer.encode_batch(texts, add_special_tokens=False)]}


def encoded(tokenizer, text, **options):
    wrapped = Wrapped(tokenizer)
    parts = list(pieces([Chunk(0, text, True)], lambda texts: wrapped(texts)["input_ids"], **options))
    ids = []
    for part in parts:
        ids += wrapped([part.anchor + part.content])["input_ids"][0][len(wrapped([part.anchor])["input_ids"][0]) :]
    assert "".join(part.content for part in parts) == text
    return ids, parts


@pytest.mark.parametrize("kind", MAKERS)
def test_pieces_have_the_tokens_of_the_whole_document(kind):
    tokenizer = MAKERS[kind]()
    whole = tokenizer.encode(TEXT, add_special_tokens=False).ids
    for size in (300, 4000):
        ids, parts = encoded(tokenizer, TEXT, size=size)
        assert ids == whole
        assert len(parts) > len(TEXT) / size / 3, "documents are cut indeed"


def test_where_no_cut_holds_a_piece_grows():
    class Parity:
        """Each token tells how long the whole text is: nothing can be cut off."""

        def encode_batch(self, texts, **options):
            return [type("Encoding", (), {"ids": [len(text) for _ in text]}) for text in texts]

    assert [part.content for part in encoded(Parity(), "some words " * 500, size=300)[1]] == ["some words " * 500]
    line = "x" * 5000
    assert len(encoded(MAKERS["gpt2"](), line, size=300)[1]) == 1
    _, parts = encoded(MAKERS["gpt2"](), line + PROSE[:20_000], size=300)
    assert len(parts) > 5 and max(len(part.content) for part in parts) < 11_000


@pytest.mark.parametrize("pack", [True, False])
def test_contexts_of_pieces_are_those_of_whole_documents_and_begin_anywhere(tmp_path, monkeypatch, pack):
    """Blocks, positions and marks are the same; from each noted place the same blocks come as from the beginning."""
    import sae_lm.data.pieces
    import sae_lm.data.readers

    (tmp_path / "a.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "b.txt").write_text("a short one")
    (tmp_path / "c.txt").write_text(" \n" * 400 + OTHER)
    for name, content in {"a": TEXT, "c": " \n" * 400 + OTHER}.items():
        assert "".join(open_text(str(tmp_path / f"{name}.txt")).documents()) == content
    text, tokenizer, special = open_text(str(tmp_path)), Wrapped(MAKERS["gpt2"]()), SpecialTokens(1, 2)

    def shown(found):
        return [(b.ids.tolist(), b.documents.tolist(), b.special.tolist(), b.length, b.next) for b in found]

    whole = shown(blocks(in_memory(text.documents()), tokenizer, special, 64, pack=pack))
    assert tokenizer.longest > 60_000
    monkeypatch.setattr(sae_lm.data.readers, "TEXT_BYTES", 997)
    monkeypatch.setattr(sae_lm.data.pieces, "PIECE", 1500)
    tokenizer.longest = 0
    found = list(blocks(text.chunks, tokenizer, special, 64, pack=pack))
    assert shown(found) == whole and tokenizer.longest < 4000
    places = {json.dumps(block.place) for block in found}
    assert len(places) > 20
    for number in range(0, len(found), 29):
        block = found[number]
        assert block.place.position <= block.next
        rest = blocks(text.chunks, tokenizer, special, 64, pack=pack, start=block.next, place=block.place)
        assert shown(rest) == whole[number + 1 :]
        if number % 3 == 0:
            assert (
                shown(blocks(text.chunks, tokenizer, special, 64, pack=pack, start=block.next)) == whole[number + 1 :]
            )


def test_a_place_in_a_text_that_is_repeated_is_in_its_turn(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {i} " * i}) + "\n" for i in range(9)))
    text, tokenizer, special = open_text(str(tmp_path)), Wrapped(MAKERS["gpt2"]()), SpecialTokens(1, 2)

    def some(**options):
        made = blocks(text.chunks, tokenizer, special, 16, repeat=True, **options)
        return [next(made) for _ in range(60)]

    found = some()
    for number in (0, 20, 45):
        again = some(start=found[number].next, place=found[number].place)
        assert [b.ids.tolist() for b in again[: 59 - number]] == [b.ids.tolist() for b in found[number + 1 :]]
        assert [b.next for b in again[: 59 - number]] == [b.next for b in found[number + 1 :]]
    assert found[45].place.document > 9 > found[45].place.origin and BEGINNING.position == (0, 0)
