"""s3prl's interface: the expert itself, S3PRLUpstream and the old Featurizer."""

import math
from pathlib import Path

import pytest
import torch

import ssamba_upstream
from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import CheckpointError, save_model
from ssamba_upstream.downloads import BUNDLED
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.plugin.hubconf import ENTRIES

DEPTH, WIDTH = 4, 32
SHORT_NAMES = CHECKOUT / "upstream_configs"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "reduced.safetensors"
    save_model(SsambaModel(SsambaConfig(hidden_size=WIDTH, num_hidden_layers=DEPTH, block_order="paired")), path)
    return path


@pytest.fixture(scope="module")
def expert(checkpoint):
    return UpstreamExpert(checkpoint).eval()


@pytest.fixture(scope="module")
def s3prl_upstream(checkpoint):
    ssamba_upstream.register()
    from s3prl.nn import S3PRLUpstream

    return S3PRLUpstream("ssamba_local", path_or_url=str(checkpoint))


@torch.no_grad()
def hidden_states(expert, *wavs):
    return expert(list(wavs))["hidden_states"]


LENGTHS = [*range(1, 20000, 777), 399, 400, 799, 800, 1600, 1601, 16000, 159999, 160000, 160001, 400000]


@pytest.mark.parametrize("options", [{}, {"time_stride": 2, "window_secs": 2.0}, {"frequency_pooling": "mean"},
                                     {"padding": "published", "positions": "published", "window_secs": 1.0}])
def test_frames_are_ceil_of_samples_over_hop(checkpoint, options):
    expert = UpstreamExpert(checkpoint, **options).eval()
    hop = expert.get_downsample_rates("hidden_states")
    width = WIDTH if "frequency_pooling" in options else 12 * WIDTH
    for samples in LENGTHS if hop == 1600 else LENGTHS[:-4]:
        states = hidden_states(expert, torch.randn(samples))
        assert len(states) == DEPTH + 1
        assert {state.shape for state in states} == {(1, math.ceil(samples / hop), width)}, samples


def test_a_causal_checkpoint(tmp_path):
    causal = {"token_order": "time_major", "directions": "forward", "patch_size": [128, 8]}
    save_model(SsambaModel(SsambaConfig(hidden_size=WIDTH, num_hidden_layers=DEPTH, **causal)), tmp_path / "causal")
    expert = UpstreamExpert(tmp_path / "causal").eval()
    wav = torch.randn(20 * 16000) * 0.1
    states, start = hidden_states(expert, wav), hidden_states(expert, wav[:16000])
    assert len(states) == DEPTH + 1 and states[0].shape == (1, 250, WIDTH)
    for state, earlier in zip(states, start):
        torch.testing.assert_close(earlier[:, :11], state[:, :11], rtol=1e-5, atol=1e-5)
    expert(list(wav[None]))["hidden_states"][-1].sum().backward()


@pytest.mark.parametrize("options", [{}, {"padding": "published", "positions": "published", "window_secs": 1.0},
                                     {"window_secs": 0.5, "time_stride": 4}])
def test_an_utterance_alone_is_the_same_in_any_batch(checkpoint, options, speech):
    expert = UpstreamExpert(checkpoint, **options).eval()
    wavs = [*speech[:5], torch.randn(40000) * 0.1, torch.randn(1), torch.cat(speech), torch.randn(800)]
    together = hidden_states(expert, *wavs)
    for i, wav in enumerate(wavs):
        for layer, alone in enumerate(hidden_states(expert, wav)):
            frames = alone.shape[1]
            torch.testing.assert_close(together[layer][i, :frames], alone[0], rtol=0, atol=1e-5)
            assert not together[layer][i, frames:].any()


