r"""Tones drawn by a rule: melodies, which are the content, in voices, which are the identity.

A row is a few beats of 64 steps. At a beat a voice strikes a pitch, holds the one before, or rests. A pitch of f cycles
a beat that was struck at step s sounds at step t as

    x_t = exp(-(t - s) / 128) sum_h a_h sin(2π f h t / 64),    a: the harmonics of the voice, sum_h a_h² = 1

so that what is played and who plays it are independent, and either is known without the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ppl_models.datasets import Dataset

BEAT, DECAY = 64, 128.0  # steps
CYCLES = np.array([2, 3, 4, 5, 6, 7])  # of each pitch, a beat; the fourth harmonic of the highest has 2.3 steps a cycle
HARMONICS = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],  # a flute's
        [0.8, 0.0, 0.6, 0.0],  # a clarinet's, odd ones alone
        [0.4, 0.7, 0.5, 0.3],  # brass
        [0.5, 0.5, 0.5, 0.5],  # a string's, all alike
    ]
)
HARMONICS /= np.linalg.norm(HARMONICS, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Melodies:
    """What is played.

    Attributes
    ----------
    pitch
        Of each beat: 0 for a rest, else 1 to 6.
    held
        How many beats ago it was struck.
    """

    pitch: Int[np.ndarray, "rows beats"]
    held: Int[np.ndarray, "rows beats"]

    def __getitem__(self, rows: slice) -> Melodies:
        """The melodies of these rows."""
        return Melodies(self.pitch[rows], self.held[rows])

    def played(self, voice: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows steps"]:
        """How they sound in a voice each, 0 to 3, without noise."""
        step = np.arange(BEAT)
        cycles = np.append(0, CYCLES)[self.pitch]  # (rows, beats)
        turns = cycles[..., None, None] * (np.arange(HARMONICS.shape[1]) + 1) * step[:, None] / BEAT
        tone = np.einsum("rbth,rh->rbt", np.sin(2 * np.pi * turns), HARMONICS[voice])  # silent at a rest
        return (tone * np.exp(-(self.held[..., None] * BEAT + step) / DECAY)).reshape(len(self.pitch), -1)


def melodies(num_rows: int, num_beats: int = 8, *, seed: int = 0) -> Melodies:
    """At each beat a rest (1 in 6), the pitch before held on (1 in 4, where there is one), or any pitch struck."""
    rng = np.random.default_rng(seed)
    pitch, held = np.zeros((2, num_rows, num_beats), int)
    for beat in range(num_beats):
        rest, struck = rng.random(num_rows) < 1 / 6, rng.integers(1, len(CYCLES) + 1, num_rows)
        on = (rng.random(num_rows) < 1 / 4) & (pitch[:, beat - 1] > 0) & ~rest if beat else np.zeros(num_rows, bool)
        pitch[:, beat] = np.where(rest, 0, np.where(on, pitch[:, beat - 1], struck))
        held[:, beat] = np.where(on, held[:, beat - 1] + 1, 0)
    return Melodies(pitch, held)


def tones(num_rows: int = 2000, num_beats: int = 8, *, noise: float = 0.05, seed: int = 0) -> tuple[Dataset, Melodies]:
    """Melodies in voices, and what was played.

    Parameters
    ----------
    num_rows, num_beats
        How many melodies, and the length of each; a row has ``64 num_beats`` steps.
    noise
        Standard deviation of what is added to each step; the tones' is about 0.5.
    seed
        Of melodies, voices and noise.

    Returns
    -------
    Dataset
        Arrays ``x``, float32 waveforms ``(rows, steps)``, and ``y``, voices from 0 to 3 ``(rows,)``.
    Melodies
        Their content.
    """
    rng = np.random.default_rng([seed, 1])
    what, voice = melodies(num_rows, num_beats, seed=seed), rng.integers(len(HARMONICS), size=num_rows)
    x = what.played(voice) + noise * rng.normal(size=(num_rows, num_beats * BEAT))
    return Dataset("tones", {"x": x.astype(np.float32), "y": voice.astype(np.int32)}), what


__all__ = ["BEAT", "CYCLES", "HARMONICS", "Melodies", "melodies", "tones"]
