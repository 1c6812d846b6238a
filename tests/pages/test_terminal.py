"""sae_lm.pages.terminal and .text: numbers, columns and what a terminal shows of a report."""

import re

import pytest
from example_report import MANY, hostile_report, make_report

from sae_lm.pages.terminal import TERMINAL_FINDINGS, columns, text_table
from sae_lm.pages.text import number, p_value, signed, spread, visible

# --- numbers


def test_numbers_have_about_four_digits_and_missing_ones_are_a_dash() -> None:
    assert [number(value) for value in (None, 0.12345, 1.23456, 12.3456, 1234.56)] == [
        "-", "0.1235", "1.235", "12.35", "1,234.6",
    ]  # fmt: skip
    assert [signed(value) for value in (None, 0.5, -0.5)] == ["-", "+0.5000", "-0.5000"]
    assert [p_value(p) for p in (None, 0.0625, 0.00001, 1)] == ["-", "0.062", "< .001", "1.000"]
    assert spread([0.5, 0.6, 0.7]) == "0.6000 ± 0.1000"
    assert spread([0.5, None]) == "0.5000"
    assert spread([None, None]) == "-"


def test_every_character_shows_and_a_long_text_is_cut() -> None:
    assert visible("a\nb\x1b\u202e\ud800") == "a↵b⟨001B⟩⟨202E⟩⟨D800⟩"
    assert visible("abcdef", 4) == "abc…" and visible("abcd", 4) == "abcd"


# --- the terminal


def test_columns_are_aligned_below_heads_of_several_lines_and_go_on_in_a_block_below() -> None:
    table = columns(["", "a", "longer"], [["head", "1", "22"], ["a head of several words", "3", "4"]])
    assert table == [
        "                  a head of",
        "        head  several words",
        "---------------------------",
        "a          1              3",
        "longer    22              4",
    ]
    wide = columns(["", "a"], [["head", "x" * 50] for _ in range(3)])
    assert [line.split() for line in wide if line.startswith("a")] == [["a", "x" * 50, "x" * 50], ["a", "x" * 50]]
    assert columns(["rows:", "disk:"], [["12", "3.5 GB"]], heads=False, left=True) == ["rows:  12", "disk:  3.5 GB"]


def test_the_table_says_what_was_compared_and_opens_with_the_answer() -> None:
    text = text_table(make_report())
    for fact in ("model a-model", "hook blocks.3.hook_out", "latents 4,096", "k 32", "rows trained on 900", "seeds 3"):
        assert fact in " ".join(text.split())
    lines = text.splitlines()
    assert lines.index("Compared with none: less absorption with max_cos:0.25 (FVU +0.0100).") < 4
    assert "abs_cos:1: less absorption; splitting not distinguishable." in lines
    assert "concepts used (probe F1, words tested), 2 of 4: digit (0.91, 9), capitalised (0.91, 9)" in text
    assert "skipped: 2 (words to be tested on, fewer than 8)" in text


def test_what_is_missing_is_said_before_what_was_found() -> None:
    text = text_table(make_report() | {"partial": ["max_cos:0.25: seed 3 is missing."]})
    assert text.index("note: max_cos:0.25: seed 3 is missing.") < text.index("abs_cos:1: less absorption")


def test_reasons_are_counted_without_their_number_and_are_left_whole_otherwise() -> None:
    report = make_report()
    for concept, reason in zip(
        report["concepts"],
        ["no validation word with it", "6 words to be tested on, fewer than 8",
         "probe F1 0.65 on unseen words, no more than by permuted labels", "7 words to be tested on, fewer than 8"],
        strict=True,
    ):  # fmt: skip
        concept["skipped"] = reason
    text = " ".join(text_table(report).split())
    assert "1 (no validation word with it)" in text
    assert "2 (words to be tested on, fewer than 8)" in text
    assert "1 (probe F1 on unseen words, no more than by permuted labels)" in text


def test_each_arm_has_a_row_of_means_and_one_of_differences() -> None:
    lines = text_table(make_report()).splitlines()
    rows = [
        re.split(r"\s{2,}", line) for line in lines if re.match(r"(none|abs_cos:1|max_cos:0.25|random).* {2}", line)
    ]
    assert rows[0][:3] == ["none", "0.6000 ± 0.1000", "0.6000 ± 0.1000"]
    assert rows[1][:2] == ["abs_cos:1", "0.7000 ± 0.1000"]
    assert rows[3][:2] == ["random (control)", "0.1230"]
    text = "\n".join(lines)
    for head in ("lower", "higher", "n.d.", "L0 differs", "no claim"):
        assert f"-0.1250 [-0.1875, -0.0625] {head}" in text
    assert "n.d.: not distinguishable" in text


@pytest.mark.parametrize(("families", "ks"), [(("none",), (32,)), (("none", "abs_cos:1"), (32,)), (MANY, (8, 16, 32))])
def test_no_line_is_wider_than_120_columns_whatever_the_number_of_arms(
    families: tuple[str, ...], ks: tuple[int, ...]
) -> None:
    report = make_report(families, ks)
    text = text_table(report)
    assert max(map(len, text.splitlines())) <= 120
    assert all(re.search(rf"(?m)^{re.escape(arm)} +\d", text) for arm in report["arms"])


def test_of_many_findings_the_terminal_shows_the_first_and_counts_the_rest() -> None:
    report = make_report()
    report["findings"] = [f"finding {place}." for place in range(TERMINAL_FINDINGS + 5)]
    text = text_table(report)
    assert f"finding {TERMINAL_FINDINGS - 1}." in text and f"finding {TERMINAL_FINDINGS}." not in text
    assert "... and 5 more" in text


def test_text_on_a_terminal_holds_no_control_characters() -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", text_table(hostile_report()))


def test_a_registered_answer_keeps_its_capitals() -> None:
    claim = {"sentence": "abs_cos has fewer holes.", "answer": "no answer (L0 not matched)"}
    text = text_table(make_report() | {"registered": {"file": "fixed.toml", "sha256": "0" * 64, "claims": [claim]}})
    assert "registered: abs_cos has fewer holes. No answer (L0 not matched)." in " ".join(text.split())
