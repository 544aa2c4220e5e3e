"""What does a noisy record hide? The level of the Nile, and the volatility of a stock index, by particle filters.

The level of the river has an exact filter, Kalman's, to which the particles are held: their evidence, and the levels
that they draw backwards, with forty years of the record taken away too. Volatility has none: its parameters climb the
evidence of the particles, and are judged by returns that came after, and by the option market, which saw neither.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arch.data import sp500, vix
from jax import Array
from jax.tree_util import Partial
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from statsmodels.datasets import nile

import jaxnm.filtering as pf
from examples import localization
from jaxnm.plot import filtering as plot

NUM_SECTIONS = 3
PUBLISHED_VARIANCES = (15099.0, 1469.1)
"""Of observation and level: J. Durbin, S. J. Koopman, Time Series Analysis by State Space Methods, section 2.10."""
PUBLISHED_EVIDENCE = -632.5456
"""Its logarithm given the first year, with a flat prior of the level: that of R's package KFAS, and of R's `arima`."""
NILE_PARTICLES, NILE_SEEDS, NILE_CLOUDS, NILE_TRAJECTORIES = 500, 256, 16, 32
GAPS = ((1891, 1910), (1931, 1950))
DAM = 1899
FITTED = ("2004-01-01", "2013-12-31")
"""The days that the parameters of the volatility see."""
FIT_PARTICLES, FIT_STEPS, LEARNING_RATE = 300, 40, 0.05
FORECAST_PARTICLES, FORECAST_SEEDS = 500, 8
LOG_SQUARE_MEAN = -np.euler_gamma - np.log(2).item()
"""Mean of log w^2 for a standard normal w; its variance is pi^2 / 2."""
VOLATILITIES = ("quasi-likelihood", "fitted", "fitted, leverage", "the same, Student's t")
NORMAL = 1e6
"""So many degrees of freedom that Student's distribution is the normal one to a few digits of the evidence."""
YEAR = 252
"""Trading days."""
HOW_TO_READ = """\
A state x_t that is not seen moves at random, and each y_t depends on x_t alone. A particle filter carries weighted
guesses of it along. Its evidence, the density that the model gave to the record, is unbiased, and its logarithm is low
by half its variance."""

Section = tuple[str, dict[str, bool]]
Experiment = tuple[Figure, str, dict[str, bool]]
"""A figure, text, and checks that must hold."""


def sections(folder: Path) -> Iterator[Section]:
    """The parts of the chapter, one at a time: a text and the checks made on the way. Pictures go to `folder`."""
    text, held = localization.section(folder)
    yield f"{HOW_TO_READ}\n\n{text}", held
    for name, part in {"nile": level_of_the_nile, "volatility": volatility_of_an_index}.items():
        figure, text, held = part()
        path = folder / f"hidden_{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        yield f"{text}\n  picture: {path}", held


def climb(log_evidence: Callable[[Array], Array], start: Array, num_steps: int = 12) -> tuple[Array, Array, float]:
    """Newton's steps up to a maximum: where, the covariance of the estimate by the curvature there, largest slope."""

    @jax.jit
    def step(theta: Array) -> tuple[Array, Array, Array]:
        slope = jax.jacfwd(log_evidence)  # of two or three parameters
        curvature, gradient = jax.jacfwd(lambda theta: (slope(theta),) * 2, has_aux=True)(theta)
        values, vectors = jnp.linalg.eigh(curvature)
        move = vectors @ ((vectors.T @ gradient) / jnp.abs(values))  # uphill where it is not concave
        return theta + move * jnp.minimum(1, 1 / jnp.linalg.norm(move)), gradient, curvature

    theta = start
    for _ in range(num_steps - 1):
        theta, _, _ = step(theta)
    theta, gradient, curvature = step(theta)
    return theta, jnp.linalg.inv(-curvature), float(jnp.max(jnp.abs(gradient)))


# ------------------------------------------------------------------------------------------------------- the Nile


