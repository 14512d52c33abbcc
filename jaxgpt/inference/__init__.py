"""From weights to text: sampling, generation with a key-value cache, loading a finished stage."""
