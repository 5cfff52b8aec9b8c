"""Tones by the rule that makes them."""

import numpy as np

from ppl_models.datasets.tones import BEAT, CYCLES, HARMONICS, Melodies, melodies, tones


def test_a_beat_has_the_voices_harmonics():
    """The spectrum of a beat, its decay undone: amplitudes at whole multiples of the pitch, and nothing else."""
    pitch = np.tile(np.arange(1, len(CYCLES) + 1), (len(HARMONICS), 1))
    x = Melodies(pitch, np.zeros_like(pitch)).played(np.arange(len(HARMONICS))).reshape(*pitch.shape, BEAT)
    spectrum = np.abs(np.fft.rfft(x * np.exp(np.arange(BEAT) / 128))) * 2 / BEAT
    for i, f in enumerate(CYCLES):
        np.testing.assert_allclose(spectrum[:, i, f * np.arange(1, 5)], HARMONICS, atol=1e-9)
        spectrum[:, i, f * np.arange(1, 5)] = 0
    assert spectrum.max() < 1e-9


def test_a_held_pitch_goes_on_where_it_was_and_a_rest_is_silent():
    what = Melodies(np.array([[3, 3, 0, 3]]), np.array([[0, 1, 0, 0]]))
    first, held, rest, struck = what.played(np.array([2])).reshape(4, BEAT)
    np.testing.assert_allclose(held, np.exp(-BEAT / 128) * first)
    np.testing.assert_array_equal(struck, first)
    assert not rest.any()


def test_melodies_and_voices_are_drawn_as_they_say():
    what = melodies(4000, 5, seed=1)
    assert set(np.unique(what.pitch)) == set(range(7))
    # 20,000 beats: binomial, 4 standard errors (a false alarm in 15,000)
    assert abs((what.pitch == 0).mean() - 1 / 6) < 4 * np.sqrt(5 / 36 / 20_000)
    on = what.held[:, 1:] > 0
    assert (what.pitch[:, 1:][on] == what.pitch[:, :-1][on]).all() and (what.pitch[:, 1:][on] > 0).all()
    share = on[what.pitch[:, :-1] > 0].mean()
    assert abs(share - 1 / 4 * 5 / 6) < 4 * np.sqrt(0.2 * 0.8 / on.size)
    data, again = tones(300, 4, noise=0.1, seed=2), tones(300, 4, noise=0.1, seed=2)
    x, y = data[0].arrays["x"], data[0].arrays["y"]
    np.testing.assert_array_equal(x, again[0].arrays["x"])
    assert x.shape == (300, 4 * BEAT) and x.dtype == np.float32 and set(y) == {0, 1, 2, 3}
    assert abs((x - data[1].played(y)).std() - 0.1) < 4 * 0.1 / np.sqrt(2 * x.size)