def test_hidden_states_are_those_of_the_network(expert):
    """In one window, frame t of layer l is column t of the network's hidden state, lowest band first."""
    wav = torch.randn(16000)
    (features,) = expert.log_mel([wav])
    features = torch.nn.functional.pad(features, (0, 0, 0, 106 - len(features)))
    with torch.no_grad():
        output = expert.model(features[None], output_hidden_states=True)
        found = expert([wav])
    for state, tokens in zip(found["hidden_states"], output.hidden_states, strict=True):
        torch.testing.assert_close(state[0, 3, WIDTH : 2 * WIDTH], tokens[0, 1 + 1 * 10 + 3])
    torch.testing.assert_close(found["last_hidden_state"][0, 9, -WIDTH:], output.last_hidden_state[0, -1])


def test_published_windows_as_the_published_code_computes_them(checkpoint, speech):
    from torchaudio.compliance import kaldi

    expert = UpstreamExpert(checkpoint, window_secs=1.0, padding="published", positions="published").eval()
    wav = torch.cat(speech)[:38000]
    frames = []
    for part in torch.nn.functional.pad(wav, (0, 10000)).split(16000):
        fbank = kaldi.fbank(part[None], htk_compat=True, sample_frequency=16000, use_energy=False, dither=0.0,
                            window_type="hanning", num_mel_bins=128, frame_shift=10)
        fbank = torch.nn.functional.pad((fbank + 4.2677393) / (4.5689974 * 2), (0, 0, 0, 2))
        with torch.no_grad():
            state = expert.model(fbank[None], output_hidden_states=True).hidden_states[3]
        frames.append(state[0, 1:].view(12, 9, WIDTH).permute(1, 0, 2).reshape(9, 12 * WIDTH))
    found = hidden_states(expert, wav)[3]
    torch.testing.assert_close(found[0], torch.cat(frames)[:24], rtol=1e-4, atol=1e-5)


def test_long_recordings_go_through_in_groups(checkpoint, monkeypatch):
    expert, wav = UpstreamExpert(checkpoint, window_secs=1.0).eval(), torch.randn(160000)
    whole = hidden_states(expert, wav)
    seen = []
    monkeypatch.setattr("ssamba_upstream.windows.TOKENS_AT_ONCE", 400)
    expert.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for part, expected in zip(hidden_states(expert, wav), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)
    assert seen == [3, 3, 3, 1]


def test_train_and_eval_mode_agree(tmp_path):
    config = SsambaConfig(hidden_size=WIDTH, num_hidden_layers=DEPTH, drop_path_rate=0.5)
    save_model(SsambaModel(config), tmp_path / "model.ckpt")
    expert, wavs = UpstreamExpert(tmp_path / "model.ckpt"), [torch.randn(16000), torch.randn(3000)]
    training = hidden_states(expert.train(), *wavs)
    for trained, evaluated in zip(training, hidden_states(expert.eval(), *wavs), strict=True):
        assert torch.equal(trained, evaluated)


