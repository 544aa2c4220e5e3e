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
    units = np.asarray(result.state_units)
    assert units[0] == 1
    assert np.all(np.frexp(units)[0] == 0.5)
    np.testing.assert_allclose(result.method.A, A * units[:, None] / units, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(result.method.B, B * units, rtol=1e-15, atol=1e-16)
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


_DECAY_OF_MATRICES = optax.chain(
    optax.add_decayed_weights(0.01, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
    optax.sgd(0.1, momentum=0.9),
)
_SHARP = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)))
_SQUARES = "not affine in its state and the gradient: adaptive, its state {} collects squares of the gradients"
_NORMALIZED = "not affine in its state and the gradient: normalized by a number of {}"
_SIGN = "not affine in its state and the gradient: sign-based or normalized"
_CLIPPED = "not affine in its state and the gradient: clipped"
_ONE_NUMBER = r"not affine in its state and the gradient: its state {}, which is not one number per parameter"
_MIXED = "not affine in its state and the gradient: the step of a coordinate depends on the other coordinates {}"
_FREEZE, _NO_RATE = "freeze the preconditioner D", "no linear rate, as steps do not shrink with the gradient"
# name: transformation, cause, remedy
NOT_AFFINE = {
    "adam": (optax.adam(0.1), _SQUARES.format(r"\[0\]\.nu"), _FREEZE),
    "adagrad": (optax.adagrad(0.1), _SQUARES.format(r"\[0\]\.sum_of_squares"), _FREEZE),
    "adadelta": (optax.adadelta(0.1), _SQUARES.format(r"\[1\]\.e_g"), _FREEZE),
    "lars": (optax.lars(0.1), _MIXED.format("of its leaf"), "trust ratios"),
    "fromage": (optax.fromage(0.1), _NORMALIZED.format("each leaf"), _NO_RATE),
    "lion": (optax.lion(0.1), _SIGN, _NO_RATE),
    "tiny signs": (optax.sign_sgd(1e-9), _SIGN, _NO_RATE),
    "rprop": (optax.rprop(0.1), "not affine .* a nonlinear function of", "nonlinear part"),
    "clip": (optax.chain(optax.clip(1.0), optax.sgd(0.1)), _CLIPPED + ", large", "without the clipping"),
    "global clip": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        _CLIPPED + " by a number of the whole tree",
        "without the clipping",
    ),
    "late clip": (optax.chain(optax.clip(1e60), optax.sgd(0.1)), _CLIPPED, "without the clipping"),
    "centralize": (optax.chain(optax.centralize(), optax.sgd(0.1)), _MIXED.format("of its leaf"), "centering"),
    "distance over gradients": (optax.contrib.dog(1.0), _ONE_NUMBER.format(".*"), _FREEZE),
    "decay of matrices": (
        _DECAY_OF_MATRICES,
        r"not affine .* treats leaves differently: those of shape \(2, 3\), those of shape \(\) and \(3,\)",
        "analyze each group alone",
    ),
    "muon": (optax.contrib.muon(0.1), r"an orthogonalization of matrix gradients \(Muon\)", "no linear rate"),
    "steps of several gradients": (optax.MultiSteps(optax.sgd(0.1), 2), "a MultiSteps", "transformation inside"),
    "the same as a transformation": (
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        "a MultiSteps",
        "transformation inside",
    ),
    "half": (
        optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
        r"rounding its state \[0\]\.trace to bfloat16 at every step",
        "without that option",
    ),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "a lookahead", r"(1 - a) I + a M^k"),
    "galore": (optax.contrib.galore(0.1), "a projection of matrix gradients", "transformation inside"),
    "private": (
        optax.contrib.differentially_private_aggregate(1.0, 0.1, 0),
        "a differentially private aggregate",
        "that gets the aggregated gradient",
    ),
    "sharpness": (_SHARP, "sharpness-aware minimization", "one period by hand"),
    "flat": (
        optax.flatten(optax.sgd(0.1, momentum=0.9)),
        "keeping its state .* as one vector",
        "inside optax.flatten",
    ),
    "affine at times": (
        optax.conditionally_transform(optax.clip(1.0), lambda step, **_: step % 2 == 0),
        "not affine .* it is affine at some steps and not at others|" + _CLIPPED,
        "without",
    ),
    "Polyak's step": (optax.polyak_sgd(), "in need of `value`, which its update is given", "depends on the path"),
    "quasi-Newton": (optax.lbfgs(), "in need of `value`, `grad`, and `value_fn`", "depends on the path"),
    "plateau": (
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
        "in need of `value`, which its update is given",
        "depends on the path",
    ),
    "adafactor": (optax.adafactor(0.1), _SQUARES.format(".*"), _FREEZE),
    "cover": (optax.sm3(0.1), "adaptive, with squares of the gradients collected along each axis", _FREEZE),
}


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_affine_is_refused_with_the_cause(name):
    tx, cause, remedy = NOT_AFFINE[name]
    with pytest.raises(ValueError, match=f"from_optax: tx is {cause}") as caught:
        from_optax(tx)
    message = str(caught.value)
    assert remedy in message
    assert caught.value.__cause__ is caught.value.__context__ is None
    for raw in ("Array", "Tracer", "object at", "<", "Node", "\n", "Error", "State"):
        assert raw not in message


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
        for name in ("lars", "adam", "clip", "tiny signs"):
            with pytest.raises(ValueError, match="not affine"):
                from_optax(NOT_AFFINE[name][0])
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


@pytest.mark.parametrize("rate", [1e-8, 1e-3, 1e4, 1e8])
def test_no_learning_rate_is_special(rate):
    """In units of the parameters A is the same for all learning rates, to the last bit at powers of 2."""
    for x64 in (True, False):
        step = 2.0 ** round(np.log2(rate if x64 else rate**0.75))
        with jax.enable_x64(x64):
            method = from_optax(optax.sgd(step, momentum=0.35)).method
            beta = np.asarray(0.35, method.A.dtype)
            np.testing.assert_array_equal(method.A, np.array([[1, -beta], [0, beta]]))
            np.testing.assert_array_equal(method.B, np.array([-step, step], method.A.dtype))


@pytest.mark.parametrize("L", [1e-8, 1e-3, 1.0, 1e5, 1e8])
def test_a_rate_from_optax_does_not_depend_on_units(L):
    """chain(trace .3, trace .2, scale -.4 / L), whose worst curvature in (.03 L, L) is the smallest one."""
    for x64, tolerance in ((True, 1e-12), (False, 2e-5)):
        scale = L if x64 else L**0.75
        with jax.enable_x64(x64):
            tx = optax.chain(optax.trace(0.3), optax.trace(0.2), optax.scale(-0.4 / scale))
            rate = float(first_order.quadratic_rate(from_optax(tx).method, 0.03 * scale, scale))
        unit = np.array([[1, -0.12, -0.08], [0, 0.3, 0], [0, 0.3, 0.2]])
        blocks = unit + np.linspace(0.03, 1, 9)[:, None, None] * np.outer([-0.4, 1, 1], [1, 0, 0])
        assert rate == pytest.approx(np.abs(np.linalg.eigvals(blocks)).max(), rel=tolerance)
