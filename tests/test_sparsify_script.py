"""sparsify/sparsify.py end to end: methods, ablations, both sources, the authors' keys."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import FAMILIES, family_pair, llama_shapes, random_weights, tuned_weights, write_checkpoint
from matrices import impart
from whole_runs import files_of, merge, tensors_of

from impart.architecture import linear_names
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.svd import delta_svd
from sparsify import sparsify
from sparsify.settings import RunConfig, methods

ROOT = Path(__file__).resolve().parents[1]
IMPART = ("compression_ratio=8", "preprune_ratio=0.6", "C=0.5")


def run(called, *arguments):
    ended = called(sparsify.main, "--threads", "1", *arguments)
    assert ended.code == 0, ended.err
    return ended


def models(pair):
    return f"base_model={pair[0]}", f"ftm_dir={pair[1]}"


@pytest.fixture(scope="module")
def sparse(pair, tmp_path_factory):
    """ImPart at 8 straight from the two models."""
    path = tmp_path_factory.mktemp("sparse") / "impart"
    sparsify.main(["--threads", "1", *models(pair), *IMPART, f"save_dir={path}"])
    return path


# The readme's way: a YAML with the authors' keys and a saved SVD


def test_the_authors_yaml_and_commands_by_subprocess(pair, tmp_path, script):
    """Key for key the authors' config_example.yaml, with paths and sizes of the small pair."""
    config = yaml.safe_load((ROOT / "sparsify" / "config_example.yaml").read_text())
    assert set(config) == {
        "ftm_dir",
        "svd_dir",
        "save_dir",
        "log_dir",
        "weight_types",
        "layer_num",
        "weight_name",
        "compression_ratio",
        "preprune_ratio",
        "C",
    }
    config |= {
        "ftm_dir": str(pair[1]),
        "svd_dir": str(tmp_path / "delta.pt"),
        "save_dir": str(tmp_path / "out"),
        "log_dir": str(tmp_path / "logs"),
        "layer_num": 2,
        "compression_ratio": 8,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = script(
        "delta.py",
        "--svd",
        "--base_model",
        pair[0],
        "--finetuned_model",
        pair[1],
        "--dim",
        64,
        "--save_path",
        tmp_path / "delta.pt",
    )
    assert done.code == 0, done.err
    done = script("sparsify/sparsify.py", "--config", tmp_path / "config.yaml", cwd=tmp_path)  # any working directory
    assert done.code == 0, done.err
    assert "impart at compression ratio 8, seed 0" in done.out
    artifact = open_delta(tmp_path / "out")
    assert artifact.manifest["settings"] == {
        "compression_ratio": 8.0,
        "accounting": "paper",
        "preprune_ratio": 0.8,
        "C": 0.5,
        "max_rank": None,
        "allocation": "importance",
        "mask": "bernoulli",
        "rescale": True,
    }
    assert len(artifact.names()) == 14 and (tmp_path / "logs" / "out.csv").is_file()
    done = script(
        "sparsify/sparsify.py",
        "--config",
        tmp_path / "config.yaml",
        "C=only_lowrank",
        "preprune_ratio=null",
        f"save_dir={tmp_path / 'lowrank'}",
    )
    assert done.code == 0, done.err
    assert open_delta(tmp_path / "lowrank").manifest["method"] == "lowrank"


def test_only_lowrank_is_method_lowrank(pair, tmp_path, called):
    run(
        called,
        *models(pair),
        "compression_ratio=8",
        "C=only_lowrank",
        "preprune_ratio=null",
        f"save_dir={tmp_path / 'a'}",
    )
    run(called, *models(pair), "compression_ratio=8", "method=lowrank", f"save_dir={tmp_path / 'b'}")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    with_beta = run(
        called,
        *models(pair),
        "compression_ratio=8",
        "C=only_lowrank",
        "preprune_ratio=0.8",
        f"save_dir={tmp_path / 'c'}",
    )
    assert "lowrank at compression ratio 8" in with_beta.out and files_of(tmp_path / "c") == files_of(tmp_path / "a")


# What the artifact holds


def test_every_matrix_is_impart_of_its_delta(pair, sparse):
    artifact, base, tuned = open_delta(sparse), *map(open_checkpoint, pair)
    assert artifact.names() == linear_names(tuned)
    for name in artifact.names():
        dW = tuned.tensor(name).float() - base.tensor(name).float()
        expected = impart(*delta_svd(dW), name=name, cr=8.0, beta=0.6, C=0.5, seed=0)
        assert artifact.rank(name) == expected.facts["rank"]
        assert torch.allclose(artifact.reconstruct(name), expected.dense(name), atol=1e-6)


def test_there_are_values_and_seeds_but_neither_masks_nor_dense_matrices(sparse):
    artifact = open_delta(sparse)
    for name in artifact.names():
        stored, (m, n) = artifact.stored(name), artifact.shape(name)
        assert set(stored.tensors) == {"values", "s", "keep"} and stored.facts["seed"] == 0
        assert sum(tensor.nbytes for tensor in stored.tensors.values()) < 2 * m * n / 8 * 1.25
    assert artifact.manifest["kind"] == "sparse" and artifact.manifest["seed"] == 0


def test_the_value_ratio_is_met_and_measured(sparse, called):
    artifact = open_delta(sparse)
    kept = sum(sum(entry["kept"]) for entry in artifact.manifest["matrices"].values())
    dense = sum(m * n for m, n in map(artifact.shape, artifact.names()))
    assert 8 * 0.93 < dense / kept < 8 * 1.35  # small matrices lose up to two columns to the boundary
    import delta

    assert f"{dense / kept:.2f}" in called(delta.main, "--info", sparse).out


def test_fused_equals_the_way_over_a_saved_svd(pair, svd_delta, sparse, tmp_path, called):
    run(called, f"svd_dir={svd_delta}", *IMPART, f"save_dir={tmp_path / 'd'}")
    fused, saved = open_delta(sparse), open_delta(tmp_path / "d")
    assert saved.names() == fused.names() and saved.manifest["base"] == fused.manifest["base"]
    for name in fused.names():
        ours, theirs = fused.stored(name), saved.stored(name)
        assert ours.facts["rank"] == theirs.facts["rank"] and ours.facts["kept"] == theirs.facts["kept"]
        assert torch.equal(ours.tensors["keep"], theirs.tensors["keep"])
        scale = float(fused.reconstruct(name).abs().max())
        assert torch.allclose(fused.reconstruct(name), saved.reconstruct(name), atol=2e-3 * scale)


@pytest.mark.parametrize("method, keys", [("impart", IMPART[1:]), ("lowrank", ()), ("dare", ())])
def test_every_method_takes_both_sources(pair, svd_delta, tmp_path, called, method, keys):
    for source, where in ((models(pair), "a"), ((f"svd_dir={svd_delta}",), "b")):
        run(called, *source, f"method={method}", "compression_ratio=4", *keys, f"save_dir={tmp_path / where}")
    a, b = open_delta(tmp_path / "a"), open_delta(tmp_path / "b")
    assert a.manifest["method"] == method
    for name in a.names():
        scale = float(a.reconstruct(name).abs().max())
        assert torch.allclose(a.reconstruct(name), b.reconstruct(name), atol=3e-3 * scale)


def test_dare_is_the_masked_rescaled_delta(pair, tmp_path, called):
    run(called, *models(pair), "method=dare", "compression_ratio=4", "seed=5", f"save_dir={tmp_path / 'd'}")
    artifact, base, tuned = open_delta(tmp_path / "d"), *map(open_checkpoint, pair)
    total = kept = 0
    for name in artifact.names():
        dW, found = tuned.tensor(name).float() - base.tensor(name).float(), artifact.reconstruct(name)
        mask = found != 0
        assert torch.allclose(found[mask], 4 * dW[mask], rtol=1e-3)
        kept, total = kept + sum(artifact.stored(name).facts["kept"]), total + dW.numel()
    assert abs(kept - total / 4) < 5 * math.sqrt(total * 3 / 16)
    assert artifact.manifest["seed"] == 5


def test_lowrank_is_the_truncated_svd(pair, tmp_path, called):
    run(called, *models(pair), "method=lowrank", "compression_ratio=8", f"save_dir={tmp_path / 'd'}")
    artifact, base, tuned = open_delta(tmp_path / "d"), *map(open_checkpoint, pair)
    for name in artifact.names():
        (m, n), r = artifact.shape(name), artifact.rank(name)
        assert r == max(1, int(m * n / (8 * (m + n))))
        u, s, vt = torch.linalg.svd(tuned.tensor(name).float() - base.tensor(name).float(), full_matrices=False)
        best = (u[:, :r] * s[:r]) @ vt[:r]
        assert torch.allclose(artifact.reconstruct(name), best, atol=2e-3 * float(best.abs().max()))


# Table 3


def error_of(path, pair):
    """Relative error of all deltas together."""
    artifact, base, tuned = open_delta(path), *map(open_checkpoint, pair)
    lost = total = 0.0
    for name in artifact.names():
        dW = tuned.tensor(name).float() - base.tensor(name).float()
        lost, total = lost + float((artifact.reconstruct(name) - dW).square().sum()), total + float(dW.square().sum())
    return math.sqrt(lost / total)


def test_the_four_ablations_of_table_3(pair, sparse, tmp_path, called):
    rows = {
        "no_preprune": ["preprune_ratio=0"],
        "uniform": ["allocation=uniform"],
        "both": ["preprune_ratio=0", "allocation=uniform"],
        "no_rescale": ["rescale=false"],
    }
    for row, keys in rows.items():
        run(called, *models(pair), *IMPART, *keys, f"save_dir={tmp_path / row}")
    full, artifacts = open_delta(sparse), {row: open_delta(tmp_path / row) for row in rows}
    for name in full.names():
        keep = {row: artifact.stored(name).tensors["keep"].long() for row, artifact in artifacts.items()}
        whole = full.stored(name).tensors["keep"].long()
        assert len(keep["no_preprune"]) >= len(whole) and len(keep["both"]) == min(full.shape(name))
        assert len(set(keep["uniform"].tolist())) == len(set(keep["both"].tolist())) == 1
        assert keep["uniform"][0] > keep["both"][0]
        assert torch.equal(keep["no_rescale"], whole) and not torch.allclose(
            artifacts["no_rescale"].reconstruct(name), full.reconstruct(name), atol=1e-5
        )
    errors = {row: error_of(tmp_path / row, pair) for row in rows} | {"full": error_of(sparse, pair)}
    assert (
        errors["full"] < errors["uniform"] < errors["both"]
    )  # variance: the paper's reason for pruning and importance


def test_seeds_change_values_and_exact_counts_change_counts(pair, sparse, tmp_path, called):
    run(called, *models(pair), *IMPART, "seed=1", f"save_dir={tmp_path / 'seed'}")
    run(called, *models(pair), *IMPART, "mask=exact_count", f"save_dir={tmp_path / 'exact'}")
    zero, one, exact = map(open_delta, (sparse, tmp_path / "seed", tmp_path / "exact"))
    assert one.manifest["seed"] == 1 and exact.manifest["settings"]["mask"] == "exact_count"
    for name in zero.names():
        assert torch.equal(zero.stored(name).tensors["keep"], one.stored(name).tensors["keep"])
        levels = exact.stored(name).tensors["keep"].long() + 1
        m, n = exact.shape(name)
        assert exact.stored(name).facts["kept"] == [
            int(sum(rows - rows * (65536 - level) // 65536 for level in levels)) for rows in (m, n)
        ]
    assert any(not torch.equal(zero.reconstruct(name), one.reconstruct(name)) for name in zero.names())


def test_the_same_settings_give_the_same_bytes(pair, sparse, tmp_path, called):
    run(called, *models(pair), *IMPART, f"save_dir={tmp_path / 'd'}")
    assert files_of(tmp_path / "d") == files_of(sparse)


# What else is written


def test_the_table_has_a_line_per_matrix_that_agrees_with_the_artifact(pair, tmp_path, called):
    run(called, *models(pair), *IMPART, f"save_dir={tmp_path / 'out'}", f"log_dir={tmp_path / 'logs'}")
    artifact = open_delta(tmp_path / "out")
    with (tmp_path / "logs" / "out.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == [
        "name",
        "type",
        "m",
        "n",
        "alpha",
        "b",
        "rank",
        "kept_u",
        "kept_v",
        "sparsity",
        "value_ratio",
        "byte_ratio",
    ]
    assert [line["name"] for line in lines] == artifact.names()
    for line in lines:
        (m, n), facts = artifact.shape(line["name"]), artifact.stored(line["name"]).facts
        kept = sum(facts["kept"])
        assert (int(line["m"]), int(line["n"]), int(line["rank"])) == (m, n, facts["rank"])
        assert [int(line["kept_u"]), int(line["kept_v"])] == facts["kept"]
        alpha, capacity = 1 - m * n / (8 * (m + n) * min(m, n)), (m + n) * min(m, n)
        assert float(line["alpha"]) == pytest.approx(alpha, abs=1e-6)
        assert float(line["sparsity"]) == pytest.approx(1 - kept / capacity, abs=1e-6)
        assert float(line["value_ratio"]) == pytest.approx(m * n / kept, rel=1e-4)
        assert float(line["byte_ratio"]) == pytest.approx(2 * m * n / facts["bytes"], rel=1e-4)


@pytest.mark.parametrize("method", ["dare", "lowrank"])
def test_the_table_of_the_baselines(pair, tmp_path, called, method):
    run(
        called,
        *models(pair),
        f"method={method}",
        "compression_ratio=8",
        f"save_dir={tmp_path / 'out'}",
        f"log_dir={tmp_path / 'logs'}",
    )
    with (tmp_path / "logs" / "out.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 14 and all(line["b"] == "" for line in lines)
    assert all((line["rank"] == "") == (line["kept_v"] == "") == (method == "dare") for line in lines)
    assert 6 < sum(float(line["value_ratio"]) for line in lines) / 14 < 12


def test_save_model_writes_the_dense_checkpoint_as_well(pair, sparse, tmp_path, called):
    run(called, *models(pair), *IMPART, "save_model=true", f"save_dir={tmp_path / 'out'}")
    assert files_of(tmp_path / "out") == files_of(sparse)
    merge(called, tmp_path / "out", tmp_path / "merged")
    assert files_of(tmp_path / "out_model") == files_of(tmp_path / "merged")
    run(
        called,
        *models(pair),
        *IMPART,
        "save_model=true",
        f"save_dir={tmp_path / 'b'}",
        f"model_dir={tmp_path / 'elsewhere'}",
    )
    assert files_of(tmp_path / "elsewhere") == files_of(tmp_path / "merged") and not (tmp_path / "b_model").exists()


def test_save_model_goes_on_after_the_delta(pair, tmp_path, called):
    """As after a kill in between; but not over the delta of other settings or models."""
    out, model = tmp_path / "out", tmp_path / "out_model"
    command = (*models(pair), *IMPART, "save_model=true", f"save_dir={out}")
    other = shutil.copytree(pair[0], tmp_path / "other")
    run(called, *command)
    delta, dense = (out / "delta.json").read_bytes(), (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    assert "dense checkpoint" in run(called, *command).out
    assert (out / "delta.json").read_bytes() == delta and (model / "model.safetensors").read_bytes() == dense
    shutil.rmtree(model)
    for changed in (["seed=5"], ["weight_types=[mlp.up_proj]"], [f"ftm_dir={other}"]):
        ended = called(sparsify.main, "--threads", "1", *command, *changed)
        assert ended.code == 2 and "is of other models or settings" in ended.err and not model.exists()
    shard = next(out.glob("layer-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    ended = called(sparsify.main, "--threads", "1", *command)
    assert ended.code == 2 and "altered" in ended.err and not model.exists()


def test_save_model_over_a_saved_svd_finds_the_base_by_itself(pair, svd_delta, tmp_path, called):
    run(called, f"svd_dir={svd_delta}", *IMPART, "save_model=true", f"save_dir={tmp_path / 'out'}")
    assert set(tensors_of(tmp_path / "out_model")) == set(tensors_of(pair[1]))


def test_the_report_lies_beside_the_result(sparse, pair):
    report = json.loads((sparse / "report.json").read_text())
    assert report["settings"]["compression_ratio"] == 8.0 and report["settings"]["base_model"] == str(pair[0])
    assert len(report["matrices"]) == 14 and report["matrices"][0]["rank"] > 0 and report["peak_memory_mib"] > 0


# Parts of a model


@pytest.mark.parametrize("over_svd", [False, True])
def test_types_and_layers_that_are_left_out_travel_whole(pair, svd_delta, tmp_path, called, over_svd):
    source = (f"svd_dir={svd_delta}", f"ftm_dir={pair[1]}") if over_svd else models(pair)
    run(
        called,
        *source,
        *IMPART,
        "weight_types=[self_attn.q_proj, mlp.up_proj]",
        "layer_num=1",
        "weight_name=model.layers.{layer_num}.{weight_type}",
        f"save_dir={tmp_path / 'out'}",
    )
    artifact, tuned = open_delta(tmp_path / "out"), open_checkpoint(pair[1])
    assert artifact.names() == ["model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    assert len(artifact.extras()) == 12
    merged = merge(called, tmp_path / "out", tmp_path / "merged")
    for name in tuned.names():
        assert torch.equal(merged.tensor(name), tuned.tensor(name)) == (name not in artifact.names())


def test_extras_and_unchanged_matrices(tmp_path, called):
    base = random_weights(llama_shapes(hidden=32, intermediate=48, layers=2, kv=16, vocabulary=50))
    tuned, unchanged = tuned_weights(base), "model.layers.1.self_attn.o_proj.weight"
    tuned[unchanged] = base[unchanged].clone()
    tuned["model.embed_tokens.weight"] = torch.cat([base["model.embed_tokens.weight"], torch.ones(1, 32).bfloat16()])
    del tuned["lm_head.weight"]
    pair = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    for method, keys in (("impart", IMPART[1:]), ("lowrank", ()), ("dare", ())):
        run(called, *models(pair), f"method={method}", "compression_ratio=4", *keys, f"save_dir={tmp_path / method}")
        artifact = open_delta(tmp_path / method)
        assert artifact.extras() == ["model.embed_tokens.weight"] and artifact.manifest["dropped"] == ["lm_head.weight"]
        assert artifact.manifest["matrices"][unchanged]["encoding"] == "empty"
        merged = merge(called, tmp_path / method, tmp_path / f"{method}_merged")
        assert set(merged.names()) == set(tuned) and torch.equal(merged.tensor(unchanged), base[unchanged])
        assert merged.shape("model.embed_tokens.weight") == (51, 32)


def test_identical_models_give_an_empty_delta(pair, tmp_path, called, caplog):
    copy = shutil.copytree(pair[0], tmp_path / "copy")
    for method, keys in (("impart", IMPART[1:]), ("lowrank", ()), ("dare", ())):
        run(
            called,
            f"base_model={pair[0]}",
            f"ftm_dir={copy}",
            f"method={method}",
            "compression_ratio=8",
            *keys,
            f"save_dir={tmp_path / method}",
            f"log_dir={tmp_path}",
        )
        assert {entry["encoding"] for entry in open_delta(tmp_path / method).manifest["matrices"].values()} == {"empty"}
    assert caplog.text.count("are identical: the delta is empty") == 3
    for a, b in zip(
        tensors_of(merge(called, tmp_path / "impart", tmp_path / "m").path).values(),
        tensors_of(pair[0]).values(),
        strict=True,
    ):
        assert torch.equal(a, b)


# Bytes on disk


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory):
    """One layer with a square matrix of 1024 and one of Llama's mlp shape beside it."""
    shapes = {
        "model.embed_tokens.weight": (8, 1024),
        "model.layers.0.self_attn.q_proj.weight": (1024, 1024),
        "model.layers.0.mlp.up_proj.weight": (2816, 1024),
    }
    base, folder = random_weights(shapes), tmp_path_factory.mktemp("wide")
    return write_checkpoint(folder / "base", base), write_checkpoint(folder / "tuned", tuned_weights(base))


@pytest.mark.parametrize(
    "keys",
    [
        ("preprune_ratio=0.6", "C=1"),
        ("preprune_ratio=0.8", "C=0.5"),
        ("preprune_ratio=0.8", "C=0.5", "mask=exact_count"),
        ("method=lowrank",),
        ("method=dare",),
    ],
    ids=["0.6-1", "0.8-0.5", "exact", "lowrank", "dare"],
)
def test_at_32_the_linear_layers_take_a_32nd_of_their_bytes(wide_pair, tmp_path, called, keys):
    run(called, *models(wide_pair), "compression_ratio=32", *keys, f"save_dir={tmp_path / 'out'}")
    artifact = open_delta(tmp_path / "out")
    assert artifact.sizes().linear_ratio == pytest.approx(32, rel=0.03)
    for entry in artifact.manifest["matrices"].values():
        m, n = entry["shape"]
        assert 2 * m * n / entry["bytes"] == pytest.approx(32, rel=0.03)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 2 * (1024 * 1024 + 2816 * 1024) / on_disk == pytest.approx(32, rel=0.03)


# Families


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_sparsified_and_its_dense_model_loads(tmp_path, called, family):
    import transformers

    pair = family_pair(tmp_path, family)
    run(
        called,
        *models(pair),
        "compression_ratio=2",
        "preprune_ratio=0.3",
        "C=1",
        "save_model=true",
        f"save_dir={tmp_path / 'out'}",
    )
    artifact = open_delta(tmp_path / "out")
    assert artifact.names() == linear_names(open_checkpoint(pair[1]))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out_model", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert torch.all(torch.isfinite(model(torch.arange(3, 13)[None]).logits))


def test_help_shows_every_key_with_its_default(called):
    ended = called(sparsify.main, "--help")
    assert ended.code == 0 and ended.err == ""
    for settings in (RunConfig, *methods("sparse").values()):
        for field in dataclasses.fields(settings):
            assert f"  {field.name}: {field.metadata['help']}" in ended.out
    for words in (
        "default bernoulli; one of bernoulli, exact_count",
        "also called beta",
        "keys of method dare (DARE):",
        "--device",
        "--threads",
        "--overwrite",
        "--debug",
        "key=value",
    ):
        assert words in ended.out
