"""Which optax transformations are linear systems, and that those that are come out exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnm import first_order
from jaxnm.first_order import from_optax

a, b = 0.7, 0.35
EXACT = {
    "sgd": (optax.sgd(a), [[1]], [-a]),
    "momentum": (optax.sgd(a, momentum=b), [[1, -a * b], [0, b]], [-a, 1]),
    "nesterov": (optax.sgd(a, momentum=b, nesterov=True), [[1, -a * b * b], [0, b]], [-a * (1 + b), 1]),
    "trace chain": (
        optax.chain(optax.trace(0.3), optax.trace(0.2), optax.scale(-0.4)),
        [[1, -0.12, -0.08], [0, 0.3, 0], [0, 0.3, 0.2]],
        [-0.4, 1, 1],
    ),
    "weight decay": (optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1)), [[0.999]], [-0.1]),
    "average": (optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1)), [[1, -0.09], [0, 0.9]], [-0.01, 0.1]),
    "guarded": (optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 5), [[1, -0.09], [0, 0.9]], [-0.1, 1]),
    "optimistic": (optax.optimistic_gradient_descent(0.1), [[1, 0.1], [0, 0]], [-0.2, 1]),
    "injected": (
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
        [[1, -0.09], [0, 0.9]],
        [-0.1, 1],
    ),
    "nothing": (optax.set_to_zero(), [[1]], [0]),
}


@pytest.mark.parametrize("name", EXACT)
def test_affine_and_time_invariant_ones_come_out_exactly(name):
    tx, A, B = EXACT[name]
    result = from_optax(tx)
    np.testing.assert_allclose(result.method.A, A, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(result.method.B, B, rtol=1e-15, atol=1e-16)
    np.testing.assert_array_equal(result.method.C, np.eye(len(B))[0])
    np.testing.assert_allclose(result.offset, 0, atol=1e-15)
    assert not bool(result.time_varying)
    assert not bool(result.stochastic)
    assert len(result.state_names) == len(B)
    assert result.state_names[0] == "parameter"


TIME_VARYING = {
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 100_000)),
    "late boundary": optax.sgd(optax.piecewise_constant_schedule(0.1, {1000: 0.1}), momentum=0.9),
    "debiased average": optax.chain(optax.ema(0.9, debias=True), optax.scale(-0.1)),
    "schedule-free": optax.contrib.schedule_free_sgd(0.1),
    "small schedule": optax.sgd(optax.cosine_decay_schedule(1e-5, 1000)),
    "every tenth step": optax.chain(optax.apply_every(10), optax.sgd(0.1)),
    "period 9": optax.sgd(lambda count: jnp.where(count % 9 < 5, 0.1, 0.2)),
    "bump": optax.sgd(lambda count: jnp.where((count > 200) & (count < 800), 0.1, 0.2)),
}


@pytest.mark.parametrize("name", TIME_VARYING)
@pytest.mark.parametrize("x64", [False, True])
def test_time_varying_ones_say_so(name, x64):
    with jax.enable_x64(x64):
        assert bool(from_optax(TIME_VARYING[name]).time_varying)


def test_a_debiased_average_is_frozen_at_the_warmup():
    """After k steps the debiasing factor of the next one is 1 / (1 - decay^(k + 1))."""
    for steps in (1, 4):
        method = from_optax(TIME_VARYING["debiased average"], warmup_steps=steps).method
        assert float(method.B[0]) == pytest.approx(-0.1 * 0.1 / (1 - 0.9 ** (steps + 1)), rel=1e-12)


def test_injected_noise_is_said():
    result = from_optax(optax.noisy_sgd(0.1, key=jax.random.key(0)))
    assert bool(result.stochastic)
    np.testing.assert_allclose(result.method.A, [[1]])
    np.testing.assert_allclose(result.method.B, [-0.1])


NOT_AFFINE = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "adagrad": optax.adagrad(0.1),
    "adadelta": optax.adadelta(0.1),
    "yogi": optax.yogi(0.1),
    "lars": optax.lars(0.1),
    "lamb": optax.lamb(0.1),
    "fromage": optax.fromage(0.1),
    "lion": optax.lion(0.1),
    "sign_sgd": optax.sign_sgd(0.1),
    "rprop": optax.rprop(0.1),
    "clip": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "global clip": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "centralize": optax.chain(optax.centralize(), optax.sgd(0.1)),
    "distance over gradients": optax.contrib.dog(1.0),
}


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_affine_is_refused_with_the_test_that_failed(name):
    with pytest.raises(ValueError, match=r"from_optax: tx is not affine.*(values of size|depends on the gradient)"):
        from_optax(NOT_AFFINE[name])


@pytest.mark.parametrize(
    ("tx", "word"),
    [
        (optax.polyak_sgd(), "value"),
        (optax.lbfgs(), "value_fn"),
        (optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(10)), "value"),
        (optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), "value"),
    ],
)
def test_extra_arguments_are_named(tx, word):
    with pytest.raises(ValueError, match=f"from_optax: tx is a transformation whose update failed.*{word}"):
        from_optax(tx)


def test_special_containers_and_shapes_are_refused():
    for tx in (optax.adafactor(0.1), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()):
        with pytest.raises(ValueError, match="from_optax: tx is a transformation whose"):
            from_optax(tx)


def test_the_linear_system_reproduces_a_run():
    """Twenty steps of optax on a quadratic, coordinate by coordinate, and the same by matrices."""
    tx = EXACT["trace chain"][0]
    curvatures = jnp.array([0.1, 0.5, 1.0])
    x = jnp.ones(3)
    state = tx.init(x)
    method = from_optax(tx).method
    z = np.array([[1.0] * 3, [0.0] * 3, [0.0] * 3])
    for _ in range(20):
        update, state = tx.update(curvatures * x, state, x)
        x = optax.apply_updates(x, update)
        z = np.asarray(method.A) @ z + np.outer(method.B, np.asarray(curvatures) * (np.asarray(method.C) @ z))
    np.testing.assert_allclose(x, z[0], rtol=1e-12)


def test_float32_is_judged_as_float64_is():
    with jax.enable_x64(False):
        assert from_optax(optax.sgd(0.1, momentum=0.9)).method.A.dtype == jnp.float32
        for name in ("lars", "adam", "clip", "sign_sgd"):
            with pytest.raises(ValueError, match="not affine"):
                from_optax(NOT_AFFINE[name])
        for tiny in (optax.chain(optax.clip(1.0), optax.sgd(2e-6)), optax.sign_sgd(1e-9)):
            with pytest.raises(ValueError, match="not affine"):
                from_optax(tiny)
        for tiny in (optax.sgd(1e-6, momentum=0.9), optax.optimistic_gradient_descent(1e-5)):
            result = from_optax(tiny)
            assert not bool(result.time_varying)
            assert not bool(result.stochastic)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="from_optax: tx is of type function"):
        from_optax(optax.sgd)
    with pytest.raises(ValueError, match="warmup_steps"):
        from_optax(optax.sgd(0.1), warmup_steps=0)
    with pytest.raises(TypeError, match="traced inside a transformation"):
        jax.jit(lambda rate: from_optax(optax.sgd(rate)).method.B)(0.1)


def test_rates_do_not_depend_on_the_realization():
    theirs = from_optax(optax.sgd(a, momentum=b)).method
    ours = first_order.heavy_ball(a, b)
    rates = [float(first_order.quadratic_rate(method, 0.03, 1.0)) for method in (theirs, ours)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-13)
