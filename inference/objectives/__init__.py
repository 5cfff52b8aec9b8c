"""Variational objectives: small frozen NumPyro ``ELBO`` subclasses over log weights of a pair, one idea a file.

=========================  ==================================================  ==============================
objective                  bound                                               gradient of the guide
=========================  ==================================================  ==============================
``ELBO``                   E_q[log w]                                          pathwise, closed-form KL
``STL``                    the same                                            path derivative
``EnumeratedELBO``         the same                                            pathwise, discrete draws summed out
``ScoreFunction``          the same                                            likelihood ratio
``NVIL``                   the same                                            likelihood ratio, learned baseline
``IWAE(K)``                E_q[log mean_k w_k]                                 pathwise
``Renyi(alpha, K)``        E_q[log mean_k w_k^(1 - alpha)] / (1 - alpha)       pathwise
``DReG(K)``                E_q[log mean_k w_k]                                 doubly reparameterised
``VIMCO(K)``               the same                                            likelihood ratio, K baselines
``ReweightedWakeSleep(K)`` the same                                            KL(p(z | x) || q(z | x))
``Denoising``              E_q[log w], of a path, at one step a row            pathwise
``VectorQuantization``     log p(x, z), z the nearest codes                    straight through
``MovingCodebook``         the same, the codebook a moving average             straight through
=========================  ==================================================  ==============================

Around them: ``Beta``, ``FreeBits`` and ``Capacity`` (the KL's weight), ``Players`` (one objective for each
player), ``GumbelSoftmax`` and ``StraightThrough`` (relaxed discrete draws). ``UnitDenoising`` follows a diffusion's
squared error, which is no bound. Weights are per row, and
minibatches scale by N / B; globals are drawn once and the rows' bounds nest inside their expectation;
discrete latents that the guide leaves out are summed out exactly. Each loss is minus the objective, in
nats for the whole data set, usable as it is in ``numpyro.infer.SVI(model, objective.guide(guide), ...)``.
"""

from inference.objectives.denoising import Denoising, UnitDenoising
from inference.objectives.elbo import ELBO
from inference.objectives.enumerated import EnumeratedELBO
from inference.objectives.importance import IWAE, Renyi
from inference.objectives.kl_control import Beta, Capacity, FreeBits, cyclical
from inference.objectives.objective import Estimate, Objective
from inference.objectives.pair import Pair, pair
from inference.objectives.path_derivative import STL, DReG
from inference.objectives.players import Players
from inference.objectives.relaxation import GumbelSoftmax, StraightThrough
from inference.objectives.score_function import NVIL, ScoreFunction
from inference.objectives.vector_quantization import MovingCodebook, VectorQuantization, codebook_moves
from inference.objectives.vimco import VIMCO
from inference.objectives.wake_sleep import ReweightedWakeSleep

__all__ = [
    "ELBO",
    "IWAE",
    "NVIL",
    "STL",
    "VIMCO",
    "Beta",
    "Capacity",
    "DReG",
    "Denoising",
    "EnumeratedELBO",
    "Estimate",
    "FreeBits",
    "GumbelSoftmax",
    "MovingCodebook",
    "Objective",
    "Pair",
    "Players",
    "Renyi",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "StraightThrough",
    "UnitDenoising",
    "VectorQuantization",
    "codebook_moves",
    "cyclical",
    "pair",
]
