"""Bad input to quantics, sampling, extremes and files ends soon with the documented error or value."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm.status import Status
from jaxnm.tensor_train import argmax, argmin, from_cores, load, log_prob, sample, save
from jaxnm.tensor_train import quantics as qt

_key, _raw = jax.random.key(0), jnp.zeros(2, jnp.uint32)
_tt = from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))])
_batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _tt)
_complex = from_cores([jnp.array([[[1j], [2.0]]])])
_index = jnp.zeros((1, 2), jnp.int32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        # digits
        (partial(qt.encode, 0.5, 4), TypeError, "encode: indices is of dtype float64, expected integers"),
        (partial(qt.encode, 1, 0), ValueError, "encode: bits is 0, expected an int >= 1"),
        (partial(qt.encode, 1, 2.0), TypeError, "encode: bits is of type float"),
        (partial(qt.decode, jnp.zeros(32, jnp.int32)), ValueError, r"decode: digits is of shape \(32,\).*; see points"),
        (partial(qt.decode, jnp.int32(1)), ValueError, r"decode: digits is of shape \(\)"),
        (partial(qt.decode, jnp.ones(3)), TypeError, "decode: digits is of dtype float64"),
        (partial(qt.points, jnp.ones((2, 0), jnp.int32)), ValueError, r"points: digits is of shape \(2, 0\)"),
        (partial(qt.points, jnp.ones(3, jnp.int32), start=1j), TypeError, "points: start is of dtype complex128"),
        # functions
        (partial(qt.exp, jnp.ones(2), 3), ValueError, r"exp: rate is of shape \(2,\), expected a scalar"),
        (partial(qt.exp, 1.0, 0), ValueError, "exp: bits is 0"),
        (partial(qt.exp, 1.0, 2000), ValueError, "exp: bits is 2000, expected at most 1000"),
        (partial(qt.exp, jnp.int32(1), 3), TypeError, "rate is of dtype int32"),
        (partial(qt.exp, 1.0, 3, start=1j), TypeError, "exp: start is of dtype complex128, expected a real dtype"),
        (partial(qt.exp, 1.0, 3, spacing=jnp.ones(3)), ValueError, r"spacing is of shape \(3,\)"),
        (partial(qt.sin, 1.0 + 1.0j, 3), TypeError, "sin: frequency or phase is of dtype complex128"),
        (partial(qt.cos, 1.0, 3, phase=1j), TypeError, "cos: frequency or phase is of dtype complex128"),
        (partial(qt.polynomial, jnp.ones((2, 2)), 3), ValueError, r"coefficients is of shape \(2, 2\)"),
        (partial(qt.polynomial, jnp.ones(0), 3), ValueError, r"coefficients is of shape \(0,\)"),
        (partial(qt.polynomial, jnp.ones(2), 3, start=1j), TypeError, "polynomial: start is of dtype complex128"),
        (partial(qt.interpolant, jnp.sin, 3, degree=-1), ValueError, "degree is -1, expected an int >= 0"),
        (partial(qt.interpolant, lambda x: x[None], 3, degree=2), TypeError, r"what f returns is float64\[1\]"),
        (partial(qt.interpolant, lambda x: 1, 3, degree=2), TypeError, "what f returns is"),
        (partial(qt.step, 0.5, 3), TypeError, "step: first is of dtype float64, expected integers"),
        (partial(qt.step, jnp.arange(2), 3), ValueError, r"step: first is of shape \(2,\), expected a scalar"),
        (partial(qt.step, 1, 3, dtype=jnp.int32), TypeError, "step: dtype is of dtype int32, expected a floating"),
        (partial(qt.delta, True, 3), TypeError, "delta: index is of dtype bool"),
        (partial(qt.reverse_bits, jnp.ones(3)), TypeError, "reverse_bits: tt is of type"),
        # operators
        (partial(qt.shift, 3, 8), ValueError, r"shift: by is 8, expected less than 2\^3 in size"),
        (partial(qt.shift, 3, 1.0), TypeError, "shift: by is of type float"),
        (partial(qt.laplacian, 3, spacing=0.0), ValueError, "laplacian: spacing is 0.0, expected > 0"),
        (partial(qt.laplacian, 3, spacing=jnp.ones(2)), ValueError, r"spacing is of shape \(2,\)"),
        (partial(qt.laplacian, 3, boundary="open"), ValueError, "boundary is 'open', expected one of"),
        (partial(qt.inverse_laplacian, 3, spacing=-1.0), ValueError, "inverse_laplacian: spacing is -1.0"),
        (partial(qt.fourier, 3, eps=2.0), ValueError, "fourier: eps is 2.0"),
        (partial(qt.fourier, 3, eps=jnp.float32(1e-3)), ValueError, "fourier: eps is .* it is static"),
        (partial(qt.fourier, 3, dtype=jnp.float32), TypeError, "fourier: dtype is float32, expected a complex one"),
        # sampling
        (partial(sample, _raw, _tt, 3), TypeError, "sample: key is of dtype uint32, expected a typed key"),
        (partial(sample, jax.random.split(_key), _tt, 3), ValueError, "expected one key"),
        (partial(sample, _key, _tt, 0), ValueError, "sample: num is 0, expected an int >= 1"),
        (partial(sample, _key, _batch, 3), ValueError, "use jax.vmap for a batch of trains"),
        (partial(sample, _key, _tt, 3, kind="absolute"), ValueError, "kind is 'absolute', expected one of"),
        (partial(sample, _key, _tt, 3, given=_index), ValueError, r"given is of shape \(1, 2\), expected \[2\]"),
        (partial(sample, _key, _tt, 3, given=jnp.ones(2)), TypeError, "given is of dtype float64"),
        (partial(sample, _key, _complex, 3), TypeError, "sample: tt is of dtype complex128, expected a real dtype"),
        (partial(log_prob, _tt, jnp.zeros((2, 2))), TypeError, "log_prob: indices is of dtype float64"),
        (partial(log_prob, _tt, jnp.zeros((2, 3), int)), ValueError, r"indices is of shape \(2, 3\), expected \[m, 2"),
        (partial(log_prob, _complex, _index[:, :1]), TypeError, "log_prob: tt is of dtype complex128"),
        # extremes
        (partial(argmax, _tt, beam=0), ValueError, "argmax: beam is 0, expected an int >= 1"),
        (partial(argmin, _complex), TypeError, "argmin: tt is of dtype complex128, expected a real dtype"),
        (partial(argmin, 1.0), TypeError, "argmin: tt is of type float, expected a TT"),
        # files
        (partial(save, "unused", jnp.ones(3)), TypeError, "save: train is of type .*, expected a TT or a TTMatrix"),
        (partial(save, "unused", _batch), ValueError, "save: train is with cores of shape .* one by one"),
        (lambda: jax.jit(partial(save, "unused"))(_tt), ValueError, "save: train is traced"),
        (partial(save, "no/such/folder", _tt), FileNotFoundError, "no/such"),
        (partial(load, "no/such/file.npz"), FileNotFoundError, "no/such/file.npz"),
        (partial(load, __file__), ValueError, "load: .* it is damaged or of another kind"),
    ],
)  # fmt: skip
def test_what_is_known_while_tracing_raises(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_reported(bad):
    broken = _tt.replace(cores=_tt.cores.at[1, 0, 2, 0].set(bad))
    for kind in ("nonnegative", "square"):
        assert int(sample(_key, broken, 2, kind=kind).status) == Status.NONFINITE_INPUT
        assert np.isnan(log_prob(broken, _index, kind=kind)).all()
    index, value = argmax(broken, beam=2)
    assert index.tolist() == [-1, -1]
    assert np.isnan(value)
    for tt in (qt.exp(bad, 3), qt.sin(bad, 3), qt.polynomial(jnp.array([1.0, bad]), 3)):
        assert not (np.isfinite(tt.cores).all() and np.isfinite(tt.log_scale))


def test_a_traced_spacing_that_is_not_positive_gives_no_number():
    assert np.isnan(jax.jit(lambda h: qt.laplacian(3, spacing=h).log_scale)(-1.0))


def test_a_bad_member_of_a_batch_harms_no_other():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), _tt)
    batch = batch.replace(cores=batch.cores.at[1].set(jnp.nan))
    samples = jax.vmap(lambda tt: sample(_key, tt, 5))(batch)
    assert samples.status.tolist() == [Status.OK, Status.NONFINITE_INPUT, Status.OK]
    assert np.array_equal(samples.indices[0], sample(_key, _tt, 5).indices)
    gradients = jax.vmap(jax.grad(lambda cores: log_prob(_tt.replace(cores=cores), _index)[0]))(batch.cores)
    assert np.isfinite(np.asarray(gradients)[[0, 2]]).all()
    assert jax.vmap(partial(argmax, beam=2))(batch).index[1].tolist() == [-1, -1]


def test_one_mode_and_one_bit_work():
    vector = from_cores([jnp.array([[[1.0], [-4.0], [2.0]]])])
    assert argmin(vector).index.tolist() == [1]
    assert float(argmax(vector).value) == 2
    np.testing.assert_allclose(
        jnp.exp(log_prob(vector, jnp.arange(3)[:, None], kind="square")), np.array([1, 16, 4]) / 21
    )
    assert qt.encode(1, 1).tolist() == [1]
    assert qt.encode([1, 2], 2).tolist() == [[0, 1], [1, 0]]
    assert qt.fourier(1).ranks.tolist() == qt.laplacian(1).ranks.tolist() == [1, 1]
