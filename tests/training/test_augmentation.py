"""Augmentations, compared with their definitions, one clip at a time."""

import pytest
import torch

from ssamba_upstream.training.augmentation import (
    WAVEFORM_CHANGES,
    add_noise,
    augment_waveforms,
    change_gain,
    limit_band,
    mix_clips,
    noise_and_roll,
    reverberate,
    spec_augment,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masks_one_by_one(log_mel, frequency, time, fill, draw):
    """Apply torchaudio's SpecAugment to one clip at a time, from the same random numbers."""
    masked = log_mel.clone()
    clips, frames, bands = log_mel.shape
    for axis, size, limit in (("mel", bands, frequency), ("frame", frames, time)):
        numbers = torch.rand(2, clips, generator=draw, dtype=torch.float64)
        for clip in range(clips):
            width = numbers[0, clip].item() * limit
            start = int(numbers[1, clip].item() * (size - width))
            if axis == "mel":
                masked[clip, :, start:start + int(width)] = fill
            else:
                masked[clip, start:start + int(width), :] = fill
    return masked


@pytest.mark.parametrize("shape, frequency, time", [((24, 128, 128), 48, 48), ((7, 512, 128), 24, 96),
                                                    ((5, 30, 16), 16, 30), ((3, 20, 16), 0, 10), ((3, 20, 16), 8, 0)])
def test_masks_are_those_of_the_slow_definition(shape, frequency, time):
    log_mel = torch.randn(shape)
    before = log_mel.clone()
    masked = spec_augment(log_mel, frequency, time, 0.467, generator(3))
    assert torch.equal(masked, masks_one_by_one(log_mel, frequency, time, 0.467, generator(3)))
    assert not torch.equal(masked, log_mel)
    assert torch.equal(log_mel, before)


def runs(masked_rows):
    """Return width and start of the single run in each row of booleans; an empty run starts at -1."""
    widths = masked_rows.sum(dim=1)
    starts = torch.where(widths > 0, masked_rows.int().argmax(dim=1), -1)
    ends = masked_rows.shape[1] - masked_rows.flip(1).int().argmax(dim=1)
    assert ((ends - starts == widths) | (widths == 0)).all()
    return widths, starts


def test_masks_are_runs_of_uniform_width_and_place():
    frames, bands, time, frequency = 20, 12, 10, 6
    masked = spec_augment(torch.zeros(6000, frames, bands), frequency, time, 1.0, generator()) == 1
    for rows, size, limit in ((masked.all(dim=2), frames, time), (masked.all(dim=1), bands, frequency)):
        widths, starts = runs(rows)
        counts = widths.bincount(minlength=limit)
        assert len(counts) == limit
        expected = 6000 / limit
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, at most 9 degrees of freedom
        nonempty = starts[widths > 0].double()
        assert nonempty.min() == 0
        assert (starts + widths)[widths > 0].max() == size - 1
        centres = nonempty + widths[widths > 0] / 2
        # Truncating to integers moves the start by 1/2 on average, and the middle by another 1/4.
        assert centres.mean().item() == pytest.approx(size / 2 - 0.75, abs=0.15)
        assert torch.corrcoef(torch.stack([widths[widths > 0].double(), centres]))[0, 1].abs() < 0.15
    frame_widths, band_widths = runs(masked.all(dim=2))[0], runs(masked.all(dim=1))[0]
    assert torch.corrcoef(torch.stack([frame_widths, band_widths]).double())[0, 1].abs() < 0.05


def test_masks_are_statistically_torchaudio_s():
    from torchaudio.functional import mask_along_axis_iid

    import ssamba_upstream  # noqa: F401  (repairs torchaudio's import)

    ours = spec_augment(torch.zeros(20000, 16, 1), 0, 8, 1.0, generator()).squeeze(2).mean(dim=0)
    theirs = mask_along_axis_iid(torch.zeros(20000, 1, 16, 1), 8, 1.0, 2).squeeze().mean(dim=0)
    assert torch.allclose(ours, theirs, atol=0.015)
    assert ours.sum().item() == pytest.approx(3.5, abs=0.1)


def test_limits_beyond_the_clip_are_refused():
    with pytest.raises(ValueError, match="time masks must be from 0 to the clips' size, 20; got 21"):
        spec_augment(torch.zeros(2, 20, 16), 4, 21, 0.0, generator())
    with pytest.raises(ValueError, match="frequency masks must be from 0 to the clips' size, 16; got -1"):
        spec_augment(torch.zeros(2, 20, 16), -1, 4, 0.0, generator())


def test_noise_and_roll_are_those_of_the_slow_definition():
    log_mel = torch.randn(40, 50, 8)
    before = log_mel.clone()
    changed = noise_and_roll(log_mel, generator(5))
    assert torch.equal(log_mel, before)
    draw = generator(5)
    scales = torch.rand(40, generator=draw) / 10
    shifts = torch.randint(-10, 10, (40,), generator=draw)
    noise = torch.rand(40, 50, 8, generator=draw)
    for clip in range(40):
        expected = torch.roll(log_mel[clip] + scales[clip] * noise[clip], shifts[clip].item(), 0)
        assert torch.allclose(changed[clip], expected, atol=1e-6)


def test_noise_and_roll_keep_their_bounds():
    frames = torch.arange(30.0)[None, :, None].expand(4000, 30, 4)
    changed = noise_and_roll(frames, generator())
    noise = changed - changed.floor()
    assert torch.equal(changed.floor().sort(dim=1).values, frames), "frames are moved, not changed"
    assert (noise >= 0).all() and noise.max() < 0.1001
    largest = noise.amax(dim=(1, 2))
    assert largest.mean().item() == pytest.approx(0.05, abs=0.003), "one scale per clip, uniform below 0.1"
    shares = noise / largest[:, None, None]
    assert shares[largest > 0.05].mean().item() == pytest.approx(0.5, abs=0.01)
    shifts = (-changed[:, 0, 0].floor().long()) % 30
    counts = shifts.bincount(minlength=30)
    assert not counts[10:20].any()
    counts = torch.cat([counts[20:], counts[:10]])
    assert ((counts - 200) ** 2 / 200.0).sum() < 43.8  # chi-square, 19 degrees of freedom: one seed in 1000 fails


@pytest.mark.parametrize("augment", [lambda x, g: spec_augment(x, 8, 8, 0.5, g), noise_and_roll])
def test_the_generator_alone_decides(augment):
    log_mel = torch.randn(8, 40, 16)
    state = torch.get_rng_state()
    first = augment(log_mel, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(log_mel, generator(1)), first)
    assert not torch.equal(augment(log_mel, generator(2)), first)
    going_on = generator(1)
    assert torch.equal(augment(log_mel, going_on), first)
    assert not torch.equal(augment(log_mel, going_on), first)


@pytest.mark.parametrize("augment", [lambda x, g: spec_augment(x, 8, 8, 0.5, g), noise_and_roll])
def test_half_precision_keeps_its_type(augment):
    assert augment(torch.randn(2, 40, 16).bfloat16(), generator()).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [lambda x, g: spec_augment(x, 8, 8, 0.5, g), noise_and_roll])