class Levels(NamedTuple):
    """The level in every year given a whole record."""

    exact: pf.KalmanSmoothing
    trajectories: np.ndarray
    """[clouds, trajectories, years], drawn backwards through independent particle filters."""

    @property
    def mean(self) -> np.ndarray:
        """Of Kalman's smoother."""
        return np.asarray(self.exact.means[:, 0])

    @property
    def deviation(self) -> np.ndarray:
        """Its standard deviation."""
        return np.sqrt(np.asarray(self.exact.covariances[:, 0, 0]))

    def misfit(self) -> tuple[float, float]:
        """Root mean squares over the years: of the drawn means in their standard errors; of the drawn deviations."""
        clouds = self.trajectories.mean(1)
        error = clouds.std(0, ddof=1) / np.sqrt(len(clouds))
        rms = lambda x: float(np.sqrt(np.mean(x**2)))
        together = self.trajectories.reshape(-1, self.mean.size)
        return rms((clouds.mean(0) - self.mean) / error), rms(together.std(0) / self.deviation - 1)


@cache
def flows() -> tuple[np.ndarray, np.ndarray]:
    """Years, and annual flows [100] in 1e8 m^3."""
    years, volumes = np.asarray(nile.load_pandas().data, float).T
    return years.astype(int), volumes


def local_level(log_variances: Array) -> pf.LinearGaussianModel:
    """A level that walks at random, and flows around it: log-variances of flow and level.

    The level of the first year is what its flow says under a flat prior; so that flow must be missing in the record.
    """
    one = jnp.ones((1, 1))
    observation, level = jnp.exp(log_variances)[:, None, None]
    return pf.LinearGaussianModel(jnp.asarray(flows()[1][:1]), observation, one, level, one, observation)


@jax.jit
def nile_evidence(log_variances: Array, record: Array) -> Array:
    """Kalman's log-evidence given the first year."""
    return pf.kalman_filter(local_level(log_variances), record).log_evidence


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def nile_particles(key: Array, log_variances: Array, record: Array) -> Array:
    """The log-evidence by particles."""
    model = pf.as_state_space_model(local_level(log_variances))
    return pf.particle_filter(key, model, record, num_particles=NILE_PARTICLES).log_evidence


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def nile_trajectories(key: Array, log_variances: Array, record: Array) -> Array:
    """Levels [trajectories, years] drawn from their distribution given the record, through one cloud of particles."""
    model = pf.as_state_space_model(local_level(log_variances))
    forward, backward = jax.random.split(key)
    result = pf.particle_filter(forward, model, record, num_particles=NILE_PARTICLES, history="full")
    return pf.backward_sample(backward, model, result, NILE_TRAJECTORIES).states[..., 0]


