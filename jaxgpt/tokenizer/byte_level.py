"""How byte-level vocabularies spell bytes as characters."""

from __future__ import annotations

import functools


@functools.cache
def byte_characters() -> dict[str, int]:
    """{character: byte}: how byte-level vocabularies spell bytes, each as one visible character.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on, in order.
    Source: Radford et al. 2019; their code, encoder.py.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
