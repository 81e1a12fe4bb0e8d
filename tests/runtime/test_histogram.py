"""Counts by range, as numpy counts them."""

import numpy as np

from mlc_llm.runtime.histogram import SECONDS, Histogram


def test_values_are_counted_in_the_range_whose_upper_bound_they_do_not_exceed() -> None:
    values = [0.0, 0.001, 0.0011, 0.07, 0.1, 300.0, 301.0, 5.5]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.counts == [*np.histogram(values, [-1, *np.nextafter(SECONDS, 1e9), np.inf])[0]]
    assert histogram.sum == sum(values)


def test_a_copy_stays_as_it_was() -> None:
    histogram = Histogram()
    histogram.add(1.0)
    copy = histogram.copy()
    histogram.add(2.0)
    assert (sum(copy.counts), copy.sum) == (1, 1.0)
