"""The ``ssamba`` command, from its user's point of view."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from ssamba_upstream import cli
from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.cli import corpora, main, options
from ssamba_upstream.corpora.preparation import SETS
from ssamba_upstream.network.configuration import HIDDEN_SIZES


def test_init_info_convert(tmp_path, capsys, official_checkpoint):
    assert main(["init", "--size", "tiny", "--out", str(tmp_path / "tiny")]) == 0
    assert main(["info", str(tmp_path / "tiny")]) == 0
    assert "6,922,176" in capsys.readouterr().out
    assert main(["init", "--size", "tiny", "--out", str(tmp_path / "tiny")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err

    assert main(["init", "--like", str(official_checkpoint), "--out", str(tmp_path / "like.ckpt")]) == 0
    like, original = load_model(tmp_path / "like.ckpt"), load_model(official_checkpoint)
    assert like.config.to_dict() == original.config.to_dict()
    assert not torch.equal(like.layers[0].mixer.in_proj.weight, original.layers[0].mixer.in_proj.weight)

    assert main(["convert", str(official_checkpoint), "--out", str(tmp_path / "converted")]) == 0
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["block_order"] == "paired"
    assert main(["convert", str(tmp_path / "converted"), "--block-order", "sequential", "--out",
                 str(tmp_path / "c.ckpt")]) == 0
    assert load_model(tmp_path / "c.ckpt").config.block_order == "sequential"
    assert main(["info", str(official_checkpoint)]) == 0
    assert "8 x 64, from clips of 10.24 s" in capsys.readouterr().out


@pytest.mark.slow
def test_init_is_seeded(tmp_path):
    for seed, name in ((0, "a.ckpt"), (0, "b.ckpt"), (1, "c.ckpt")):
        main(["init", "--seed", str(seed), "--out", str(tmp_path / name)])
    a, b, c = (load_model(tmp_path / name).pos_embed for name in ("a.ckpt", "b.ckpt", "c.ckpt"))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for arguments in (["info", str(tmp_path / "nowhere")], ["info", str(tmp_path / "broken.safetensors")]):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("ssamba: ") and error.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    ("pretrain smoke --out run --set train=a.jsonl validation=b.jsonl", "there is no manifest b.jsonl. Correct"),
    ("finetune esc50 --out run --set data=nowhere.csv", "there is no labelled set nowhere.csv. Give a CSV"),
    ("probe nowhere.csv log-mel", "there is no labelled set nowhere.csv. Give a CSV"),
    ("probe-frames nowhere.csv log-mel", "there is no table nowhere.csv. Give a CSV or TSV"),
    ("extract ssamba_starter nowhere.jsonl --out run", "there is no manifest nowhere.jsonl. Correct"),
    ("layer-weights nowhere.ckpt", "nowhere.ckpt does not exist. Correct the path"),
    ("submit --ks nowhere --out run", "nowhere does not exist. Correct the path"),
])
def test_missing_files_are_explained_and_leave_no_folder(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 1
    assert f"ssamba: {message}" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("arguments, buffered", [
    (["--help"], True), (["corpora", "check", "ks", "nowhere"], True), (["corpora", "check", "ks", "nowhere"], False),
    pytest.param(["layer-weights", "weights.ckpt"], True, marks=pytest.mark.slow),
], ids=str)
def test_who_reads_the_output_may_go(tmp_path, arguments, buffered):
    """When the reader closes the pipe, as ``head`` does, there is no traceback, and the status is conventional."""
    torch.save({"Downstream": {}, "Featurizer": {"weights": torch.zeros(25)}}, tmp_path / "weights.ckpt")
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", "import sys; from ssamba_upstream.cli import main; sys.exit(main())", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(program, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (options.OUTPUT_CLOSED, "")


def test_another_broken_pipe_is_an_error(tmp_path, capsys, monkeypatch):
    def check(options):
        raise BrokenPipeError(32, "Broken pipe", "a program that reads no more")

    monkeypatch.setattr(corpora, "_check", check)
    assert main(["corpora", "check", "ks", "nowhere"]) == 1
    assert capsys.readouterr().err == "ssamba: [Errno 32] Broken pipe: 'a program that reads no more'\n"


def test_an_interruption_prints_no_traceback(capsys, monkeypatch):
    def check(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "_check", check)
    assert main(["corpora", "check", "ks", "nowhere"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_every_argument_is_explained():
    """Each help line is a full description by itself."""
    def check(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    check(command)
            else:
                assert len(action.help.split()) >= 3 and not action.help.startswith(("default", "the same")), action

    check(cli._parser())


def test_help_lists_each_command_under_its_title(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.endswith(":")] == ["options:", *(f"{t}:" for t in cli.GROUPS)]
    groups = printed.split("\n\n")
    assert "  submit " in groups[-3] and "  bench " in groups[-1]


@pytest.mark.parametrize("number, expected", [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_nouns_agree_with_their_number(number, expected):
    assert options.counted(number, "file") == expected


@pytest.mark.parametrize("task", options.SUPERB_CORPORA)
def test_corpora_check_of_nothing(tmp_path, capsys, task):
    assert main(["corpora", "check", task, str(tmp_path / "nowhere")]) == 1
    assert "Problem: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["pretrain", "--help"], ["nonsense"], ["probe", "--frames", "0", "set"],
    *(["corpora", "check", task, "nowhere"] for task in options.SUPERB_CORPORA), ["submit", "--out", "nowhere"],
    ["manifest", "nowhere", "--out", "m.jsonl"],
], ids=" ".join)
def test_what_answers_without_torch(tmp_path, arguments):
    code = """
