"""Settings from YAML and key=value: every accepted form, and every trap with the words of its remedy."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
import yaml

from impart.config import Parser, as_dict, config_parser, describe, load, option
from impart.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Of a made-up script."""

    save_dir: str = option(help="where to")
    ratio: float = option(8.0, help="how much", unit="entries over values", low=1.0, high=1e4, aliases=("CR", "cr"))
    C: float | None = option(None, help="exponent", words=("only_lowrank",), low=0.0)
    mask: str = option("bernoulli", help="kind of mask", choices=("bernoulli", "exact_count"))
    rescale: bool = option(True, help="multiply")
    bits: list[int] = option([8, 3, 2], help="of each group")
    seed: int = option(0, help="of the masks", low=0)
    types: list[str] | None = option(None, help="to compress")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load(Settings, written(tmp_path, text), overrides)
    return str(error.value)


def test_every_type_is_read_and_absent_keys_have_their_defaults(tmp_path):
    text = "save_dir: out\nratio: 32\nC: 0.5\nmask: exact_count\nrescale: false\nbits: [4, 2]\ntypes: [a, b]\n"
    assert load(Settings, written(tmp_path, text)) == Settings(
        "out", 32.0, 0.5, "exact_count", False, [4, 2], 0, ["a", "b"]
    )
    assert load(Settings, written(tmp_path, "save_dir: out")) == Settings("out")


def test_a_whole_number_becomes_the_float_that_is_wanted(tmp_path):
    assert isinstance(load(Settings, written(tmp_path, "save_dir: out\nratio: 32")).ratio, float)


def test_overrides_win_over_the_file_and_are_yaml_themselves(tmp_path):
    file = written(tmp_path, "save_dir: out\nratio: 32\nbits: [8]")
    config = load(Settings, file, ["ratio=2.5", "bits=[4, 4]", "rescale=false", "save_dir=a=b"])
    assert (config.ratio, config.bits, config.rescale, config.save_dir) == (2.5, [4, 4], False, "a=b")


def test_an_override_by_another_name_of_the_key_wins_too(tmp_path):
    assert load(Settings, written(tmp_path, "save_dir: out\nratio: 32"), ["CR=4"]).ratio == 4.0
    assert load(Settings, written(tmp_path, "save_dir: out\ncr: 32"), ["ratio=4"]).ratio == 4.0


def test_two_names_of_one_key_with_two_values_in_one_file_are_refused(tmp_path):
    assert "'CR'" in refused(tmp_path, "save_dir: out\nratio: 32\nCR: 16")
    assert load(Settings, written(tmp_path, "save_dir: out\nratio: 32\nCR: 32")).ratio == 32.0


def test_without_a_file_the_overrides_are_all(tmp_path):
    assert load(Settings, None, ["save_dir=out"]) == Settings("out")


def test_settings_cannot_be_changed_and_share_no_default_list():
    with pytest.raises(FrozenInstanceError):
        Settings("out").seed = 1
    assert Settings("a").bits is not Settings("b").bits


def test_an_unknown_key_names_the_nearest(tmp_path):
    message = refused(tmp_path, "save_dir: out\nrescal: true")
    assert "unknown key 'rescal'" in message and "did you mean 'rescale'?" in message
    assert "known keys: save_dir, ratio" in refused(tmp_path, "save_dir: out\nqqqq: 1")
    assert "did you mean 'cr'?" in refused(tmp_path, "save_dir: out", "ccr=1")


def test_a_bare_word_as_key_that_yaml_reads_as_a_truth_value_is_an_unknown_key(tmp_path):
    assert "unknown key False" in refused(tmp_path, "save_dir: out\nno: 1")


def test_a_number_that_yaml_reads_as_text_is_explained_with_a_form_that_works(tmp_path):
    for text in ("1e4", "1e-4", "5e-5", "1e-12", "3E3"):
        message = refused(tmp_path, f"save_dir: out\nC: {text}")
        assert f"C: {text} is a text, but number or null or only_lowrank is wanted" in message.replace("'", "")
        offered = message.split("write ")[1].split(")")[0]
        assert yaml.safe_load(offered) == float(text)
        assert load(Settings, written(tmp_path, f"save_dir: out\nC: {offered}")).C == float(text)


def test_a_word_that_yaml_reads_as_a_truth_value_is_explained(tmp_path):
    message = refused(tmp_path, "save_dir: out\nmask: no")
    assert message == (
        "mask: false is a truth value, but text is wanted (YAML reads a bare no, yes, on and off as a "
        "truth value; put quotes around a word)"
    )
    assert "truth value" in refused(tmp_path, "save_dir: out\nratio: yes")


