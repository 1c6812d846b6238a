"""What sae-lm estimate says that caching would cost is what it costs."""

import pytest

from sae_lm.cli import main
from sae_lm.commands.cache import cache
from sae_lm.commands.estimate import estimate
from sae_lm.data.manifest import read_manifest
from sae_lm.settings import EstimateSettings


def test_an_estimate_says_rows_bytes_time_and_space_and_writes_nothing(
    tiny_model, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--text", str(text_file), "--context-size", "16", "--trial", "0.2"]
    assert main(["estimate", *common, "--hooks", "0,1", "--tokens", "1M", "--repeat"]) == 0
    said = capsys.readouterr().out
    assert "blocks.0.hook_out (16), blocks.1.hook_out (16)" in said and "1,000,000 in" in said
    size = float(
        said.split("disk:")[1].split()[0]
    )  # GB: 1M rows x (2 hooks x 16 x 2 bytes + 20), contexts' ids and headers
    assert 0.084 < size < 0.1
    assert "rows/s" in said and "enough" in said
    assert main(["estimate", *common, "--hooks", "0", "--tokens", "1M", "--trial", "60"]) == 0
    assert "all that the text has" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_of_all_rows_is_the_size_of_the_store(cache_settings, tmp_path):
    from sae_lm.data.writer import bytes_per_row

    out = cache(cache_settings(tmp_path / "store", tokens=5000, shard_tokens=65536, hooks="0,1,2"))
    rows = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert rows == pytest.approx(5000 * bytes_per_row(read_manifest(out).recipe), rel=0.05)


def test_an_estimate_without_packing_counts_what_padding_costs(tiny_model, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for flag in ("--pack", "--no-pack"):
        settings = [
            "--model",
            str(tiny_model),
            "--text",
            str(text_file),
            "--context-size",
            "32",
            "--tokens",
            "1M",
            "--hooks",
            "0",
            "--repeat",
        ]
        assert main(["estimate", *settings, "--trial", "0.3", flag]) == 0
        sizes[flag] = float(capsys.readouterr().out.split("disk:")[1].split()[0])
    assert 1 < sizes["--no-pack"] / sizes["--pack"] < 2
    special = tmp_path / "special.jsonl"
    special.write_text('{"text": "<|end|><|end|>"}\n' * 200)
    common = ["--model", str(tiny_model), "--hooks", "0", "--context-size", "16", "--trial", "0.1", "--tokens", "100"]
    assert main(["estimate", *common, "--text", str(special)]) == 2
    assert "with a token that gets a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "forward"), [("bfloat16", "huggingface"), ("bfloat16", "bridge"), ("float16", "huggingface")]
)
def test_a_model_in_a_dtype_that_the_device_imitates_is_told_to_be_slow_before_it_is_and_no_other(
    cache_settings, tmp_path, monkeypatch, capsys, dtype, forward
):
    said = f"this cpu only imitates {dtype}, which is many times slower; give --model-dtype float32"
    settings = cache_settings(tmp_path / "store", tokens=50, model_dtype=dtype, forward=forward)
    for has, times in ((True, 0), (False, 1)):
        for name in ("has_bfloat16", "_has_float16"):
            monkeypatch.setattr(f"sae_lm.runtime.device.{name}", lambda device, has=has: has)
        asked = EstimateSettings(**{**settings.model_dump(), "trial": 0.01})
        assert str(estimate(asked)).count(said) == times
        cache(settings.model_copy(update={"out": tmp_path / str(has)}))
        assert capsys.readouterr().err.count(f"note: {said}") == times
    cache(settings.model_copy(update={"out": tmp_path / "float32", "model_dtype": "float32"}))
    assert "imitates" not in capsys.readouterr().err
