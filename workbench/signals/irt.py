"""Which questions tell students apart: a two-parameter logistic item response model, fitted with priors."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

PRIOR_SD = 1.0


def fit_2pl(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return discrimination and difficulty of every question, as the posterior mode.

    P(right) = sigmoid(a * (theta - b)); priors theta, b ~ N(0, 1) and log a ~ N(0, 1), which twenty responders need.

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
    n_responders, n_questions = right.shape

    def loss(packed: np.ndarray) -> tuple[float, np.ndarray]:
        theta, log_a, b = np.split(packed, [n_responders, n_responders + n_questions])
        a = np.exp(log_a)
        distance = theta[:, None] - b
        logit = a * distance
        # softplus(logit) - right * logit is minus the log-likelihood of each answer.
        fit = np.logaddexp(0, logit).sum() - (right * logit).sum()
        missed = expit(logit) - right
        gradient = np.concatenate([(missed * a).sum(1), (missed * logit).sum(0), -(missed * a).sum(0)])
        return fit + (packed**2).sum() / (2 * PRIOR_SD**2), gradient + packed / PRIOR_SD**2

    start = np.zeros(n_responders + 2 * n_questions)
    # At a start of all zeros theta and b could never part, so responders start apart by their share of right answers.
    start[:n_responders] = (right.mean(1) - right.mean()) * 2
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    _, log_a, b = np.split(fitted, [n_responders, n_responders + n_questions])
    return np.exp(log_a), b
