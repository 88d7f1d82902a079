"""A loop that runs again: every step ends well at once where its result is there, and says so."""

import pytest

import delta
from merge import merge
from quantize import sparse_llama
from sparsify import sparsify


def test_every_step_is_skipped_where_its_result_is(pair, tmp_path, called, caplog):
    base, tuned = map(str, pair)
    names = ("svd", "sparse", "model", "merged", "quantized")
    svd, sparse, model, merged, quantized = (str(tmp_path / name) for name in names)
    steps = [
        (delta, ["--svd", "--base_model", base, "--finetuned_model", tuned, "--save_path", svd]),
        (sparsify, ["compression_ratio=4", "preprune_ratio=0.3", "C=1", f"svd_dir={svd}", f"save_dir={sparse}"]),
        (delta, ["--merge", "--delta_path", sparse, "--save_path", model]),
        (merge, ["--merge_method", "ta_0.5", "--ptm_pth", base, "--math_pth", tuned, "--save_pth", merged]),
        (
            sparse_llama,
            [tuned, "c4", "method=bitdelta", f"baseModel={base}", "--save_compressed_delta_dir", quantized],
        ),
    ]
    for script, arguments in steps:
        assert called(script.main, *arguments, "--skip_existing").code == 0
        assert "nothing to do" not in caplog.text
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    for number, (script, arguments) in enumerate(steps, 1):
        again = called(script.main, *arguments, "--skip_existing")
        assert again.code == 0 and again.out == "" and caplog.text.count("nothing to do") == number
        assert called(script.main, *arguments).code == 2
        assert called(script.main, *arguments, "--skip_existing", "--overwrite").code == 2
    assert {file: file.stat().st_mtime_ns for file in written} == written


@pytest.mark.parametrize("changed", ["compression_ratio=8", "seed=1"])
def test_a_result_of_other_settings_is_not_taken_for_this_one(pair, tmp_path, called, changed):
    keys = ["compression_ratio=4", "preprune_ratio=0.3", "C=1", f"base_model={pair[0]}", f"ftm_dir={pair[1]}"]
    out = tmp_path / "out"
    assert called(sparsify.main, *keys, f"save_dir={out}").code == 0
    other = called(sparsify.main, *keys, f"save_dir={out}", changed, "--skip_existing")
    assert other.code == 2 and "is there and was made otherwise" in other.err


def test_a_foreign_folder_is_no_result(pair, tmp_path, called):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    named = ["--base_model", str(pair[0]), "--finetuned_model", str(pair[1]), "--save_path", str(tmp_path / "out")]
    assert called(delta.main, "--svd", *named, "--skip_existing").code == 2


def test_quiet_tells_nothing_but_the_result(pair, tmp_path, script):
    named = ["--base_model", pair[0], "--finetuned_model", pair[1], "--save_path"]
    quiet = script("delta.py", "--svd", *named, tmp_path / "quiet", "--quiet")
    assert quiet.code == 0 and quiet.err == "" and "svd delta" in quiet.out
