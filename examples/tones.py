"""Sounds as codes, without labels: what the codes stand for, and whose voice they are played in.

A voice is told to the decoder at every position, so that the codes need not hold it: what is left to them is what is
played. Decoded under another voice than its own, a melody is played by another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

from guides import VectorQuantized
from inference import SVI, fit, label_codes
from inference.objectives import MovingCodebook, codebook_moves
from ppl.figures import COLOURS, WIDTH
from ppl.recipe import Result
from ppl_models import VQVAE
from ppl_models.datasets.tones import BEAT, HARMONICS, tones
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import SequenceDecoder, SequenceEncoder

VOICES = ("flute", "clarinet", "brass", "strings")


def main(
    *,
    num_rows: int = 2000,
    num_codes: int = 32,
    code_dim: int = 8,
    halvings: int = 5,
    channels: int = 32,
    epochs: int = 60,
    batch_size: int = 50,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A vector-quantized autoencoder of tones, whose codes are read, and whose voices are exchanged.

    Melodies are played in four voices. The encoder hears the sound and puts a code on each stretch of it; the decoder
    is told the voice beside. Neither is told what is played: afterwards each code is given the pitch that it goes with
    most often. The tones being made by a rule, it is known how a melody sounds in another voice.

    Parameters
    ----------
    num_rows
        Melodies of eight beats to learn from, and a quarter as many new ones.
    num_codes
        Vectors in the codebook, K.
    code_dim
        Their length.
    halvings
        Stride-2 convolutions: codes stand for stretches of 2ⁿ steps, of 64 a beat.
    channels
        Of each convolution.
    epochs
        Passes over the melodies.
    batch_size
        Melodies in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of data and run.
    """
    if not 1 <= 2**halvings <= BEAT:
        raise ValueError(f"halvings is {halvings}; expected 1 to {BEAT.bit_length() - 1}, a code for a beat at most.")
    data, what = tones(num_rows + num_rows // 4, seed=seed)
    train, test, new = data[:num_rows], data[num_rows:], what[num_rows:]
    steps = train.arrays["x"].shape[1]
    shape, layers = (steps // 2**halvings,), (channels,) * halvings
    likelihood = GaussianSharedScale(0.3)
    model = VQVAE(num_codes, code_dim, shape, SequenceDecoder(layers), likelihood, num_classes=len(HARMONICS))
    guide = VectorQuantized(num_codes, code_dim, shape, SequenceEncoder(layers))
    rate = optax.exponential_decay(learning_rate, epochs * -(-num_rows // batch_size), 0.1)
    algorithm = SVI(model, guide, MovingCodebook(decay=0.9, restart=0.1), codebook_moves(optax.adam(rate)))
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size)

    codes, new_codes = (run.sample_posterior(part)["z"][0].argmax(-1) for part in (train, test))
    voice = test.arrays["y"]
    other = (voice + 1) % len(HARMONICS)
    swapped = run.reconstruct({"x": test.arrays["x"], "y": other})["x"]
    kept = run.reconstruct(test)["x"]
    sounds = {
        f"held out, {VOICES[voice[0]]}": test.arrays["x"][0],
        "from its codes": kept[0],
        f"its codes as {VOICES[other[0]]}": swapped[0],
        f"what {VOICES[other[0]]} would play": new.played(other)[0],
    }
    pitches, new_pitches = (np.repeat(m.pitch, BEAT // 2**halvings, axis=1) for m in (what[:num_rows], new))
    return {
        "What codes tell": [
            told("pitch or rest", codes, pitches, new_codes, new_pitches, num_codes),
            told(
                "voice",
                codes,
                np.broadcast_to(train.arrays["y"][:, None], codes.shape),
                new_codes,
                np.broadcast_to(voice[:, None], new_codes.shape),
                num_codes,
            ),
        ],
        "Voices exchanged": [
            exchanged("its own", kept, voice, new),
            exchanged("another", swapped, other, new),
        ],
        "One melody in two voices": (
            figure(sounds, new_codes[0], new.pitch[0]),
            "Two beats as waves, and all as spectrograms; below, the pitch played at each (– a rest), and the codes.",
        ),
        "Autoencoder": run,
    }


def told(name: str, codes: Any, labels: Any, new_codes: Any, new_labels: Any, num_codes: int) -> dict[str, object]:
    """How well the majority label of each code does on held-out melodies."""
    found = label_codes(codes, labels, num_codes)
    return {
        "of each stretch": name,
        "told by its code": f"{found.accuracy(new_codes, new_labels):.1%}",
        "by guessing the most frequent": f"{found.chance(new_labels):.1%}",
    }


def exchanged(name: str, heard: np.ndarray, voice: np.ndarray, new: Any) -> dict[str, object]:
    """How near decoded sounds are to the melody in the voice that the decoder was told, and in each of the others."""
    errors = np.stack(
        [((heard - new.played(np.full(len(heard), v))) ** 2).mean(axis=1) for v in range(len(HARMONICS))], axis=1
    )
    rows = np.arange(len(heard))
    rest = np.delete(errors.ravel(), rows * errors.shape[1] + voice).reshape(len(rows), -1)
    return {
        "decoded in": name + " voice",
        "squared error a step, to that voice": round(float(errors[rows, voice].mean()), 4),
        "to the nearest of the others": round(float(rest.min(axis=1).mean()), 4),
        "nearest to the voice told": f"{np.mean(errors.argmin(axis=1) == voice):.1%}",
    }


def figure(sounds: dict[str, np.ndarray], codes: np.ndarray, pitch: np.ndarray) -> Figure:
    """Each sound as a wave and as a spectrogram."""
    fig = Figure(figsize=(WIDTH, 1.45 * len(sounds) + 0.4), layout="constrained")
    beats, each = len(pitch), len(codes) // len(pitch)
    for i, ((name, x), (wave, spectrum)) in enumerate(
        zip(sounds.items(), fig.subplots(len(sounds), 2, sharex="col", width_ratios=(1, 1.3)), strict=True)
    ):
        wave.plot(np.arange(2 * BEAT) / BEAT, x[: 2 * BEAT], color=COLOURS[i > 0], linewidth=1)
        wave.set(title=name, ylim=(-2, 2), xlim=(0, 2), yticks=[])
        spectrum.specgram(x, NFFT=BEAT, noverlap=BEAT - 8, Fs=BEAT, cmap="Greys", vmin=-50, vmax=0, scale="dB")
        spectrum.set(ylabel="cycles a beat", ylim=(0, BEAT / 2), xlim=(0, beats))
        spectrum.grid(False)
    wave.set_xlabel("beat")
    marks = [f"{p or '–'}\n{' '.join(map(str, codes[each * b : each * (b + 1)]))}" for b, p in enumerate(pitch)]
    spectrum.set_xticks(np.arange(beats) + 0.5, marks, fontsize=9)
    spectrum.tick_params(axis="x", length=0)
    return fig


if __name__ == "__main__":
    from ppl import run

    run(main)
