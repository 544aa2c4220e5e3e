"""Bad input to singular_values ends soon with the documented error or NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.tensor_train.spectra import singular_values

_tt = tensor_train.from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))], max_rank=3)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_core_that_is_not_finite_gives_nan_up_to_the_ranks(bad):
    found = singular_values(_tt.replace(cores=_tt.cores.at[1, 0, 2, 0].set(bad)))
    np.testing.assert_array_equal(found, [[np.nan, np.nan, 0]])


def test_a_bad_train_spoils_no_other_of_a_batch():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _tt)
    batch = batch.replace(cores=batch.cores.at[0, 0, 0, 0, 0].set(jnp.nan))
    found = jax.vmap(singular_values)(batch)
    assert np.isnan(found[0, 0, 0])
    np.testing.assert_allclose(found[1], [[1, 0, 0]], atol=1e-15)


def test_what_is_no_single_train_is_refused():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _tt)
    with pytest.raises(ValueError, match=r"use jax\.vmap for a batch of trains"):
        singular_values(batch)
    with pytest.raises(TypeError, match="singular_values: tt is of type list, expected a TT"):
        singular_values([jnp.ones((1, 3, 1))])
