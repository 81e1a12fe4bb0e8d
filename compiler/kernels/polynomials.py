"""Coefficients of elementary functions, which kernels of processors and of devices evaluate in their own ways."""

# 2^f on [-1/2, 1/2]: least maximum relative error for f's powers 1..6 (2e-9), found by reweighted least squares.
EXP2 = (
    0.6931472028553766,
    0.24022647913583386,
    0.05550332470633745,
    0.009618437360778291,
    0.0013398874569646327,
    0.00015353361442222856,
)
