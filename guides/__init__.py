"""q(z | x): one file per way of guessing latents, also plain programs."""
