"""Every public transformation of optax: it steps as its matrices do, or the refusal says why there are none."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnm.first_order import from_optax
from jaxnm.first_order.probes import find_layout

_BY_AXES = lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
_NORM = lambda updates: optax.tree.norm(updates)

# Arguments that have no default, for a learning rate; None for what is no transformation by itself.
_REQUIRED = {
    "add_noise": lambda rate: (0.1, 0.5, jax.random.key(0)),
    "adaptive_grad_clip": lambda rate: (0.1,),
    "apply_if_finite": lambda rate: (optax.sgd(rate, momentum=0.9), 3),
    "chain": lambda rate: (optax.trace(0.5), optax.scale(-rate)),
    "clip": lambda rate: (1.0,),
    "clip_by_block_rms": lambda rate: (1.0,),
    "clip_by_global_norm": lambda rate: (1.0,),
    "conditionally_mask": lambda rate: (optax.sgd(rate), lambda step, **_: step % 2 == 0),
    "conditionally_transform": lambda rate: (optax.scale(-rate), lambda step, **_: step % 2 == 0),
    "ema": lambda rate: (0.9,),
    "flatten": lambda rate: (optax.sgd(rate, momentum=0.9),),
    "freeze": lambda rate: (_BY_AXES,),
    "inject_hyperparams": None,
    "inject_stateful_hyperparams": None,
    "lookahead": lambda rate: (optax.sgd(rate), 5, 0.5),
    "masked": lambda rate: (optax.sgd(rate), _BY_AXES),
    "measure_with_ema": lambda rate: (_NORM, 0.9),
    "multi_transform": lambda rate: ({True: optax.sgd(rate), False: optax.sgd(2 * rate)}, _BY_AXES),
    "named_chain": lambda rate: (("trace", optax.trace(0.5)), ("scale", optax.scale(-rate))),
    "partition": lambda rate: ({True: optax.sgd(rate), False: optax.sgd(2 * rate)}, _BY_AXES),
    "scale_by_backtracking_linesearch": lambda rate: (10,),
    "scale_by_schedule": lambda rate: (lambda count: -rate / (1 + count),),
    "scale_by_zoom_linesearch": lambda rate: (10,),
    "selective_transform": None,
    "snapshot": lambda rate: ("norm", _NORM),
    "stateless": lambda rate: (lambda updates, params: optax.tree.scale(-rate, updates),),
    "stateless_with_tree_map": lambda rate: (lambda update, param: -rate * (update + 0.1 * param),),
    "with_extra_args_support": lambda rate: (optax.sgd(rate, momentum=0.9),),
    "differentially_private_aggregate": lambda rate: (1.0, 0.1, 0),
    "dpsgd": lambda rate: (rate, 1.0, 0.1, 0),
    "mechanize": lambda rate: (optax.sgd(rate),),
    "sam": lambda rate: (optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(rate))),
    "schedule_free": lambda rate: (optax.sgd(rate), rate),
    "split_real_and_imaginary": lambda rate: (optax.sgd(rate),),
    "MultiSteps": lambda rate: (optax.sgd(rate), 2),
}

_WITHOUT_A_FACTORY = {
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "scale first": lambda rate: optax.chain(optax.scale(-rate), optax.trace(0.5)),
    "averages": lambda rate: optax.chain(
        optax.ema(0.5, debias=False), optax.ema(0.3, debias=False), optax.scale(-rate)
    ),
    "decay": lambda rate: optax.chain(optax.add_decayed_weights(0.1 / rate), optax.sgd(rate, momentum=0.5)),
    "injected": lambda rate: optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.9),
    "selective": lambda rate: optax.selective_transform(optax.sgd(rate), freeze_mask=False),
    "every third": lambda rate: optax.chain(optax.apply_every(3), optax.sgd(rate)),
}


def _factories():
    """Name to factory from a learning rate, of everything public in optax that makes a transformation."""
    found = dict(_WITHOUT_A_FACTORY)
    for module in (optax, optax.contrib):
        for name, function in sorted(vars(module).items()):
            if name.startswith("_") or not callable(function):
                continue
            try:
                signature = inspect.signature(function)
            except ValueError:
                continue
            if "GradientTransformation" not in str(signature.return_annotation) and name != "MultiSteps":
                continue
            if name in _REQUIRED:
                arguments = _REQUIRED[name]
            else:
                required = [one for one in signature.parameters.values() if one.default is one.empty]
                count = sum(one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in required)
                arguments = lambda rate, count=count: (rate,) * count
            if arguments is not None:
                found[name] = lambda rate, function=function, arguments=arguments: function(*arguments(rate))
    return found


FACTORIES = _factories()
AFFINE = set(_WITHOUT_A_FACTORY) | {
    "add_decayed_weights", "add_noise", "apply_every", "apply_if_finite", "chain", "conditionally_mask",
    "conditionally_transform", "ema", "identity", "named_chain", "noisy_sgd", "optimistic_gradient_descent", "scale",
    "scale_by_learning_rate", "scale_by_optimistic_gradient", "scale_by_schedule", "schedule_free",
    "schedule_free_sgd", "set_to_zero", "sgd", "split_real_and_imaginary", "stateless", "stateless_with_tree_map",
    "trace", "with_extra_args_support", "zero_nans",
}  # fmt: skip
# The words of the refusal that fit, for those whose cause is none of the adaptive kind.
_CAUSES = {
    "clipped": {"adaptive_grad_clip", "clip", "clip_by_block_rms", "clip_by_global_norm"},
    "normalized": {
        "adamax", "adamaxw", "fromage", "lion", "normalize", "normalize_by_update_norm", "scale_by_adamax",
        "scale_by_lion", "scale_by_sign", "sign_sgd", "signum",
    },
    "depends on the other coordinates": {"centralize", "lars", "scale_by_trust_ratio"},
    "treats leaves differently": {"freeze", "masked", "multi_transform", "partition"},
    "in need of `": {
        "lbfgs", "momo", "momo_adam", "polyak_sgd", "reduce_on_plateau", "scale_by_backtracking_linesearch",
        "scale_by_polyak", "scale_by_zoom_linesearch", "sophia",
    },
    "MultiSteps": {"MultiSteps"},
    "lookahead": {"lookahead"},
    "sharpness-aware": {"sam"},
    "GaLore": {"galore", "scale_by_galore"},
    "Muon": {"muon", "scale_by_muon"},
    "differentially private": {"differentially_private_aggregate", "dpsgd"},
    "flatten": {"flatten"},
    "nonlinear function": {
        "cocob", "keep_params_nonnegative", "rprop", "scale_by_cocob", "scale_by_param_block_norm",
        "scale_by_param_block_rms", "scale_by_rprop",
    },
    "which is not one number per parameter": {
        "measure_with_ema", "mechanize", "novograd", "scale_by_lbfgs", "scale_by_novograd", "snapshot",
    },
    "rounding its state": {"scale_by_distance_over_gradients"},
}  # fmt: skip
_CAUSE = {name: words for words, names in _CAUSES.items() for name in names}


def _history(tx, curvatures, steps):
    """The parameters and the floating states of each coordinate, [steps + 1, n, 3], by optax itself."""
    layout, x = find_layout(tx), jnp.ones(3)
    state, history = tx.init(x), []

    @jax.jit
    def update(x, state):
        with jax.numpy_dtype_promotion("standard"):
            change, state = tx.update(curvatures * x, state, x)
            return optax.apply_updates(x, change), state

    for _ in range(steps + 1):
        history.append(np.stack([x, *layout.split(state)[0]]))
        x, state = update(x, state)
    return np.array(history)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rate", [1e-8, 0.1, 1e8])
@pytest.mark.parametrize("name", sorted(AFFINE))
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_thirty_steps_are_those_of_the_matrices(name, rate):
    tx, curvatures = FACTORIES[name](rate), np.array([0.1, 0.5, 1.0]) / rate
    found = from_optax(tx)
    if bool(found.stochastic):
        np.testing.assert_allclose(found.method.A, [[1]], rtol=1e-15)
        return
    history = np.asarray(found.state_units)[:, None] * _history(tx, jnp.asarray(curvatures), 33)
    A, B, C = (np.asarray(part) for part in (found.method.A, found.method.B, found.method.C))
    steps = 1 if bool(found.time_varying) else 30
    z = history[3]  # after the warm-up
    for k in range(4, 4 + steps):
        z = A @ z + np.outer(B, curvatures * (C @ z))
        # a step that is a difference of values of the size of the parameters is known to their rounding
        np.testing.assert_allclose(z[0], history[k, 0], rtol=1e-11, atol=1e-12 * np.max(np.abs(history[k])))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(FACTORIES) - AFFINE))
def test_all_others_are_refused_with_a_cause_that_fits(name):
    with pytest.raises(ValueError, match=r"^from_optax: tx is ") as caught:
        from_optax(FACTORIES[name](0.1))
    message = str(caught.value)
    assert _CAUSE.get(name, "adaptive, ") in message
    assert caught.value.__cause__ is caught.value.__context__ is None
    for raw in ("Array", "Tracer", "object at", "<", "Node", "\n", "Error", "State"):
        assert raw not in message
