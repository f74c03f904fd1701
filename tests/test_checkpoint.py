"""Checkpoints in every format, and files that are not checkpoints."""

import argparse
import json
import os
import pickle
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForAudioClassification

from ssamba_upstream import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
    SsambaForPreTraining,
    SsambaModel,
    checkpoint,
    downloads,
)
from ssamba_upstream.checkpoint import (
    CheckpointError,
    content_hash,
    load_config,
    load_model,
    new_classifier,
    save_model,
    write_classifier,
    write_model,
)
from ssamba_upstream.cli import main
from ssamba_upstream.downloads import find_checkpoint, find_named, find_published
from ssamba_upstream.frames import FrameEncoder
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.plugin.hubconf import ENTRIES

WITH_HEADS = (SsambaForPreTraining, SsambaForAudioClassification, SsambaForAudioFrameClassification)


def small_model(**overrides):
    config = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 128, **overrides}
    return SsambaModel(SsambaConfig(**config)).eval()


def small_model_with_heads(model_class, **overrides):
    fields = {"num_labels": 3, "block_order": "paired", **overrides}
    return model_class(small_model(**fields).config).eval()


def assert_same_model(found, expected):
    assert found.config.block_order == expected.config.block_order
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["folder", "file.safetensors", "file.ckpt"])
def test_our_formats_round_trip(tmp_path, name):
    model = small_model(block_order="paired", norm="rms_norm")
    save_model(model, tmp_path / name)
    assert_same_model(load_model(tmp_path / name), model)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert load_model(tmp_path / name, time_stride=4).config.time_stride == 4
    assert load_model(tmp_path / name, block_order="sequential").config.block_order == "sequential"


def written_dtypes(path):
    """Return the dtypes of a folder's weights, and its configuration's dtype, in which transformers 5 loads it."""
    with safe_open(path / "model.safetensors", framework="pt") as stored:
        weights = {stored.get_tensor(name).dtype for name in stored.keys()}
    return weights, getattr(torch, json.loads((path / "config.json").read_text())["dtype"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_configuration_has_the_dtype_of_the_weights(tmp_path, dtype):
    """The model may have another dtype: classifiers are fine-tuned in float32 from the starter's float16 file."""
    small_model_with_heads(SsambaForPreTraining).half().save_pretrained(tmp_path / "half")
    assert written_dtypes(tmp_path / "half") == ({torch.float16}, torch.float16)
    for name in ("again", "again.safetensors", "again.ckpt"):
        save_model(load_model(tmp_path / "half", model_class=None).to(dtype), tmp_path / name)
        assert checkpoint._read(tmp_path / name)[0].dtype == dtype
    loaded = load_model(tmp_path / "half")
    assert loaded.config.dtype == loaded.dtype == torch.float32
    write_model(loaded.to(dtype), tmp_path / "run")
    classifier = new_classifier(tmp_path / "half", SsambaForAudioClassification, ["a", "b"], 128).to(dtype)
    write_classifier(classifier, SsambaFeatureExtractor(max_length=128), tmp_path / "classifier")
    for name in ("again", "run", "classifier"):
        assert written_dtypes(tmp_path / name) == ({dtype}, dtype), name
    for automatic in (AutoModel, AutoModelForAudioClassification):
        found = automatic.from_pretrained(tmp_path / "classifier", dtype="auto")
        assert {parameter.dtype for parameter in found.parameters()} == {dtype}


def test_the_dtype_of_a_loaded_model_is_no_override(tmp_path):
    save_model(small_model(), tmp_path / "folder")
    for load in (load_model, load_config):
        with pytest.raises(ValueError, match=r"dtype cannot be set: .* model.to\(torch.bfloat16\)"):
            load(tmp_path / "folder", dtype=torch.float16)


@pytest.mark.parametrize("name", ["folder", "file.safetensors", "file.ckpt"])
def test_whoever_may_read_new_files_may_read_a_checkpoint(tmp_path, name):
    """Groups share disks, but safetensors writes files that only their owner can read."""
    before = os.umask(0o027)
    try:
        save_model(small_model(), tmp_path / name)
        write_model(small_model(), tmp_path / "run")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 2 and {file.stat().st_mode & 0o777 for file in files} == {0o640}


@pytest.mark.parametrize("name", ["folder", "file.safetensors", "file.ckpt"])
@pytest.mark.parametrize("model_class", WITH_HEADS)
def test_the_heads_tell_the_class(tmp_path, model_class, name):
    model = small_model_with_heads(model_class)
    save_model(model, tmp_path / name)
    for asked in (None, model_class):
        found = load_model(tmp_path / name, model_class=asked)
        assert type(found) is model_class and found.config.num_labels == 3 and not found.training
        assert_same_model(found, model)
    encoder = load_model(tmp_path / name)
    assert type(encoder) is SsambaModel
    assert_same_model(encoder, model.ssamba)
    for other in set(WITH_HEADS) - {model_class}:
        message = f"holds a {model_class.__name__}, without the heads of a {other.__name__}"
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name, model_class=other)


@pytest.mark.parametrize("model_class", WITH_HEADS)
def test_an_encoder_alone_has_no_heads(tmp_path, model_class):
    save_model(small_model(), tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="the encoder alone, without the heads"):
        load_model(tmp_path / "encoder", model_class=model_class)


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("classifier.bias"), "lacks classifier.bias"),
    (lambda s: s.pop("ssamba.norm_f.bias"), "lacks ssamba.norm_f.bias"),
    (lambda s: s.update({"mask_embedding": torch.ones(2)}), "has mask_embedding, which the network lacks"),
    (lambda s: s.update({"classifier.bias": torch.ones(4)}), r"has classifier.bias \(4,\), the network"),
])
def test_classifiers_must_fit_exactly(tmp_path, change, message):
    save_model(small_model_with_heads(SsambaForAudioClassification), tmp_path / "folder")
    state = load_file(tmp_path / "folder" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "folder", model_class=None)


