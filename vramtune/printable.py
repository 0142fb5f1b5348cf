"""Text from elsewhere, fit for a terminal: what would move the cursor, ring, recolour or turn the line round is spelt."""

import unicodedata

_UNFIT = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of controls (ESC, BEL, the one-character CSI), lone surrogates and separators of lines."""
_LAYOUT = "\n\t"
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Controls of the writing direction: with them what is shown is not what is there (https://trojansource.codes)."""


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, other than line breaks and tabs, as its escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) if _is_unfit(letter) else letter for letter in text)


def _is_unfit(letter: str) -> bool:
    return letter not in _LAYOUT and (unicodedata.category(letter) in _UNFIT or letter in _TURNING)


def _escaped(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