def test_gradients_flow_to_every_parameter_that_asks_for_one(checkpoint):
    expert = UpstreamExpert(checkpoint).train()
    wavs = [torch.randn(20000, requires_grad=True), torch.randn(800)]
    with torch.autograd.detect_anomaly(check_nan=True):
        torch.stack(expert(wavs)["hidden_states"]).square().mean().backward()
    assert wavs[0].grad.any()
    for name, parameter in expert.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert "norm_f" in name or parameter.grad.any(), name


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision(checkpoint, expert, precision):
    wav = torch.randn(16000)
    exact, rounded = hidden_states(expert, wav), hidden_states(UpstreamExpert(checkpoint, precision=precision), wav)
    for expected, found in zip(exact, rounded, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_s3prl_upstream(s3prl_upstream):
    """The checks that s3prl's own test makes of every upstream."""
    from s3prl.nn import Featurizer

    upstream = s3prl_upstream
    assert (upstream.num_layers, set(upstream.downsample_rates), set(upstream.hidden_sizes)) == (
        DEPTH + 1, {1600}, {12 * WIDTH}
    )
    lengths = torch.LongTensor([800, 16000, 35000, 160001])
    wavs = torch.randn(4, 160001)
    for mode in (upstream.eval, upstream.train):
        mode()
        states, state_lengths = upstream(wavs, lengths)
        assert len(states) == DEPTH + 1
        for state, state_length in zip(states, state_lengths):
            assert state.shape[1] == 101 and state_length.tolist() == [1, 10, 22, 101]
    featurizer = Featurizer(upstream)
    output, output_length = featurizer(states, state_lengths)
    with torch.autograd.detect_anomaly():
        output.mean().backward()
    assert output.shape == (4, 101, 12 * WIDTH) and featurizer.weights.grad is not None


def test_inputs_shorter_than_s3prl_s_shortest(s3prl_upstream):
    states, lengths = s3prl_upstream(torch.randn(2, 300), torch.LongTensor([300, 20]))
    assert states[0].shape[1] == 1 and lengths[0].tolist() == [1, 1]


def test_old_featurizer(expert):
    from s3prl.upstream.interfaces import Featurizer

    featurizer = Featurizer(expert, upstream_device="cpu")
    assert (featurizer.output_dim, featurizer.downsample_rate, featurizer.layer_num) == (12 * WIDTH, 1600, DEPTH + 1)
    for samples in (800, 2400, 16000, 160799, 250000):
        wavs = [torch.randn(samples), torch.randn(800)]
        features = featurizer(wavs, expert(wavs))
        # The old Featurizer rounds to the nearest frame: from half a hop on, it expects the frame that exists.
        assert len(features[0]) in (round(samples / 1600), math.ceil(samples / 1600))


def test_every_entry_is_registered():
    ssamba_upstream.register()
    from s3prl import hub
    from s3prl.nn import S3PRLUpstream

    names = [f"ssamba_{size}{masked}" for size in ("tiny", "small", "base") for masked in ("", "_250", "_300", "_400")]
    assert sorted(ENTRIES) == sorted([*names, *BUNDLED, "ssamba_local", "ssamba_url", "ssamba_hub"])
    assert set(ENTRIES) <= set(S3PRLUpstream.available_names()) and all(hasattr(hub, name) for name in ENTRIES)


def test_published_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(tmp_path))
    config = SsambaConfig.from_size("tiny", num_hidden_layers=2)
    save_model(SsambaModel(config), tmp_path / "ssamba_tiny_400.ckpt")
    for name in ("ssamba_tiny", "ssamba_tiny_400"):
        assert len(hidden_states(ENTRIES[name](), torch.randn(800))) == 3
    given = ENTRIES["ssamba_tiny_250"](ckpt=str(tmp_path / "ssamba_tiny_400.ckpt"), model_config=None, refresh=False)
    assert given.model.config.size == "tiny"
    with pytest.raises(CheckpointError, match="is tiny, but -u ssamba_base requires base. Use -u ssamba_local"):
        ENTRIES["ssamba_base"](ckpt=str(tmp_path / "ssamba_tiny_400.ckpt"))
    monkeypatch.setattr("ssamba_upstream.downloads.download_url", lambda url, refresh: tmp_path / Path(url).name)
    assert ENTRIES["ssamba_url"](ckpt="https://somewhere/ssamba_tiny_400.ckpt").model.config.size == "tiny"


@pytest.mark.parametrize("name, message", [("ssamba_local", "Give its path with -k"), ("ssamba_url", "the URL of"),
                                           ("ssamba_hub", "name of a repository")])
def test_entries_that_need_a_checkpoint(name, message):
    with pytest.raises(ValueError, match=message):
        ENTRIES[name]()


def test_hub_entry(tmp_path, monkeypatch):
    save_model(SsambaModel(SsambaConfig(hidden_size=WIDTH, num_hidden_layers=2)), tmp_path / "folder")
    monkeypatch.setattr("ssamba_upstream.downloads.snapshot_download", lambda *a, **k: str(tmp_path / "folder"))
    assert ENTRIES["ssamba_hub"](ckpt="me/ssamba").model.config.hidden_size == WIDTH


