"""Which questions tell students apart: a two-parameter logistic item response model, fitted with priors."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

PRIOR_SD = 1.0
N_NODES = 21


def fit_2pl(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return discrimination and difficulty of every question, as the posterior mode.

    P(right) = sigmoid(a * (theta - b)); priors theta, b ~ N(0, 1) and log a ~ N(0, 1), which twenty responders need.
    The abilities theta are integrated out.

    Args:
        right: 1.0 where the responder answered the question correctly, shape (n_responders, n_questions).

    Returns:
        a and b, each of shape (n_questions,); larger a tells responders apart better, larger b is harder.

    Source: ARTE, arXiv:2406.19227, section 3.2 and appendix E. Deviation: the paper names two ways of fitting that
    contradict each other (Bayesian inference, iterative maximum likelihood); the mode under these priors is ours.
    """
    right = np.asarray(right, dtype=float)
    if right.ndim != 2 or 0 in right.shape or not np.isin(right, (0.0, 1.0)).all():
        raise ValueError(f"right must be a table of 0 and 1 (responders x questions), got shape {right.shape}.")
    # Joint estimates of abilities and questions run away as responders grow: one question ends up defining the ability.
    # So abilities are integrated out, at the nodes of a Gauss-Hermite rule.
    abilities, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    prior = np.log(weights / weights.sum())

    def loss(packed: np.ndarray) -> tuple[float, np.ndarray]:
        log_a, b = np.split(packed, 2)
        a = np.exp(log_a)
        logit = a * (abilities[:, None] - b)
        joint = right @ log_expit(logit).T + (1 - right) @ log_expit(-logit).T + prior
        marginal = logsumexp(joint, axis=1)
        ability = np.exp(joint - marginal[:, None])  # of each responder, given its answers
        missed = ability.sum(0)[:, None] * expit(logit) - ability.T @ right
        gradient = np.concatenate([(missed * logit).sum(0), -(missed * a).sum(0)])
        return -marginal.sum() + (packed**2).sum() / (2 * PRIOR_SD**2), gradient + packed / PRIOR_SD**2

    start = np.zeros(2 * right.shape[1])
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    log_a, b = np.split(fitted, 2)
    return np.exp(log_a), b
