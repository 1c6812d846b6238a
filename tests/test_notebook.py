"""What a notebook shows of a store, an SAE and a report: a table, escaped text, a plot."""

import sys

import sae_lm
from sae_lm.pages.notebook import Comparison
from sae_lm.pages.terminal import text_table

sys.path.insert(0, "tests/support")

HOSTILE = "<script>alert(1)</script>"


def test_a_store_shows_its_rows_model_and_norms(tiny_store):
    html = sae_lm.open_store(tiny_store)._repr_html_()
    assert "1,500 in" in html and "tiny-gpt2" in html and "blocks.1.hook_out" in html
    assert html.count("<svg") == 2 and "<rect" in html


def test_an_sae_shows_what_it_is_and_how_it_was_loaded(make_sae):
    sae = make_sae("topk")
    sae.provenance = ["read as saelens", HOSTILE]
    html = sae._repr_html_()
    assert "topk, k" in html and "read as saelens" in html and "<svg" in html
    assert HOSTILE not in html and "&lt;script&gt;" in html


def test_a_report_is_a_dict_that_shows_its_table_and_its_answer():
    from example_report import make_report

    report = make_report()
    report["partial"] = [HOSTILE]
    shown = Comparison(report)
    assert shown["seeds"] == report["seeds"] and str(shown) == text_table(report)
    html = shown._repr_html_()
    assert "less absorption with max_cos:0.25" in html and "max_cos:0.25" in html and "hole rate" in html
    assert HOSTILE not in html


def test_every_command_is_a_function_of_the_package_or_the_demo():
    from sae_lm.settings import VERBS

    assert {verb for verb in VERBS if not callable(getattr(sae_lm, verb, None))} <= {"demo"}
    for verb in VERBS:
        assert verb == "demo" or getattr(sae_lm, verb).__doc__, verb
    assert all(f"sae_lm.{name}" in (sae_lm.__doc__ or "") for name in ("cache", "load", "check", "splice", "attribute"))
