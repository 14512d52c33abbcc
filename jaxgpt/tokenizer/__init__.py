"""Chapter 2: text <-> tokens. BPE training, encoding, special tokens, conversations as tokens."""