def test_a_gpu_gives_the_same(augment):
    log_mel = torch.randn(8, 40, 16)
    changed = augment(log_mel.cuda(), generator(1))
    assert changed.is_cuda
    assert torch.allclose(changed.cpu(), augment(log_mel, generator(1)), atol=1e-6)


RATE = 16000


def clips(*lengths, samples=8000):
    waveforms = torch.zeros(len(lengths), samples)
    for row, length in zip(waveforms, lengths):
        row[:length] = 0.1 * torch.randn(length)
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("kinds", [[name] for name in WAVEFORM_CHANGES] + [[*WAVEFORM_CHANGES]])
def test_waveforms_are_changed_by_the_generator_alone(kinds):
    waveforms, lengths = clips(*[8000, 5000] * 8)
    before, state = waveforms.clone(), torch.get_rng_state()
    changed = augment_waveforms(waveforms, lengths, RATE, kinds, generator(1))
    assert torch.equal(waveforms, before) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment_waveforms(waveforms, lengths, RATE, kinds[::-1], generator(1)), changed)
    assert not torch.equal(augment_waveforms(waveforms, lengths, RATE, kinds, generator(2)), changed)
    assert changed.isfinite().all() and not changed[1::2, 5000:].any()
    same = (changed == waveforms).all(dim=1).sum().item()
    assert (0 < same < 16) if len(kinds) == 1 else same < 4  # each change happens to half of the clips
    assert torch.equal(augment_waveforms(waveforms, lengths, RATE, [], generator(1)), waveforms)


def test_silence_and_single_clips_are_left_as_sound_as_they_were():
    for waveforms, lengths in ((torch.zeros(4, 800), torch.full((4,), 800)), clips(800, samples=800)):
        assert augment_waveforms(waveforms, lengths, RATE, [*WAVEFORM_CHANGES], generator()).isfinite().all()


@pytest.mark.parametrize("change, low, high", [(mix_clips, 0, 20), (add_noise, 0, 30)])
def test_what_is_added_has_the_level_drawn(change, low, high):
    waveforms, _ = clips(*[8000] * 64)
    waveforms *= torch.logspace(-3, 0, 64).unsqueeze(1)
    added = change(waveforms, RATE, generator()) - waveforms
    levels = 10 * (waveforms.square().sum(1) / added.square().sum(1)).log10()
    assert low - 0.1 <= levels.min() < low + 3 and high - 3 < levels.max() <= high + 0.1


def test_gain_is_up_to_12_decibels():
    waveforms, _ = clips(*[800] * 64, samples=800)
    gains = 20 * (change_gain(waveforms, RATE, generator()).norm(dim=1) / waveforms.norm(dim=1)).log10()
    assert -12.1 < gains.min() < -9 and 9 < gains.max() < 12.1


def test_bands_keep_what_lies_between_their_limits():
    tones = torch.stack([torch.sin(2 * torch.pi * f * torch.arange(8000) / RATE) for f in (10, 900, 7990)])
    kept = torch.stack([limit_band(tones, RATE, generator(seed)).norm(dim=1) for seed in range(8)]) / tones.norm(dim=1)
    assert (kept[:, 0] < 0.1).all() and (kept[:, 1] > 0.9).all() and (kept[:, 2] < 0.75).all()


def test_a_room_answers_after_the_direct_sound():
    click = torch.zeros(32, 16000)
    click[:, 1000] = 1.0
    heard = reverberate(click, RATE, generator())
    assert heard[:, :1000].abs().max() < 1e-5 and torch.allclose(heard[:, 1000], torch.ones(32), atol=1e-5)
    tail = heard[:, 1001:].square().sum(1)
    assert 0.03 < tail.min() and tail.max() < 1.01
    assert (heard[:, 9000:].square().sum(1) < 1e-4 * tail).all()  # half a second later
