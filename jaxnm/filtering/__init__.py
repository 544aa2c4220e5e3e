"""Particle filters with right evidence and right gradients, and the memory-efficient particle-filter GRU.

`weights`: log-weights, normalized. `resampling`: which particle descends from which, in linear time. `models`: what a
filter needs to know of a system; `known_functions`, `user_functions`: how its functions are compared, called and
checked. `clouds`, `filter_steps`, `particle_filter`: the filter, over a record or one
observation at a time; `sharded`: over devices. `linear_gaussian`, `kalman`: the models that have an exact filter, and
that filter. `smoothing`: lines of descent, trajectories drawn backwards, how a cloud degenerates. `worlds`: mazes
with beacons, a simulator of robots, their model; `histogram`: the exact filter on a grid. `particle_steps`, `cells`:
learned cells whose state is a cloud; `unrolling`: sequences through them; `losses`, `motion`: what they are trained
by; `training`, `checkpoints`: training that resumes exactly.
Conventions: the first observation belongs to the initial state; a cloud is resampled at the start of a step, so that
what comes out is weighted; NaN in an observation means missing; keys are typed and come first.
"""

from jaxnm.filtering.cells import CellOutput as CellOutput
from jaxnm.filtering.cells import MePFRNN as MePFRNN
from jaxnm.filtering.cells import PFGRUCell as PFGRUCell
from jaxnm.filtering.cells import PFLSTMCell as PFLSTMCell
from jaxnm.filtering.checkpoints import load_parameters as load_parameters
from jaxnm.filtering.checkpoints import save_parameters as save_parameters
from jaxnm.filtering.clouds import FilterHistory as FilterHistory
from jaxnm.filtering.clouds import FilterResult as FilterResult
from jaxnm.filtering.clouds import FilterState as FilterState
from jaxnm.filtering.clouds import FilterStep as FilterStep
from jaxnm.filtering.histogram import HistogramResult as HistogramResult
from jaxnm.filtering.histogram import histogram_filter as histogram_filter
from jaxnm.filtering.kalman import KalmanResult as KalmanResult
from jaxnm.filtering.kalman import KalmanSmoothing as KalmanSmoothing
from jaxnm.filtering.kalman import kalman_filter as kalman_filter
from jaxnm.filtering.kalman import kalman_smoother as kalman_smoother
from jaxnm.filtering.linear_gaussian import LinearGaussianModel as LinearGaussianModel
from jaxnm.filtering.linear_gaussian import as_state_space_model as as_state_space_model
from jaxnm.filtering.linear_gaussian import optimal_proposal as optimal_proposal
from jaxnm.filtering.linear_gaussian import simulate_linear_gaussian as simulate_linear_gaussian
from jaxnm.filtering.losses import elbo_loss as elbo_loss
from jaxnm.filtering.losses import localization_loss as localization_loss
from jaxnm.filtering.models import StateSpaceModel as StateSpaceModel
from jaxnm.filtering.models import observed_log_density as observed_log_density
from jaxnm.filtering.motion import motion_loss as motion_loss
from jaxnm.filtering.particle_filter import filter_init as filter_init
from jaxnm.filtering.particle_filter import filter_step as filter_step
from jaxnm.filtering.particle_filter import particle_filter as particle_filter
from jaxnm.filtering.particle_steps import ParticleCarry as ParticleCarry
from jaxnm.filtering.resampling import resample as resample
from jaxnm.filtering.resampling import soft_resample as soft_resample
from jaxnm.filtering.sharded import sharded_particle_filter as sharded_particle_filter
from jaxnm.filtering.smoothing import Degeneracy as Degeneracy
from jaxnm.filtering.smoothing import SampledPaths as SampledPaths
from jaxnm.filtering.smoothing import backward_sample as backward_sample
from jaxnm.filtering.smoothing import degeneracy as degeneracy
from jaxnm.filtering.smoothing import genealogy as genealogy
from jaxnm.filtering.smoothing import smoothed_mean as smoothed_mean
from jaxnm.filtering.training import LocalizationErrors as LocalizationErrors
from jaxnm.filtering.training import TrainingResult as TrainingResult
from jaxnm.filtering.training import evaluate as evaluate
from jaxnm.filtering.training import network_inputs as network_inputs
from jaxnm.filtering.training import train as train
from jaxnm.filtering.unrolling import RecurrentBaseline as RecurrentBaseline
from jaxnm.filtering.unrolling import initial_particles as initial_particles
from jaxnm.filtering.unrolling import unroll as unroll
from jaxnm.filtering.weights import effective_sample_size as effective_sample_size
from jaxnm.filtering.weights import normalize as normalize
from jaxnm.filtering.worlds import Trajectories as Trajectories
from jaxnm.filtering.worlds import World as World
from jaxnm.filtering.worlds import is_free as is_free
from jaxnm.filtering.worlds import labyrinth as labyrinth
from jaxnm.filtering.worlds import localization_model as localization_model
from jaxnm.filtering.worlds import maze10 as maze10
from jaxnm.filtering.worlds import maze18 as maze18
from jaxnm.filtering.worlds import maze27 as maze27
from jaxnm.filtering.worlds import nearest_ranges as nearest_ranges
from jaxnm.filtering.worlds import simulate as simulate
from jaxnm.filtering.worlds import world_from_map as world_from_map