def level_of_the_nile() -> Experiment:
    """Fit, evidence by particles against Kalman's, smoothed levels, missing years, the dam."""
    years, observed = flows()
    record = jnp.asarray(observed)[:, None].at[0].set(jnp.nan)
    missing = np.any([(years >= first) & (years <= last) for first, last in GAPS], axis=0)
    start = jnp.full(2, np.log(np.var(observed) / 2))
    theta, spread, slope = climb(lambda theta: nile_evidence(theta, record), start)
    variances, relative = jnp.exp(theta), jnp.sqrt(jnp.diagonal(spread))
    published = jnp.log(jnp.asarray(PUBLISHED_VARIANCES))
    exact, at_published = (float(nile_evidence(point, record)) for point in (theta, published))

    errors = np.asarray(nile_particles(jax.random.split(jax.random.key(0), NILE_SEEDS), theta, record)) - exact
    root = np.sqrt(NILE_SEEDS)
    mean, deviation = errors.mean(), errors.std(ddof=1)
    ratio, ratio_error = np.exp(errors).mean(), np.exp(errors).std(ddof=1) / root
    # the variance of a sample variance is 2 var^2 / n
    bias_error = np.hypot(deviation / root, deviation**2 / (np.sqrt(2) * root))

    keys = jax.random.split(jax.random.key(1), NILE_CLOUDS)
    levels = {}
    for name, kept in {"all years": record, "with gaps": jnp.where(missing[:, None], jnp.nan, record)}.items():
        drawn = np.asarray(nile_trajectories(keys, theta, kept))
        levels[name] = Levels(pf.kalman_smoother(local_level(theta), kept), drawn)
    whole, gapped = levels.values()
    standardized = disturbances(whole.exact, float(variances[1]))
    drop = int(np.argmax(np.abs(standardized))) + 1
    width = np.sqrt(gapped.deviation**2 + float(variances[0]))
    inside = np.mean(np.abs(observed - gapped.mean)[missing] < 2 * width[missing])
    lines = [
        "The Nile at Aswan, 1871-1970, annual flow in 1e8 m^3 (from statsmodels): y_t = level_t + noise, and the level",
        "walks at random. Evidence of 1872-1970 given 1871.",
        f"  {'variances':<30}{'of the flow':>14}{'of the level':>14}{'log-evidence':>16}",
        f"  {'published':<30}{PUBLISHED_VARIANCES[0]:>14,.0f}{PUBLISHED_VARIANCES[1]:>14,.1f}"
        f"{PUBLISHED_EVIDENCE:>16.4f}",
        f"  {'the same, by kalman_filter':<30}{PUBLISHED_VARIANCES[0]:>14,.0f}{PUBLISHED_VARIANCES[1]:>14,.1f}"
        f"{at_published:>16.4f}",
        f"  {'largest, by Newton steps':<30}{variances[0]:>14,.1f}{variances[1]:>14,.2f}{exact:>16.4f}",
        f"  {'  their standard errors':<30}{relative[0]:>14.0%}{relative[1]:>14.0%}{'':>16}",
        f"  {NILE_SEEDS} particle filters of {NILE_PARTICLES:,}, all under one vmap, against Kalman's at the largest:",
        f"  log-evidence         {mean:+.4f} +- {deviation / root:.4f}; minus half its variance is "
        f"{-(deviation**2) / 2:+.4f}",
        f"  ratio of evidences   {ratio:.4f} +- {ratio_error:.4f}",
        f"  {NILE_CLOUDS * NILE_TRAJECTORIES} trajectories drawn backwards, against Kalman's smoother (root mean "
        "squares over the years):",
    ]
    held = {
        "Nile: the evidence at the published variances is the published one": abs(at_published - PUBLISHED_EVIDENCE)
        < 1e-4,
        "Nile: the evidence is largest at the published variances": abs(float(variances[0]) - PUBLISHED_VARIANCES[0])
        < 1
        and abs(float(variances[1]) - PUBLISHED_VARIANCES[1]) < 0.1
        and slope < 1e-8,
        "Nile: the evidence of the particles is unbiased": bool(abs(ratio - 1) < 4 * ratio_error),
        "Nile: its logarithm is low by half its variance": bool(abs(mean + deviation**2 / 2) < 4 * bias_error),
        "Nile: most of the flows taken away lie in the band": bool(inside >= 0.85),
        "Nile: the largest change of the level came with the dam": bool(years[drop] == DAM),
    }
    for name, found in levels.items():
        off, wide = found.misfit()
        lines.append(
            f"  {name:<20} mean off by {off:.2f} of its standard error, standard deviation by {wide:.1%}; the widest "
            f"band +- {2 * found.deviation.max():.0f} in {years[np.argmax(found.deviation)]}"
        )
        # one is expected for the means, with some twenty independent years; draws of 1024 give deviations to 2 %
        held[f"Nile, {name}: drawn levels have the mean of Kalman's smoother"] = off < 2
        held[f"Nile, {name}: drawn levels have the deviation of Kalman's smoother"] = wide < 0.1
    lines += [
        f"  missing years        of {missing.sum()} flows taken away, {inside:.0%} lie within 2 standard deviations",
        f"  the dam              largest change of the level: {standardized[drop - 1]:+.1f} standard deviations, from "
        f"{years[drop - 1]} to {years[drop]}",
    ]
    return draw_nile(years, observed, missing, levels), "\n".join(lines), held


def disturbances(smoothing: pf.KalmanSmoothing, variance: float) -> np.ndarray:
    """[years - 1]: moves of the level given the record, over their standard deviations if the model is right."""
    means, covariances = np.asarray(smoothing.means[:, 0]), np.asarray(smoothing.covariances[:, 0, 0])
    uncertain = covariances[1:] + covariances[:-1] - 2 * np.asarray(smoothing.cross_covariances[:, 0, 0])
    return np.diff(means) / np.sqrt(variance - uncertain)


