"""Pretraining runs with a teacher, and the alignment of the teacher's frames with the student's columns."""

import itertools
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from helpers.runs import logged, torchrun
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import CheckpointError, load_model, save_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.manifest import write_manifest
from ssamba_upstream.network.pretraining import SsambaForPreTraining
from ssamba_upstream.plugin.teachers import S3prlTeacher
from ssamba_upstream.pretraining import trainer
from ssamba_upstream.pretraining.batches import training_batches, validation_batches
from ssamba_upstream.pretraining.distillation import Student, Targets, distillation_loss, interpolate
from ssamba_upstream.pretraining.recipe import PretrainingRecipe
from ssamba_upstream.pretraining.teachers import Teacher, TeacherError, TransformersTeacher, load_teacher
from ssamba_upstream.pretraining.trainer import pretrain
from ssamba_upstream.store import contents
from ssamba_upstream.training.batches import Batch
from ssamba_upstream.training.distributed import Processes
from ssamba_upstream.training.loop import Run
from ssamba_upstream.training.recipe import RecipeError
from ssamba_upstream.training.training_state import load_training_state, training_states

NO_OTHER_LOSS = {"contrastive_weight": 0.0, "reconstruction_weight": 0.0}
NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 64, "patch_size": [32, 8]}


class Clock(Teacher):
    """A teacher whose frames are the times of their centres in seconds; it records its input."""

    name, license = "a clock", "cc0-1.0"
    hop, centre = 320, 200
    heard = []

    def __init__(self, model="", device="cpu"):
        self.heard.clear()

    def description(self):
        return {"upstream": "clock", "weights": "0" * 64}

    def hidden_states(self, wav):
        self.heard.append(wav.numpy().tobytes())
        times = (self.centre + self.hop * torch.arange(-(-len(wav) // self.hop))) / 16000
        return torch.stack([torch.stack([times, -times, times + 1], dim=1) * (layer + 1) for layer in range(2)])


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Eight recordings of noise, 0.2 to 1.5 s long, and their manifest; clips are 0.655 s long."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", 0.1 * random.standard_normal(int(16000 * (0.2 + 0.19 * i))), 16000)
    write_manifest([folder], folder / "all.jsonl")
    return folder


@pytest.fixture
def recipe(audio, monkeypatch):
    monkeypatch.setattr(trainer, "CLIPS_OF_STATISTICS", 8)

    def build(model=None, **changes):
        fields = {
            "train": str(audio / "all.jsonl"), "validation": str(audio / "all.jsonl"), "steps": 4, "batch_size": 4,
            "warmup_steps": 2, "learning_rate": 1e-3, "validate_every": 2, "save_every": 2, "log_every": 1,
            "workers": 0, "join_short": True, "teacher": "clock",
            "model": {**NETWORK, **NO_OTHER_LOSS, **(model or {})},
        }
        return PretrainingRecipe(**{**fields, **changes})

    return build


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    """The folder of a tiny wav2vec 2.0 with random weights."""
    folder = tmp_path_factory.mktemp("wav2vec2") / "model"
    torch.manual_seed(0)
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                            conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A tiny model\n")
    return folder


@pytest.fixture(scope="module")
def ssamba(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssamba") / "model"
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(**NETWORK)), folder)
    return folder


FORMS = [[64, 8], [16, 8], [32, 2]]
KINDS = {"clock": Clock, "s3prl": S3prlTeacher}


def train(recipe, out, **options):
    return pretrain(recipe, out, device="cpu", teachers=KINDS, **options)


def last_state(out):
    return load_training_state(out / "states")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("teacher, changes", [
    ("transformers:{wav2vec2}", {"teacher_layers": [1, -1], "augmentation": ["mixing", "noise", "gain"]}),
    ("transformers:{wav2vec2}", {"teacher_input": "masked", "ema_decay": 0.5, "accumulation": 2}),
    ("s3prl:ssamba_local:{ssamba}", {"student_layer": 1, "model": {"contrastive_weight": 0.5}}),
    ("transformers:{wav2vec2}", {"clip_forms": FORMS, "first_form_share": 0.5, "checkpoint": "{ssamba}"}),
    ("s3prl:fbank", {"objective": "two_pass", "teacher_input": "masked", "model": {"reconstruction_weight": 1.0}}),
])
def test_resumed_runs_are_uninterrupted_runs_bit_for_bit(tmp_path, recipe, wav2vec2, ssamba, teacher, changes):
    changes = {name: value.format(ssamba=ssamba) if name == "checkpoint" else value for name, value in changes.items()}
    chosen = recipe(teacher=teacher.format(wav2vec2=wav2vec2, ssamba=ssamba), **changes)
    train(chosen, tmp_path / "whole")
    train(replace(chosen, steps=3), tmp_path / "parts")
    training_states(tmp_path / "parts" / "states")[0].unlink()  # as if killed during step 3
    assert train(chosen, tmp_path / "parts", resume=True)
    whole, parts = (last_state(tmp_path / run) for run in ("whole", "parts"))
    assert_equal(parts["model"], whole["model"])
    assert_equal(parts["targets"], whole["targets"])
    names = ["loss", "distillation_loss", "teacher_similarity"]
    for kind in ("training", "validation"):
        assert logged(tmp_path / "parts", *names, kind=kind) == logged(tmp_path / "whole", *names, kind=kind)
    assert np.isfinite(logged(tmp_path / "whole", *names)).all()


@pytest.mark.slow
@pytest.mark.parametrize("share, turns", [(0, [0, 1, 2, 0, 1]), (0.4, [0, 0, 2, 0, 1]), (1, [0, 0, 0, 0, 0])])
def test_the_run_begins_with_the_first_form_and_then_takes_all_in_turn(tmp_path, recipe, monkeypatch, share, turns):
    seen, losses = [], trainer._Pretraining._losses

    def noted(self, network, fbank, generator, targets):
        if self.model.training:
            seen.append((*fbank.shape[:2], targets["time_stride"]))
        return losses(self, network, fbank, generator, targets)

    monkeypatch.setattr(trainer._Pretraining, "_losses", noted)
    train(recipe(steps=5, clip_forms=FORMS, first_form_share=share), tmp_path)
    forms = [(4, 64, 8), (16, 16, 8), (2, 32, 2)]  # clips, frames, distance between patches; equally many tokens
    assert seen == [forms[turn] for turn in turns]


@pytest.mark.slow
def test_the_best_network_is_chosen_at_all_distances_between_patches(tmp_path, recipe, monkeypatch):
    similarities, counts, losses = {}, [], trainer._Pretraining._losses

    def noted(self, network, fbank, generator, targets):
        output = losses(self, network, fbank, generator, targets)
        if not self.model.training:
            counts.append(len(fbank))
            similarities.setdefault(targets["time_stride"], []).append(output["teacher_similarity"].item() * len(fbank))
        return output

    monkeypatch.setattr(trainer._Pretraining, "_losses", noted)
    train(recipe(steps=1, validate_every=2, clip_forms=FORMS), tmp_path)
    (_, began), (_, ended) = logged(tmp_path, "teacher_similarity", kind="validation")
    assert similarities.keys() == {2, 8}
    assert (began + ended) / 2 == pytest.approx(sum(map(sum, similarities.values())) / sum(counts), abs=1e-6)


@pytest.mark.slow
def test_it_learns_what_the_teacher_says(tmp_path, recipe):
    train(recipe(steps=25, learning_rate=1e-2, validate_every=25, join_short=False), tmp_path)
    began, *_, ended = [loss for _, loss in logged(tmp_path, "distillation_loss", kind="validation")]
    assert ended < 0.6 * began


@pytest.mark.slow
def test_the_teacher_hears_each_piece_once(tmp_path, recipe):
    chosen = recipe(steps=12)
    train(chosen, tmp_path / "run")
    (kept,) = contents(tmp_path / "run" / "teacher")
    assert len(Clock.heard) == kept.waveforms + 1  # and one second of silence, to find the teacher's width
    assert len(set(Clock.heard)) == len(Clock.heard)
    train(replace(chosen, teacher_outputs=str(tmp_path / "run" / "teacher")), tmp_path / "other")
    assert len(Clock.heard) == 1
    assert_equal(last_state(tmp_path / "other")["model"], last_state(tmp_path / "run")["model"])


@pytest.mark.slow
def test_the_head_is_thrown_away_and_the_teacher_is_named(tmp_path, recipe, capsys):
    train(recipe(steps=1), tmp_path)
    assert last_state(tmp_path)["model"]["head.weight"].shape == (3, 32)
    encoder = load_model(tmp_path / "best")
    stored = last_state(tmp_path)["model"]
    assert all(torch.equal(tensor, stored[f"network.ssamba.{name}"]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match="holds the encoder alone"):  # the other heads have learned nothing
        load_model(tmp_path / "last", model_class=SsambaForPreTraining)
    assert "a clock (cc0-1.0)" in " ".join((tmp_path / "last" / "README.md").read_text().split())
    assert "16 kHz, unmasked." in " ".join((tmp_path / "last" / "README.md").read_text().split())
    assert main(["convert", str(tmp_path / "last"), "--out", str(tmp_path / "one.ckpt")]) == 0
    for checkpoint in ("last", "one.ckpt"):
        assert main(["info", str(tmp_path / checkpoint)]) == 0
        assert "teacher        a clock (cc0-1.0)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_self_supervised_student_keeps_its_heads(tmp_path, recipe):
    train(recipe(steps=1, model={"contrastive_weight": 1.0}), tmp_path)
    stored = load_model(tmp_path / "last", model_class=SsambaForPreTraining).state_dict()
    assert not any(name.startswith("head.") for name in stored)
    assert logged(tmp_path, "contrastive_loss", "distillation_loss")


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["teacher alone", "all losses"])
def test_a_causal_student_learns_too(tmp_path, recipe, weight):
    causal = {"token_order": "time_major", "directions": "forward"}
    train(recipe(steps=2, model={**causal, "contrastive_weight": weight, "reconstruction_weight": weight}), tmp_path)
    assert load_model(tmp_path / "last").config.causal


@pytest.mark.slow
def test_masks_are_drawn_for_losses_that_need_them(tmp_path, recipe, monkeypatch):
    def no_mask(*arguments):
        raise AssertionError

    monkeypatch.setattr(trainer, "cluster_mask", no_mask)
    assert train(recipe(steps=1), tmp_path / "whole")
    with pytest.raises(AssertionError):
        train(recipe(steps=1, teacher_input="masked"), tmp_path / "masked")


def test_another_teacher_is_refused_on_resume(tmp_path, recipe, monkeypatch):
    train(recipe(steps=1), tmp_path)
    monkeypatch.setattr(Clock, "description", lambda self: {"upstream": "clock", "weights": "1" * 64})
    with pytest.raises(RecipeError, match="started with teacher"):
        train(recipe(steps=2), tmp_path, resume=True)


@pytest.mark.slow
def test_the_teacher_hears_clean_clips_and_the_student_what_the_step_draws(tmp_path, recipe, monkeypatch):
    read, read_by_step, heard = [], [], []
    step = Run.step

    def noted(self, *arguments):
        read.clear()
        report = step(self, *arguments)
        read_by_step[-1].append(read[0])
        return report

    fbank = trainer._Pretraining._fbank
    monkeypatch.setattr(trainer._Pretraining, "_fbank",
                        lambda self, batch: read.append(fbank(self, batch)) or read[-1])
    monkeypatch.setattr(Run, "step", noted)
    for name, changes in (("one", ["noise"]), ("two", ["noise"]), ("clean", None)):
        read_by_step.append([])
        train(recipe(steps=2, augmentation=changes), tmp_path / name)
        heard.append(list(Clock.heard))
    one, two, clean = map(torch.stack, read_by_step)
    assert torch.equal(one, two) and not torch.equal(one, clean)
    assert not torch.equal(one[0] - clean[0], one[1] - clean[1])
    assert heard[0] == heard[1] == heard[2]


def batch_of(*clips, samples=10480):
    return Batch.joined([[0.1 * torch.randn(length) for length in clip] for clip in clips], samples, [],
                        keep_pieces=True)


def targets_of(tmp_path, layers=(0,), **config):
    targets = Targets(Clock().measure(), [*layers], SsambaConfig(**{**NETWORK, **config}), tmp_path)
    targets.mean, targets.deviation = torch.zeros(targets.shape), torch.ones(targets.shape)
    return targets


@pytest.mark.parametrize("rate", [16000, 8000])
def test_targets_are_the_teacher_s_at_the_centres_of_columns(tmp_path, rate):
    """A column of 8 fbank frames covers 70 + 25 ms; the clock restarts in each piece."""
    targets = targets_of(tmp_path, sampling_rate=rate, highest_frequency=None)
    clips = [4000 * rate // 16000, 9000 * rate // 16000], [3000 * rate // 16000]
    found, counted = targets(batch_of(*clips, samples=10480 * rate // 16000), 8)
    centres = torch.arange(8) * 0.08 + 0.0475
    expected = torch.where(centres < 0.25, centres, centres - 0.25)
    torch.testing.assert_close(found[0, :, 0, 0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0, :, 0, 1], -expected, atol=1e-3, rtol=0)
    assert counted[0].all() and counted[1].tolist() == [True] * 2 + [False] * 6  # of 3000 samples, 0.1875 s
    torch.testing.assert_close(found[1, :2, 0, 0], centres[:2], atol=1e-3, rtol=0)


def test_layers_are_chosen_and_missing_ones_refused(tmp_path):
    batch = batch_of([10480])
    both, one = (targets_of(tmp_path, layers)(batch, 8)[0] for layers in ([0, -1], [1]))
    torch.testing.assert_close(both[:, :, 1], 2 * both[:, :, 0], atol=2e-3, rtol=0)
    assert torch.equal(one[:, :, 0], both[:, :, 1])
    with pytest.raises(TeacherError, match="has no hidden state 2. Its 2 hidden states are numbered from 0"):
        targets_of(tmp_path, [2])


def test_a_shorter_clip_has_the_first_columns_and_columns_may_overlap(tmp_path):
    targets, batch = targets_of(tmp_path), batch_of([10480])
    short = replace(batch, waveforms=batch.waveforms[:, :2800], lengths=torch.tensor([2800]))  # 16 log-mel frames
    whole, (found, counted), (overlapping, _) = targets(batch, 8)[0], targets(short, 8), targets(batch, 2)
    assert torch.equal(found, whole[:, :2]) and counted.all()
    assert overlapping.shape[1] == 29 and torch.equal(overlapping[:, ::4], whole)


def test_a_clip_that_ends_within_its_first_column_has_a_target(tmp_path):
    found, counted = targets_of(tmp_path)(batch_of([100]), 8)
    assert counted.sum() == 1 and counted[0, 0]


def test_between_frames_values_are_linear_and_outside_they_repeat():
    frames = torch.tensor([[0.0, 1.0], [10.0, 3.0], [20.0, 2.0]])
    places = torch.tensor([-1.0, 0.0, 0.25, 1.5, 2.0, 7.0], dtype=torch.float64)
    expected = [[0, 1], [0, 1], [2.5, 1.5], [15, 2.5], [20, 2], [20, 2]]
    assert interpolate(frames, places).tolist() == expected
    assert interpolate(frames[:1], places).tolist() == [[0, 1]] * 6


def test_targets_are_standardised_by_what_was_measured(tmp_path):
    targets = targets_of(tmp_path)
    batches = [batch_of([10480], [9000]), batch_of([10480, 400], [700, 300])]
    targets.measure(batches, Processes(0, 1, torch.device("cpu")))
    found = torch.cat([values[counted] for values, counted in (targets(batch, 8) for batch in batches)])
    torch.testing.assert_close(found.mean(0), torch.zeros(1, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(1, 3), atol=1e-4, rtol=0)


def test_the_loss_is_that_of_the_definition():
    predictions, targets = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 5)
    counted = torch.tensor([[True, True, False], [True, False, False]])
    loss, similarity = distillation_loss(predictions, targets, counted)
    cosines = [torch.cosine_similarity(predictions[i, j, k], targets[i, j, k], dim=0)
               for i, j in counted.nonzero().tolist() for k in range(2)]
    errors = (predictions - targets)[counted].square()
    assert similarity.item() == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)
    assert loss.item() == pytest.approx(errors.mean().item() + 1 - torch.stack(cosines).mean().item(), abs=1e-6)


def test_every_parameter_that_learns_has_a_gradient(recipe):
    """Otherwise DistributedDataParallel would wait for the missing gradients."""
    for changes, masks in (({}, 0), ({"teacher_input": "masked"}, 1),
                           ({"student_layer": 1, "model": {"contrastive_weight": 1.0}}, 1),
                           ({"teacher_input": "masked", "model": {"reconstruction_weight": 1.0}}, 1)):
        chosen = recipe(**changes)
        student = Student(SsambaForPreTraining(chosen.config()), chosen, (1, 3))
        mask = torch.zeros(2, 32, dtype=torch.bool)
        mask[:, :9] = True
        output = student(torch.randn(2, 64, 128), *[mask] * masks, targets=torch.randn(2, 8, 1, 3),
                         counted=torch.ones(2, 8, dtype=torch.bool), time_stride=8)
        output["loss"].backward()
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in student.parameters())
        assert chosen.masks == masks


def test_pieces_are_whole_and_come_again(audio):
    """A recording of 1.5 s has crops at four places for each length, however often it is drawn."""
    manifest = str(audio / "all.jsonl")
    options = {"join_short": True, "keep_pieces": True}
    plain = training_batches([manifest], [(4, 10480)], 0)
    assert next(plain).pieces is None
    batches = training_batches([manifest], [(4, 10480)], 0, **options)
    keys, lengths = set(), set()
    for _ in range(40):
        batch = next(batches)
        pieces = iter(batch.pieces.split([length for clip in batch.piece_lengths for length in clip]))
        for clip, waveform in zip(batch.piece_lengths, batch.waveforms):
            found = [next(pieces) for _ in clip]
            assert torch.equal(torch.cat(found)[:10480], waveform)
            keys |= {piece.numpy().tobytes() for piece in found}
            lengths |= {len(piece) for piece in found}
    assert len(keys) < 30 and lengths == {int(16000 * (0.2 + 0.19 * i)) for i in range(3)} | {10480}
    validation = list(validation_batches([manifest], 4, 10480, **options))
    assert [len(batch.piece_lengths) for batch in validation] == [len(batch.lengths) for batch in validation]


def test_pieces_of_shards_are_whole_and_go_on(tmp_path, audio):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(audio.glob("*.wav")):
            tar.add(file, file.name)
    options = {"join_short": True, "keep_pieces": True}
    batches = list(itertools.islice(training_batches([tmp_path / "a.tar"], [(2, 10480)], 0, **options), 4))
    for batch in batches:
        assert batch.pieces.numel() == sum(map(sum, batch.piece_lengths)) >= batch.lengths.sum()
    later = next(training_batches([tmp_path / "a.tar"], [(2, 10480)], 0, batches[2].position, **options))
    assert torch.equal(later.pieces, batches[3].pieces) and later.piece_lengths == batches[3].piece_lengths


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path, recipe, wav2vec2, monkeypatch):
    monkeypatch.undo()  # separate processes measure the statistics on the usual number of clips
    chosen = recipe(teacher=f"transformers:{wav2vec2}", steps=3, teacher_outputs=str(tmp_path / "outputs"))
    train(chosen, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(chosen.to_dict()))
    torchrun("pretrain", tmp_path / "recipe.yaml", "--out", tmp_path / "two")
    names = ["loss", "distillation_loss", "teacher_similarity", "gradient_norm"]
    found, expected = (logged(tmp_path / run, *names) for run in ("two", "one"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, tensor in last_state(tmp_path / "one")["targets"].items():
        torch.testing.assert_close(last_state(tmp_path / "two")["targets"][name], tensor)


def test_a_model_of_transformers_frames_by_its_convolutions(wav2vec2):
    teacher = TransformersTeacher(str(wav2vec2), "cpu").measure()
    assert (teacher.hop, teacher.centre, teacher.layers, teacher.width) == (320, 200, 3, 16)
    assert teacher.credit == "model (mit)"
    wavs = [0.1 * torch.randn(8000), 0.1 * torch.randn(100)]
    states = teacher(wavs)
    assert [tuple(found.shape) for found in states] == [(3, 24, 16), (3, 4, 16)]
    inputs = Wav2Vec2FeatureExtractor()(wavs[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = Wav2Vec2Model.from_pretrained(wav2vec2).eval()(inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[0], torch.cat(expected))


def test_an_upstream_of_s3prl_gives_what_it_gives_there(ssamba):
    from ssamba_upstream.plugin.expert import UpstreamExpert

    teacher = S3prlTeacher(f"ssamba_local:{ssamba}", "cpu").measure()
    wav = 0.1 * torch.randn(16000)
    expected = UpstreamExpert(str(ssamba))([wav])["hidden_states"]
    torch.testing.assert_close(teacher([wav])[0], torch.cat(expected))
    with pytest.raises(TeacherError, match="s3prl has no upstream 'nothing'"):
        S3prlTeacher("nothing", "cpu")


def test_what_is_no_teacher_is_refused(tmp_path, ssamba, monkeypatch):
    with pytest.raises(TeacherError, match="'parrot' is not a kind of teacher. Use one of clock, google_speech_emb"):
        load_teacher("parrot:polly", "cpu", KINDS)
    with pytest.raises(TeacherError, match="is a ssamba, whose hidden states may not be frames"):
        load_teacher(f"transformers:{ssamba}", "cpu")
    with pytest.raises(TeacherError, match="Write transformers:NAME"):
        load_teacher("transformers", "cpu")
    monkeypatch.setattr(Clock, "hop", 160)
    monkeypatch.setattr(Clock, "hidden_states", lambda self, wav: torch.zeros(1, 12, 3))
    with pytest.raises(TeacherError, match="gives 12 frames for a second, but its hop is 160 samples"):
        load_teacher("clock", "cpu", KINDS)


def test_a_missing_extra_is_named(recipe, tmp_path, capsys, audio, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopen_wakeword", None)
    manifest = str(audio / "all.jsonl")
    status = main(["pretrain", "distilled", "--out", str(tmp_path / "run"), "--set", f"train={manifest}",
                   f"validation={manifest}"])
    assert status == 1 and "pip install 'ssamba-upstream[distillation]'" in capsys.readouterr().err


def test_google_s_embedding_centres_its_windows(tmp_path):
    """A click changes exactly the frames whose window contains it. Whole waveforms give the same frames as windows."""
    pytest.importorskip("pyopen_wakeword")
    teacher = load_teacher("google_speech_embedding", "cpu")
    assert (teacher.layers, teacher.width) == (1, 96)
    wav = 0.05 * torch.randn(41200)
    states, = teacher([wav])
    assert states.shape == (1, 33, 96)
    clicked = wav.clone()
    clicked[20480] += 0.9
    changed = ((teacher([clicked])[0] - states).abs().amax(2) > 1e-3)[0].nonzero().flatten()
    centre = (changed * teacher.hop + teacher.centre).double().mean().item()
    assert centre == pytest.approx(20480, abs=teacher.hop / 2) and len(changed) == pytest.approx(9.7, abs=1.5)
    later, = teacher([wav[12800:]])  # ten frames later; only frames whose windows are complete
    torch.testing.assert_close(states[0, 15:28], later[0, 5:18], atol=1e-3, rtol=0)
    assert states.isfinite().all() and teacher.license == "apache-2.0"


@pytest.mark.parametrize("changes, message", [
    ({"teacher": None}, "there is no loss"),
    ({"student_layer": 3}, "student_layer must be a whole number from 1 to 2; got 3"),
    ({"student_layer": 1}, "student_layer 1 leaves the blocks above it without a loss"),
    ({"teacher_layers": []}, r"teacher_layers must be a list of whole numbers"),
    ({"distillation_weight": 0}, "distillation_weight must be a number above 0"),
    ({"augmentation": ["echo"]}, "augmentation must be a list of mixing"),
    ({"teacher_input": "half"}, "teacher_input must be one of whole, masked"),
    ({"clip_forms": [[64, 8], [20, 8]]}, r"clip_forms must be a list of pairs such as \[64, 8\]"),
    ({"first_form_share": 1.5}, "first_form_share must be a number from 0 to 1; got 1.5"),
    ({"clip_forms": [[64, 9]]}, "and a stride up to 8, the width of a patch"),
    ({"clip_forms": [[64, 2]], "teacher_input": "masked"}, "masked_patches belongs to one form"),
])
def test_recipes_that_cannot_be_followed(recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_whisper_s_encoder_is_heard_without_its_padding(tmp_path):
    config = WhisperConfig(d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                           decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=8,
                           pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    WhisperModel(config).save_pretrained(tmp_path)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    teacher = load_teacher(f"transformers:{tmp_path}", "cpu")
    assert (teacher.hop, teacher.centre, teacher.layers, teacher.width) == (320, 160, 3, 16)
    assert teacher([torch.randn(8000)])[0].shape == (3, 25, 16) and teacher.license is None