@pytest.mark.parametrize("file", sorted(SHORT_NAMES.glob("*.yaml")), ids=lambda file: file.stem)
def test_upstream_configurations(checkpoint, file):
    expert = UpstreamExpert(str(checkpoint), str(file)).eval()
    assert hidden_states(expert, torch.randn(16000))[0].shape[1] == 16000 // expert.get_downsample_rates()


def test_options_from_file_and_by_name(checkpoint, tmp_path):
    (tmp_path / "options.yaml").write_text("window_secs: 2.0\ntime_stride: 5\n")
    expert = UpstreamExpert(checkpoint, tmp_path / "options.yaml", time_stride=4)
    assert (expert.windowing.window_secs, expert.windowing.time_stride) == (2.0, 4)
    (tmp_path / "empty.yaml").touch()
    assert UpstreamExpert(checkpoint, tmp_path / "empty.yaml").windowing.time_stride == 10


@pytest.mark.parametrize("options, message", [
    ({"stride": 10}, "unknown option stride. Choose from window_secs, time_stride"),
    ({"padding": "zero"}, "padding must be one of none, published; got 'zero'"),
    ({"frequency_pooling": "max"}, "frequency_pooling must be one of concat, mean"),
    ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16"),
    ({"positions": "none"}, "positions must be one of"),
    ({"time_stride": 0.5}, "time_stride must be a whole number"),
    ({"window_secs": 0.1}, "at least one patch, 0.16 s"),
    ({"window_secs": 12.0}, 'longer than the 10.24 s for which.*positions="published"'),
    ({"model_config": "nowhere.yaml"}, "nowhere.yaml is neither a file nor"),
])
def test_options_that_make_no_sense(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        UpstreamExpert(checkpoint, **options)


@pytest.mark.parametrize("wavs, message", [
    ([], "empty list of waveforms"),
    ([torch.randn(800), torch.randn(0)], "waveform 1 is empty"),
    ([torch.tensor([0.0, float("nan")])], "waveform 0 holds NaN or infinite samples"),
    ([torch.tensor([0.0, float("inf")])], "NaN or infinite"),
    ([torch.randn(2, 16000)], r"has shape \(2, 16000\); expected one channel"),
    ([torch.zeros(800, dtype=torch.int32)], "torch.int32; expected floating point in"),
])
def test_bad_waveforms(expert, wavs, message):
    with pytest.raises(ValueError, match=message):
        expert(wavs)


def test_converted_waveforms(expert):
    wav = torch.randn(8000, dtype=torch.float64).clamp(-1, 0.99)
    expected = hidden_states(expert, wav.float())
    for given in (wav, wav.numpy(), wav.numpy().astype(">f8"), wav.flip(0).numpy()[::-1]):
        assert torch.equal(hidden_states(expert, given)[-1], expected[-1])
    sixteen_bit = (wav * 32768).to(torch.int16)
    assert torch.equal(hidden_states(expert, sixteen_bit)[-1], hidden_states(expert, sixteen_bit / 32768)[-1])


@pytest.mark.gpu
def test_gpu(checkpoint, expert, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # TF32 is on by default
    wavs = [torch.randn(16000), torch.randn(170000)]
    found = hidden_states(UpstreamExpert(checkpoint).cuda().eval(), *(wav.cuda() for wav in wavs))
    for gpu, cpu in zip(found, hidden_states(expert, *wavs), strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-3, atol=1e-4)


def _names_known_in(queue):
    from s3prl import hub

    queue.put("ssamba_tiny" in vars(hub))


@pytest.mark.slow
def test_spawned_processes_know_the_entries():
    ssamba_upstream.register()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_names_known_in, args=(queue,))
    process.start()
    process.join()
    assert process.exitcode == 0 and queue.get()