def draw_nile(years: np.ndarray, observed: np.ndarray, missing: np.ndarray, levels: dict[str, Levels]) -> Figure:
    """The smoothed level by both filters, with and without the missing years."""
    figure, axes = plt.subplots(2, figsize=(10, 7.5), sharex=True, sharey=True, layout="constrained")
    for ax, (name, found) in zip(axes, levels.items(), strict=True):
        gap = missing if name == "with gaps" else np.zeros_like(missing)
        kept = np.where(gap, np.nan, observed)
        labels = ("year", "annual flow (1e8 m$^3$)")
        plot.state_band(
            years, found.mean, found.deviation, observations=kept, label="level, Kalman", labels=labels, ax=ax
        )
        drawn = found.trajectories.reshape(-1, years.size)
        style = {"color": "C1", "linestyle": "--"}
        ax.plot(years, drawn.mean(0), label="level, particles", **style)
        for side in (-2, 2):
            ax.plot(years, drawn.mean(0) + side * drawn.std(0), linewidth=0.8, **style)
        if gap.any():
            ax.plot(years[gap], observed[gap], "o", color="0.35", fillstyle="none", markersize=4, label="taken away")
        ax.axvline(DAM - 0.5, color="0.5", linewidth=0.8, linestyle=":")
        ax.legend(ncols=3, loc="upper right", fontsize="small")
    axes[0].text(DAM - 1, observed.min(), "the dam at Aswan is begun", ha="right", color="0.4", fontsize="small")
    axes[0].set(xlabel="", title="the level of the Nile given a hundred years of flows")
    axes[1].set_title("the same with forty of them taken away")
    return figure


# ------------------------------------------------------------------------------------------------- volatility


class Market(NamedTuple):
    """Daily log-returns of the S&P 500, less their mean over the days of the fit."""

    dates: np.ndarray
    """[days], of type datetime64."""
    returns: Array
    """[days], in per cent."""
    fitted: np.ndarray
    """[days], whether the fit sees a day."""


class Forecasts(NamedTuple):
    """What was said of every day on the day before, by models and seeds."""

    variance: Array
    """[models, seeds, days], of the return."""
    log_density: Array
    """[models, seeds, days], of the return that came."""
    effective_sample_size: Array
    """[models, seeds, days]."""


@cache
def market() -> Market:
    """The index that the package arch ships, 1999 to 2018."""
    prices = sp500.load()["Close"]
    dates = np.asarray(prices.index, "datetime64[D]")[1:]
    returns = 100 * np.diff(np.log(prices.to_numpy()))
    first, last = np.array(FITTED, "datetime64[D]")
    fitted = (dates >= first) & (dates <= last)
    return Market(dates, jnp.asarray(returns - returns[fitted].mean()), fitted)


class Parameters(NamedTuple):
    """Of stochastic volatility with leverage and Student's noise."""

    mean: Array
    """Of the log-variance x."""
    persistence: Array
    """Share of x - mean that is left a day later."""
    deviation: Array
    """Standard deviation of the daily moves of x."""
    correlation: Array
    """Between the return of a day and the move after it."""
    freedom: Array
    """Degrees of freedom of the returns."""


def natural(theta: Array) -> Parameters:
    """From unbounded parameters [5]."""
    return Parameters(theta[0], jnp.tanh(theta[1]), jnp.exp(theta[2]), jnp.tanh(theta[3]), jnp.exp(theta[4]))


def expected_move(theta: Array, x: Array, last_return: Array) -> tuple[Array, Array]:
    """Mean of the log-variance of the next day, and variance about it."""
    p = natural(theta)
    shock = last_return * jnp.exp(-x / 2)
    centre = p.mean + p.persistence * (x - p.mean) + p.deviation * p.correlation * shock
    return centre, p.deviation**2 * (1 - p.correlation**2)


def sample_initial(theta: Array, key: Array, num: int) -> Array:
    """From the stationary distribution without a known return."""
    p = natural(theta)
    return p.mean + p.deviation / jnp.sqrt(1 - p.persistence**2) * jax.random.normal(key, (num,), theta.dtype)


