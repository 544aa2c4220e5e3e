"""The experiments of Merkulov and Oseledets, arXiv:2310.15880, repeated and checked: `python -m examples.gallery`.

Each experiment runs the problems and parameters of the paper and returns a figure, a text that holds what the paper
says beside what was measured, and the checks made on the way. `report` says how, `runs` holds what they share: runs of
several methods at once, quadratics, V, rates.

Read `runs` first, then `optimal_parameters` (quadratics, where V is right and where it is blind), `flat_modes` (mu = 0,
and V in float32), `parameters` (the region of certificates), `counterexamples` (cycles of the heavy ball), `nonlinear`
(Rosenbrock's function and exp(|x|^2)).
"""

from examples.gallery.counterexamples import cycles as cycles
from examples.gallery.flat_modes import flat_modes_and_precision as flat_modes_and_precision
from examples.gallery.nonlinear import exponential as exponential
from examples.gallery.nonlinear import rosenbrock as rosenbrock
from examples.gallery.optimal_parameters import quadratics as quadratics
from examples.gallery.parameters import other_parameters as other_parameters
from examples.gallery.report import Experiment as Experiment