import sys
try:
    from ssamba_upstream.cli import main
    main(sys.argv[1:])
finally:
    assert "ssamba_upstream" in sys.modules and not {"torch", "torchaudio", "transformers"} & {*sys.modules}
    print("answered")
"""
    (tmp_path / "ssamba").write_text(code)
    run = subprocess.run([sys.executable, "ssamba", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.endswith("answered\n"), run.stderr
    assert len(run.stdout + run.stderr) > (20 if arguments == ["--version"] else 50)


@pytest.mark.slow
def test_the_command_has_the_models_when_they_are_asked_for(tmp_path):
    code = """
import sys, ssamba_upstream
assert "torch" not in sys.modules
ssamba_upstream.SsambaModel(ssamba_upstream.SsambaConfig(num_hidden_layers=2))
assert ssamba_upstream.FrameEncoder.from_checkpoint("ssamba_starter", ssamba_upstream.UpstreamOptions())
assert "s3prl" not in sys.modules
ssamba_upstream.no_such_name
"""
    (tmp_path / "ssamba").write_text(code)
    run = subprocess.run([sys.executable, "ssamba"], cwd=tmp_path, capture_output=True, text=True)
    assert "module 'ssamba_upstream' has no attribute 'no_such_name'" in run.stderr


@pytest.mark.slow
def test_importing_the_package_tells_transformers_and_does_not_import_s3prl(tmp_path):
    check = """
import sys
import ssamba_upstream, ssamba_upstream.cli
from transformers import AutoConfig, AutoModel
assert type(AutoModel.from_config(AutoConfig.for_model("ssamba", num_hidden_layers=1))).__name__ == "SsambaModel"
sys.exit("s3prl" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_the_choices_of_arguments_are_those_of_the_package():
    assert options.SIZES == tuple(HIDDEN_SIZES)
    assert corpora.DATA_SETS == tuple(SETS)


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for name in ("pretraining.trainer", "training.loop", "training.log"):
        monkeypatch.delitem(sys.modules, f"ssamba_upstream.{name}", raising=False)
    assert main(["pretrain", "smoke", "--out", str(tmp_path / "run")]) == 1
    assert "tensorboardX" in (error := capsys.readouterr().err)
    assert "ssamba-upstream[pretraining]'" in error and "onnx" not in error
