"""Classical verse by its rules: form, tones, rhyme, and what is copied from training."""