@pytest.mark.parametrize(
    "line, words",
    [
        ("ratio: much", "ratio: much is a text, but number is wanted"),
        ("ratio: [8]", "ratio: [8] is a list, but number is wanted"),
        ("ratio: null", "ratio: null is a null, but number is wanted"),
        ("seed: 1.5", "seed: 1.5 is a number, but whole number is wanted"),
        ("seed: true", "seed: true is a truth value, but whole number is wanted"),
        ("rescale: 1", "rescale: 1 is a whole number, but true or false is wanted"),
        ("rescale: 'yes'", "rescale: 'yes' is a text, but true or false is wanted"),
        ("bits: 8", "bits: 8 is a whole number, but list of whole number is wanted"),
        ("bits: [8, 2.5]", "bits: [8, 2.5] is a list, but list of whole number is wanted"),
        ("types: {a: 1}", "types: {a: 1} is a mapping, but list of text or null is wanted"),
        ("C: lowrank", "C: lowrank is a text, but number or null or only_lowrank is wanted"),
        ("mask: none", "mask: none is not one of bernoulli, exact_count"),
        ("ratio: 0.5", "ratio: 0.5 is out of range; it must be at least 1"),
        ("ratio: 20000", "ratio: 20000.0 is out of range; it must be at most 10000"),
        ("ratio: .nan", "ratio: .nan is not a finite number"),
        ("C: .inf", "C: .inf is not a finite number"),
        ("seed: -1", "seed: -1 is out of range; it must be at least 0"),
    ],
)
def test_wrong_types_choices_and_ranges_name_key_value_and_rule(tmp_path, line, words):
    assert words in refused(tmp_path, f"save_dir: out\n{line}")
    key, value = line.split(": ", 1)
    assert words in refused(tmp_path, "save_dir: out", f"{key}={value}")


def test_words_and_null_are_taken_where_they_are_allowed(tmp_path):
    assert load(Settings, written(tmp_path, "save_dir: out\nC: only_lowrank")).C == "only_lowrank"
    assert load(Settings, written(tmp_path, "save_dir: out\nC: null")).C is None


def test_a_required_key_that_is_missing_is_named_with_its_meaning(tmp_path):
    assert "key 'save_dir' is missing" in refused(tmp_path, "ratio: 8")
    assert "where to" in refused(tmp_path, "")


@pytest.mark.parametrize(
    "text, words",
    [
        ("- a\n- b\n", "must be a mapping of keys to values, not a list"),
        ("just words", "must be a mapping of keys to values, not a str"),
        ("save_dir: [out\n", "is not valid YAML"),
        ("save_dir: out\nsave_dir: other\n", "'save_dir' stands twice"),
        ("? [a]\n: b\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, words):
    assert words in refused(tmp_path, text)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(Settings, tmp_path / "none.yaml")
    with pytest.raises(InputError, match="does not exist"):
        load(Settings, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("save_dir: f\xfcr".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        load(Settings, tmp_path / "latin.yaml")


def test_overrides_that_are_no_pair_or_no_yaml_are_refused(tmp_path):
    assert "override 'ratio' is not of the form key=value" in refused(tmp_path, "save_dir: out", "ratio")
    assert "override '=3' is not of the form key=value" in refused(tmp_path, "save_dir: out", "=3")
    assert "override 'bits=[8' is not valid YAML" in refused(tmp_path, "save_dir: out", "bits=[8")


def test_help_shows_every_key_with_type_default_unit_and_choices():
    lines = {line.split(":")[0].strip(): line for line in describe(Settings).splitlines()[1:]}
    assert list(lines) == list(as_dict(Settings("x")))
    assert "(text; required)" in lines["save_dir"]
    assert "(number; default 8.0; unit: entries over values; also called CR, cr)" in lines["ratio"]
    assert "one of bernoulli, exact_count" in lines["mask"]
    assert "number or null or only_lowrank" in lines["C"]
    assert "default [8, 3, 2]" in lines["bits"]


def test_the_parser_of_scripts_takes_flags_and_overrides_in_any_order():
    flags = config_parser(Settings, "doc").parse_intermixed_args(
        [
            "ratio=2",
            "--config",
            "a.yaml",
            "seed=1",
            "--config",
            "b.yaml",
            "--overwrite",
            "--device",
            "cpu",
            "mask=exact_count",
        ]
    )
    assert flags.overrides == ["ratio=2", "seed=1", "mask=exact_count"]
    assert (flags.config, flags.overwrite, flags.device, flags.debug) == (["a.yaml", "b.yaml"], True, "cpu", False)


def test_usage_errors_are_input_errors():
    parser = Parser("doc", prog="x.py")
    parser.add_argument("--kind", choices=("a", "b"))
    for arguments, words in (
        (["--king", "a"], "unrecognized"),
        (["--kind", "c"], "invalid choice"),
        (["--ki", "a"], "unrecognized"),
        (["--kind"], "expected one argument"),
    ):
        with pytest.raises(InputError, match=words) as error:
            parser.parse_args(arguments)
        assert "`x.py --help` lists all flags" in str(error.value)