def test_what_is_neither_encoder_nor_head_is_refused_of_the_encoder_too(tmp_path):
    save_model(small_model_with_heads(SsambaForAudioClassification), tmp_path / "folder")
    state = load_file(tmp_path / "folder" / "model.safetensors")
    save_file({**state, "extra": torch.ones(2)}, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="has extra, which the network lacks"):
        load_model(tmp_path / "folder")


def test_a_classifier_s_folder_serves_as_any_checkpoint(tmp_path, capsys):
    model = small_model_with_heads(SsambaForAudioClassification)
    model.config.id2label = {0: "dog", 1: "rain", 2: "sea waves"}
    write_classifier(model, SsambaFeatureExtractor(max_length=128), tmp_path / "classifier")
    upstream = UpstreamExpert(tmp_path / "classifier")
    assert_same_model(upstream.model, model.ssamba)
    assert len(upstream([torch.randn(16000)])["hidden_states"]) == 3
    assert main(["info", str(tmp_path / "classifier")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=1) == ["classes", "3: dog, rain, sea waves"]
    assert f"{sum(p.numel() for p in model.ssamba.parameters()):,}" in lines[2]
    assert main(["convert", str(tmp_path / "classifier"), "--out", str(tmp_path / "file.safetensors")]) == 0
    assert_same_model(load_model(tmp_path / "file.safetensors", model_class=None), model)
    # An encoder's folder contains no code and refers to none.
    save_model(load_model(tmp_path / "classifier"), tmp_path / "encoder")
    assert "auto_map" not in json.loads((tmp_path / "encoder" / "config.json").read_text())


def test_official_checkpoints_say_what_they_are_by_their_shapes(official_checkpoint):
    config = load_model(official_checkpoint).config
    assert (config.hidden_size, config.num_hidden_layers, config.time_step_rank) == (32, 4, 2)
    assert (config.norm, config.block_order, config.position_grid) == ("layer_norm", "paired", (8, 64))


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_official_pth(tmp_path, official_checkpoint, prefix):
    state = {name.replace("module.", prefix, 1): tensor for name, tensor in load_file(official_checkpoint).items()}
    torch.save(state, tmp_path / "official.pth")
    assert_same_model(load_model(tmp_path / "official.pth"), load_model(official_checkpoint))


def test_official_rms_norm_is_told_by_the_missing_biases(tmp_path, official_checkpoint):
    state = {n: t for n, t in load_file(official_checkpoint).items() if not n.endswith(("norm.bias", "norm_f.bias"))}
    save_file(state, tmp_path / "official.safetensors")
    assert load_model(tmp_path / "official.safetensors").config.norm == "rms_norm"


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("module.v.layers.2.mixer.D_b"), "lacks layers.2.mixer.D_b"),
    (lambda s: s.update({"module.mlp_head.0.weight": torch.ones(2)}), "has mlp_head.0.weight, which the network lacks"),
    (lambda s: s.update({"module.v.pos_embed": torch.ones(1, 100, 32)}), r"has pos_embed \(1, 100, 32\), the network"),
    (lambda s: s.pop("module.p_input_tdim"), "is not a SSAMBA checkpoint: it lacks p_input_tdim"),
    (lambda s: s.pop("module.v.layers.0.mixer.conv1d.weight"), "not a complete SSAMBA checkpoint"),
])
def test_official_checkpoints_must_fit_exactly(tmp_path, official_checkpoint, change, message):
    state = load_file(official_checkpoint)
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "changed.safetensors")