def sample_transition(theta: Array, key: Array, x: Array, time: Array, last_return: Array) -> Array:
    """The log-variance of the next day."""
    centre, variance = expected_move(theta, x, last_return)
    return centre + jnp.sqrt(variance) * jax.random.normal(key, x.shape, x.dtype)


def log_likelihood(theta: Array, x: Array, observation: Array, time: Array) -> Array:
    """Student's, of a return with the scale exp(x / 2)."""
    n = natural(theta).freedom
    constant = jax.scipy.special.gammaln((n + 1) / 2) - jax.scipy.special.gammaln(n / 2) - 0.5 * jnp.log(n * jnp.pi)
    return constant - 0.5 * x - 0.5 * (n + 1) * jnp.log1p(observation**2 * jnp.exp(-x) / n)


def volatility_model(theta: Array) -> pf.StateSpaceModel:
    """Stochastic volatility; the control is the last return, which acts where the correlation is not zero."""
    return pf.StateSpaceModel(
        sample_initial=Partial(sample_initial, theta),
        sample_transition=Partial(sample_transition, theta),
        log_likelihood=Partial(log_likelihood, theta),
        controlled=True,
    )


def with_last(returns: Array) -> tuple[Array, Array]:
    """Observations and controls."""
    return returns, jnp.concatenate([jnp.zeros(1), returns[:-1]])


def quasi_evidence(theta: Array, log_squares: Array) -> Array:
    """Kalman's log-evidence of log y_t^2 [days, 1], with log w_t^2 taken for normal; theta [3], no leverage."""
    mean, persistence, deviation = natural(jnp.pad(theta, (0, 2)))[:3]
    square = lambda value: jnp.reshape(value, (1, 1))
    model = pf.LinearGaussianModel(
        mean[None],
        square(deviation**2 / (1 - persistence**2)),
        square(persistence),
        square(deviation**2),
        jnp.ones((1, 1)),
        jnp.full((1, 1), jnp.pi**2 / 2),
        (mean * (1 - persistence))[None],
        jnp.full(1, LOG_SQUARE_MEAN),
    )
    return pf.kalman_filter(model, log_squares).log_evidence


@jax.jit
def ascend(starts: Array, free: Array, returns: Array) -> Array:
    """[steps, models, parameters]: Adam up the evidence of the particles, several models [models, parameters] at once.

    `free` is zero for parameters that stay as they are.
    """
    record = with_last(returns)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, FIT_STEPS))

    def loss(theta: Array, key: Array) -> Array:
        model = volatility_model(theta)
        return -pf.particle_filter(key, model, record, num_particles=FIT_PARTICLES, gradient="stop").log_evidence

    def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
        theta, state = carry
        slopes = jax.vmap(jax.grad(loss))(theta, jax.random.split(key, len(theta)))
        updates, state = optimizer.update(slopes * free, state)
        theta = theta + updates
        return (theta, state), theta

    keys = jax.random.split(jax.random.key(2), FIT_STEPS)
    return jax.lax.scan(step, (starts, optimizer.init(starts)), keys)[1]


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
@partial(jax.vmap, in_axes=(None, 0, None))
def forecast(theta: Array, key: Array, returns: Array) -> Forecasts:
    """One day at a time: say what is expected, then see the return."""
    model = volatility_model(theta)
    record, last = with_last(returns)
    at = lambda t: (record[t], last[t])
    p = natural(theta)
    of_scale = p.freedom / (p.freedom - 2)
    stationary = of_scale * jnp.exp(p.mean + p.deviation**2 / (1 - p.persistence**2) / 2)
    state, first = pf.filter_init(jax.random.fold_in(key, 0), model, at(0), num_particles=FORECAST_PARTICLES)

    def day(state: pf.FilterState, t: Array) -> tuple[pf.FilterState, Forecasts]:
        centre, variance = expected_move(theta, state.particles, last[t])
        expected = of_scale * jnp.sum(jnp.exp(state.log_weights + centre + variance / 2))
        state, told = pf.filter_step(jax.random.fold_in(key, t), model, state, at(t))
        return state, Forecasts(expected, told.log_evidence_increment, told.effective_sample_size)

    _, rest = jax.lax.scan(day, state, jnp.arange(1, len(returns), dtype=jnp.int32))
    start = Forecasts(stationary, first.log_evidence_increment, first.effective_sample_size)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)


