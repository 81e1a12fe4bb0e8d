"""Text of a model on a terminal."""

# Control characters of a model's text could drive the terminal; a newline and a tab may pass.
_UNSAFE = dict.fromkeys((*range(32), 127, *range(128, 160)), "�")
del _UNSAFE[ord("\n")], _UNSAFE[ord("\t")]


def printable(text: str) -> str:
    """`text` with what could drive a terminal replaced."""
    return text.translate(_UNSAFE)