@pytest.mark.parametrize("model_class", [SsambaModel, *WITH_HEADS])
def test_equal_models_are_equal_files(tmp_path, model_class):
    model = small_model() if model_class is SsambaModel else small_model_with_heads(model_class)
    for number in range(8):  # by chance once in 128 times, if two keys may swap
        save_model(model, tmp_path / f"{number}.safetensors")
        save_model(model, tmp_path / f"{number}.ckpt")
    for number in range(8):  # save_pretrained also changes the model's configuration
        save_model(model, tmp_path / f"{number}-folder")
        write_model(model, tmp_path / f"{number}-written")
    for files in ("*.safetensors", "*.ckpt", "*/model.safetensors", "*-folder/config.json", "*-written/config.json"):
        assert len({file.read_bytes() for file in tmp_path.glob(files)}) == 1, files


def test_the_weights_in_a_folder_stand_for_it(tmp_path):
    model = small_model(block_order="paired")
    save_model(model, tmp_path / "folder")
    assert_same_model(load_model(tmp_path / "folder" / "model.safetensors"), model)


WRAPPED = {
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "a training loop": lambda state: {"model": state, "optimizer": {"param_groups": [{"lr": 0.1}]}, "epoch": 3},
    "Lightning": lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
                                "optimizer_states": [{}], "epoch": 3, "pytorch-lightning_version": "2.5.0"},
    "compiled": lambda state: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: 1}}, 7: 8},
    "a part of a network": lambda state: {"net": {
        **{f"encoder.{name}": tensor for name, tensor in state.items()}, "head.weight": torch.ones(2), "epoch": 3}},
    "a part, flat": lambda state: {
        **{f"backbone.conv.{name}": tensor for name, tensor in state.items()}, "head.bias": torch.ones(2)},
    "an average": lambda state: {
        **{f"module.{name}": tensor for name, tensor in state.items()}, "n_averaged": torch.tensor(3)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("model_class", [SsambaModel, *WITH_HEADS])
def test_state_dicts_of_training_loops(tmp_path, model_class, wrap):
    model = small_model(block_order="paired", norm="rms_norm")
    whole = model
    if model_class is not SsambaModel:
        whole = model_class(model.config).eval()
        model = whole.ssamba
    torch.save(wrap(whole.state_dict()), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=f"the weights of a {model_class.__name__} without its config"):
        load_model(tmp_path / "last.ckpt")
    for asked in (SsambaModel, None):
        found = load_model(tmp_path / "last.ckpt", block_order="paired", model_class=asked)
        assert type(found) is SsambaModel and found.config.position_grid == model.config.position_grid
        assert_same_model(found, model)
    torch.save({**wrap(whole.state_dict()), "ssamba_config": whole.config.to_dict()}, tmp_path / "whole.ckpt")
    assert_same_model(load_model(tmp_path / "whole.ckpt", model_class=None), whole)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_official_state_dicts_of_training_loops(tmp_path, official_checkpoint, wrap):
    torch.save(wrap(load_file(official_checkpoint)), tmp_path / "official.pth")
    assert_same_model(load_model(tmp_path / "official.pth"), load_model(official_checkpoint))


def test_of_two_encoders_none_is_chosen(tmp_path):
    state = small_model().state_dict()
    both = {f"{prefix}{name}": tensor for prefix in ("", "teacher.") for name, tensor in state.items()}
    torch.save(both, tmp_path / "both.ckpt")
    with pytest.raises(CheckpointError, match="holds 2 encoders, with the prefixes '', 'teacher.'. Save"):
        load_model(tmp_path / "both.ckpt", block_order="sequential")


def test_the_training_state_of_a_run_says_what_it_is(tmp_path):
    model = small_model_with_heads(SsambaForPreTraining)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"step": 3}},
               tmp_path / "step-00000003.pt")
    with pytest.raises(CheckpointError, match="a SsambaForPreTraining without its configuration.* Give a folder"):
        load_model(tmp_path / "step-00000003.pt")