def fit_volatility() -> tuple[dict[str, Array], float]:
    """Parameters of every model, the quasi-likelihood first, and the slope that is left at the maximum of that."""
    _, returns, fitted = market()
    seen = returns[np.flatnonzero(fitted)]
    moments = jnp.array([jnp.log(jnp.var(seen)), 2.0, -1.5])
    quasi, _, slope = climb(partial(quasi_evidence, log_squares=jnp.log(seen**2)[:, None]), moments)
    start = jnp.append(quasi, jnp.array([0.0, np.log(NORMAL)]))
    leverage = start.at[3].set(-0.5)
    starts = jnp.stack([start, leverage, leverage.at[4].set(np.log(20.0))])
    free = jnp.array([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    found = jnp.mean(ascend(starts, free, seen)[FIT_STEPS // 2 :], 0)  # the path is noisy, its average less so
    return dict(zip(VOLATILITIES, (start, *found), strict=True)), slope


def volatility_of_an_index() -> Experiment:
    """Forecasts of every day by the fitted models, against the returns, constant volatility, and the option market."""
    dates, returns, fitted = market()
    models, slope = fit_volatility()
    keys = jax.random.split(jax.random.key(3), FORECAST_SEEDS)
    found = jax.tree.map(np.asarray, forecast(jnp.stack(list(models.values())), keys, returns))
    y, later = np.asarray(returns), dates > np.datetime64(FITTED[1])
    variance = np.var(y[fitted])
    constant = -0.5 * (np.log(2 * np.pi * variance) + y**2 / variance)
    evidence = found.log_density[..., fitted].sum(-1)
    error = evidence.std(1, ddof=1) / np.sqrt(FORECAST_SEEDS)
    evidence, after = evidence.mean(1), found.log_density[..., later].sum(-1).mean(1)
    volatility = np.sqrt(found.variance.mean(1))  # [models, days]
    lines = [
        "Daily returns y_t of the S&P 500 in per cent, 1999-2018 (from arch): y_t = exp(x_t / 2) w_t, and",
        "x_t+1 = mean + persistence (x_t - mean) + deviation v_t. Leverage: v_t and w_t have a correlation.",
        f"The fit sees the {fitted.sum():,} days of 2004-2013: first a quasi-likelihood by a Kalman filter on "
        "log y_t^2, from",
        f"there {FIT_STEPS} steps of Adam up the evidence of {FIT_PARTICLES} particles, three models under one vmap.",
        f"  {'':<24}{'mean':>7}{'pers.':>8}{'dev.':>7}{'corr.':>7}{'log-evidence':>17}{'2014-18':>9}{'kurt.':>7}"
        f"{'in 2 sd':>9}",
        f"  {'constant volatility':<24}{np.log(variance):>7.2f}{'':>22}{constant[fitted].sum():>10.1f}{'':>7}"
        f"{constant[later].sum():>9.1f}{kurtosis(y):>7.2f}{np.mean(np.abs(y) < 2 * np.sqrt(variance)):>9.1%}",
    ]
    held = {"volatility: the quasi-likelihood is at its maximum": slope < 1e-6}
    for number, (name, theta) in enumerate(models.items()):
        p = jax.device_get(natural(theta))
        standardized = y / volatility[number]
        peak = str(dates[int(np.argmax(volatility[number]))])
        lines.append(
            f"  {name:<24}{p.mean:>7.2f}{p.persistence:>8.4f}{p.deviation:>7.3f}{p.correlation:>7.2f}"
            f"{evidence[number]:>10.1f} +- {error[number]:.1f}{after[number]:>9.1f}{kurtosis(standardized):>7.2f}"
            f"{np.mean(np.abs(standardized) < 2):>9.1%}"
        )
        held |= {
            f"volatility, {name}: persistence between 0.9 and 1": bool(0.9 < p.persistence < 1),
            f"volatility, {name}: a hundred standard errors above constant volatility": bool(
                evidence[number] - constant[fitted].sum() > 100 * error[number]
            ),
            f"volatility, {name}: above it after the fit too": bool(after[number] > constant[later].sum()),
            f"volatility, {name}: the peak is in autumn 2008": peak[:7] in ("2008-09", "2008-10", "2008-11"),
            f"volatility, {name}: in units of it, half of the excess kurtosis is gone": kurtosis(standardized) - 3
            < (kurtosis(y) - 3) / 2,
        }
    gain, gain_error = np.diff(evidence), np.hypot(error[1:], error[:-1])
    gains = [f"{change:+.1f} +- {by:.1f}" for change, by in zip(gain, gain_error, strict=True)]
    options = vix.load()["vix"].reindex(dates[:-1]).to_numpy()  # of the evening before
    both = np.isfinite(options)
    agreement = [np.corrcoef(row[1:][both], options[both])[0, 1] for row in volatility]
    lines += [
        f"  gain in evidence     by the fit {gains[0]}, by leverage {gains[1]}, by Student's t {gains[2]} "
        f"({natural(theta).freedom:.0f} degrees of freedom)",
        f"  highest volatility   {np.sqrt(YEAR) * volatility[-1].max():.0f} per cent a year, expected for "
        f"{dates[int(np.argmax(volatility[-1]))]}",
        f"  against the VIX      of the evening before, {both.sum():,} days from 2014 on that no fit saw: correlation "
        + ", ".join(f"{value:.2f}" for value in agreement),
        f"  log-evidence: mean of {FORECAST_SEEDS} seeds and its standard error; 2014-18: log-density of the "
        f"{later.sum():,} days after the fit; kurt.:",
        "  kurtosis of y_t over the deviation expected the day before (normal: 3), and its share within 2, all days",
    ]
    held |= {
        "volatility: the fit loses no evidence beyond its error": bool(gain[0] > -4 * gain_error[0]),
        "volatility: leverage gains ten standard errors": bool(gain[1] > 10 * gain_error[1]),
        "volatility: Student's t gains four standard errors": bool(gain[2] > 4 * gain_error[2]),
        "volatility: the option market agrees, more so with leverage": bool(agreement[2] > max(0.7, agreement[1])),
    }
    return draw_volatility(volatility[-1], found.effective_sample_size[-1, 0]), "\n".join(lines), held


def kurtosis(x: np.ndarray) -> float:
    """Fourth central moment over the square of the second; 3 for a normal distribution."""
    centred = x - x.mean()
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2)


def draw_volatility(volatility: np.ndarray, sizes: np.ndarray) -> Figure:
    """Returns in the band of what was expected, volatility beside that of the option market, sample sizes."""
    dates, returns, fitted = market()
    figure, (top, middle, bottom) = plt.subplots(
        3, figsize=(11, 9), sharex=True, height_ratios=(3, 2, 1.2), layout="constrained"
    )
    labels = ("", "daily return (per cent)")
    plot.state_band(
        dates, np.zeros_like(volatility), volatility, observations=returns, label="expected", labels=labels, ax=top
    )
    top.set_ylim(-12.5, 12.5)
    top.set_title("S&P 500: returns in the band that was expected the day before (stochastic volatility with leverage)")
    options = vix.load()["vix"]
    middle.semilogy(
        dates, np.sqrt(YEAR) * volatility, color="C0", linewidth=0.8, label="particle filter, for the day after"
    )
    middle.plot(options.index, options, color="C1", linewidth=0.8, label="VIX, for the month after")
    ticks = (5, 10, 20, 40, 80)
    middle.set(ylim=(2.8, 110), ylabel="volatility\n(per cent a year)", yticks=ticks, yticklabels=map(str, ticks))
    middle.minorticks_off()
    bottom.plot(dates, sizes, color="C0", linewidth=0.5)
    bottom.set(ylim=(0, FORECAST_PARTICLES), ylabel=f"effective sample\nsize of {FORECAST_PARTICLES:,}", xlabel="year")
    for ax in (top, middle, bottom):
        ax.axvspan(*dates[fitted][[0, -1]], color="0.5", alpha=0.1, linewidth=0, label="days of the fit")
    for ax in (top, middle):
        ax.legend(loc="lower left", ncols=4, fontsize="small")
    bottom.set_xlim(dates[0], dates[-1])
    return figure
