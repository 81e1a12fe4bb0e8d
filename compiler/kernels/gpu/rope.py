"""Rotary position embedding on devices: the frequencies are constants of the kernels, so that every RoPE type is the
same code."""
# mypy: ignore-errors

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ...model.rope import RopeParameters, inverse_frequencies
from .arithmetic import exact, pick, sincos, variable


@dataclass(frozen=True)
class Rotation:
    """Inverse frequencies `[rotary_dim / 2]` and the factor of cosine and sine, as compile-time constants."""

    frequencies: tuple[float, ...]
    attention_factor: float

    @staticmethod
    def of(rope: RopeParameters) -> "Rotation":
        """The rotation of a model."""
        frequencies, attention_factor = inverse_frequencies(rope)
        return Rotation(tuple(float(f) for f in frequencies), float(attention_factor))

    @property
    def half(self) -> int:
        """Pairs of dimensions that are rotated: i and half + i, the rest of a head stays."""
        return len(self.frequencies)

    def angle(self, position, pair):
        """Cosine and sine of `position` times the frequency of a pair (the product in float32, as transformers has
        it), times the attention factor."""
        turn = variable(T.cast(position, "float32") * pick(self.frequencies, pair))
        sine, cosine = sincos(turn)
        if self.attention_factor != 1.0:
            factor = exact(self.attention_factor)
            sine, cosine = variable(sine * factor), variable(cosine * factor)
        return cosine, sine

    def rotate(self, source, at, pair, cosine, sine):
        """Dimensions `pair` and half + `pair` of the head whose first number is `source[at]`, rotated."""
        a, b = T.bind(source[(*at[:-1], at[-1] + pair)]), T.bind(source[(*at[:-1], at[-1] + self.half + pair)])
        return variable(a * cosine - b * sine), variable(b * cosine + a * sine)
