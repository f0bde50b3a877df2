"""argmax: equal to NumPy's, also for ties and infinities."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seqjax.metrics import argmax

FEW = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, np.inf])  # many ties


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=FEW))
def test_it_is_numpys(values):
    np.testing.assert_array_equal(argmax(jnp.array(values)), values.argmax(axis=-1))


def test_where_nothing_is_greatest_the_index_is_one_of_the_row():
    assert argmax(jnp.array([[1.0, jnp.nan], [jnp.nan, 1.0], [3.0, 4.0]])).tolist() == [0, 0, 1]