@pytest.mark.parametrize("content, held", [
    ({"epoch": 3, "loss": 0.1}, "it holds epoch, loss and so on"),
    ({"state_dict": {"model.cls_token": torch.ones(2), "criterion.weight": torch.ones(2)}},
     "it holds model.cls_token, criterion.weight and so on"),
])
def test_what_is_no_checkpoint_is_named(tmp_path, content, held):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=f"is not a SSAMBA checkpoint: {held}"):
        load_model(tmp_path / "other.ckpt")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RunsCode()}, "evil.ckpt")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(RunsCode()))
    for name in ("evil.ckpt", "evil.pth"):
        with pytest.raises(CheckpointError, match="refused: it is not a plain state dict"):
            load_model(name)
    assert not (tmp_path / "HACKED").exists()


@pytest.fixture
def no_safe_globals():
    """Remove the Namespace that ``register()`` allows for s3prl's checkpoints, if another test has called it."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize("beside, name", [
    (argparse.Namespace(stage="Downstream", learning_rate=1e-4), "argparse.Namespace"),
    (Path("audio"), "pathlib.*Path"), (np.float64(0.9), "numpy.*scalar"),
])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_named(tmp_path, beside, name, zipped, no_safe_globals):
    """The message does not suggest letting the file run code."""
    content = {"model": small_model().state_dict(), "args": beside}
    torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "last.pt", block_order="sequential")
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search(f"not a plain state dict but holds {name}, .*Save the state dict alone .*torch.save", shown)
    assert not re.search("WeightsUnpickler|safe_globals|trusted source|s3prl", shown)


@pytest.mark.parametrize("content", [b"", b"hello world", b"name,label\n", bytes(range(256)), b"\x80\x02}q\x00K\x01s."])
def test_files_of_something_else(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other.pth (is damaged|is refused|holds a|is not a SSAMBA)"):
        load_model(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["file.safetensors", "file.ckpt", "folder/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 20000])
def test_truncated_files(tmp_path, name, kept):
    target = tmp_path / name.split("/")[0]
    save_model(small_model(), target)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged|refused"):
        load_model(target)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        load_model(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="holds a 'bert' model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        load_model(tmp_path)


def test_a_checkpoint_of_s3prl_is_recognised(tmp_path):
    torch.save({"Downstream": {}, "Featurizer": {}, "Args": argparse.Namespace(mode="train")}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="s3prl's downstream training.*with -e"):
        load_model(tmp_path / "best.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(tmp_path / "list.ckpt")


def test_nothing_is_overwritten_or_left_behind(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        save_model(small_model(), tmp_path / "folder")
    save_model(small_model(), tmp_path / "file.ckpt")
    before = (tmp_path / "file.ckpt").read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(small_model(), tmp_path / "file.ckpt")
    assert (tmp_path / "file.ckpt").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.ckpt", "folder"]


def test_published_names_are_looked_for_in_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(tmp_path))
    (tmp_path / "ssamba_tiny_250.pth").touch()
    (tmp_path / "ssamba_tiny_400").mkdir()
    (tmp_path / "ssamba_tiny_400.pth").touch()
    assert find_published("ssamba_tiny_250") == tmp_path / "ssamba_tiny_250.pth"
    assert find_published("ssamba_tiny") == tmp_path / "ssamba_tiny_400"


def test_published_names_in_cache_and_hub(tmp_path, monkeypatch):
    asked = []

    def hub(repository, file, local_files_only=False, force_download=False):
        asked.append((repository, file, local_files_only, force_download))
        if local_files_only:
            raise downloads.LocalEntryNotFoundError("not cached")
        return str(tmp_path / file)

    monkeypatch.delenv("SSAMBA_CHECKPOINTS", raising=False)
    monkeypatch.setattr(downloads, "hf_hub_download", hub)
    repository = "attentionisallyouneed369/ssamba"
    assert find_published("ssamba_base_300") == tmp_path / "ssamba_base_300.pth"
    assert find_published("ssamba_base", refresh=True) == tmp_path / "ssamba_base_400.pth"
    assert asked == [
        (repository, "ssamba_base_300.pth", True, False), (repository, "ssamba_base_300.pth", False, False),
        (repository, "ssamba_base_400.pth", False, True),
    ]


def test_offline_and_absent(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise downloads.LocalEntryNotFoundError("offline")

    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(downloads, "hf_hub_download", offline)
    with pytest.raises(CheckpointError, match="no checkpoint ssamba_small_400: looked in.*SSAMBA_CHECKPOINTS.*with -k"):
        find_published("ssamba_small")


@pytest.mark.parametrize("name", ["ssamba_tiny", "ssamba_tiny_400", "me/ssamba"])
def test_names_mean_the_same_everywhere(name, tmp_path, monkeypatch, capsys):
    save_model(small_model(), tmp_path / "ssamba_tiny_400")
    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(downloads, "snapshot_download", lambda *a, **k: str(tmp_path / "ssamba_tiny_400"))
    monkeypatch.chdir(tmp_path)
    expected = FrameEncoder.from_checkpoint(tmp_path / "ssamba_tiny_400").model
    assert_same_model(FrameEncoder.from_checkpoint(name).model, expected)
    assert_same_model(ENTRIES["ssamba_local"](ckpt=name).model, expected)
    assert content_hash(name) == content_hash(tmp_path / "ssamba_tiny_400")
    assert main(["info", name]) == 0 and f"checkpoint     {name}\n" in capsys.readouterr().out


def test_an_existing_path_takes_precedence_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(tmp_path / "published"))
    for folder in ("ssamba_tiny", "published/ssamba_tiny_400"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_checkpoint("ssamba_tiny") == Path("ssamba_tiny")
    assert find_named("ssamba_tiny") == tmp_path / "published" / "ssamba_tiny_400"  # like an s3prl entry


@pytest.mark.parametrize("name", ["run/best", "other/model.ckpt", "nothing", "ssamba_huge"])
def test_a_mistyped_path_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=f"no checkpoint {name}: there is no such file or folder. Give a path"):
        load_model(name)


def test_a_repository_that_is_not_there(monkeypatch):
    def absent(*arguments, **options):
        raise downloads.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(downloads, "snapshot_download", absent)
    with pytest.raises(CheckpointError, match="no such file or folder, and the Hugging Face hub does not provide"):
        load_model("me/ssamba")


def test_url(tmp_path, monkeypatch):
    save_model(small_model(), tmp_path / "model.ckpt")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    url = (tmp_path / "model.ckpt").as_uri()
    copy = downloads.download_url(url)
    assert_same_model(load_model(copy), load_model(tmp_path / "model.ckpt"))
    assert find_checkpoint(url) == copy
    (tmp_path / "model.ckpt").unlink()
    assert downloads.download_url(url) == copy
    with pytest.raises(CheckpointError, match="cannot download"):
        downloads.download_url(url, refresh=True)
