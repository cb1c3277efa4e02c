"""What the agents' policies are distributions of: discrete actions of which some are unavailable,
or real numbers.

`policy_distribution(outputs, avail_actions, continuous)` makes one distribution per row out of what
a policy network puts out. Leading axes [...] are arbitrary, e.g. [N, A]; U is the number of
actions, or of entries of a continuous one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, TanhTransform, kl_divergence

LOG_STD_RANGE = (-5.0, 2.0)
# tanh(5) is 0.9999. Actions of a mean far beyond are all 1 in float32: where in the tail they came
# from is lost, a narrow policy then calls its own actions impossible, and its entropy seems to grow
# with the mean without bound.
MEAN_BOUND = 5.0
# The largest float32 below 1 is 1 - 6e-8. Actions this near to the bounds are taken for ones a
# little further inside.
_LARGEST = 1.0 - 1e-6
_TANH = TanhTransform()


class MaskedCategorical:
    """Discrete policies: unavailable actions have probability 0, and nothing of them reaches a
    gradient.

    Where no action is available (behind an episode's end) all of them are equally probable.

    Args:
        logits: [..., U].
        avail_actions: [..., U], nonzero where available; padding of smaller action sets is not.

    Attributes:
        log_probs: [..., U]; of an unavailable action the lowest finite number, so that 0 log 0 is
            0.
        probs: [..., U].
    """

    def __init__(self, logits: Tensor, avail_actions: Tensor) -> None:
        self.log_probs = logits.masked_fill(
            avail_actions == 0, torch.finfo(logits.dtype).min
        ).log_softmax(-1)
        self.probs = self.log_probs.exp()

    @torch.no_grad()
    def sample(self, n: int | None = None) -> Tensor:
        """int64 [...], or [..., n] independent ones."""
        # Where a network puts out NaN the loss is to tell of it, not the sampling.
        rows = self.probs.reshape(-1, self.probs.shape[-1]).nan_to_num(nan=1.0)
        drawn = torch.multinomial(rows, 1 if n is None else n, replacement=True)
        lead = self.probs.shape[:-1]
        return drawn.view(lead if n is None else (*lead, n))

    def rsample(self, temperature: float = 1.0) -> Tensor:
        """One-hot samples [..., U] with the gradient of the Gumbel-softmax (straight-through; Jang
        et al. 2017).
        """
        return F.gumbel_softmax(self.log_probs, tau=temperature, hard=True)

    def mode(self) -> Tensor:
        """The most probable action, int64 [...]."""
        return self.log_probs.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """int64 [...] or [..., n] (several for each row) -> the same shape."""
        if actions.dim() == self.log_probs.dim():
            return self.log_probs.gather(-1, actions)
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, samples: Tensor | None = None) -> Tensor:
        """[...], exact; `samples` are not read."""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: Policy) -> Tensor:
        """KL[self || other], [...]; both are discrete, with the same available actions."""
        assert isinstance(other, MaskedCategorical)
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)


class SquashedGaussian:
    """Continuous policies: the tanh of independent Gaussians, actions in [-1, 1] (Haarnoja et al.
    2018, appendix C).

    Args:
        outputs: [..., 2U], mean (softly bound: m -> 5 tanh(m / 5)) and logarithm of the standard
            deviation (cut to `LOG_STD_RANGE`) before the tanh.
        avail_actions: [..., U]; entries that are 0 are padding: they are 0 in samples and count for
            nothing.
    """

    def __init__(self, outputs: Tensor, avail_actions: Tensor) -> None:
        mean, log_std = outputs.chunk(2, -1)
        mean = MEAN_BOUND * (mean / MEAN_BOUND).tanh()
        self.normal = Normal(mean, log_std.clamp(*LOG_STD_RANGE).exp(), validate_args=False)
        self.mask = (avail_actions != 0).to(outputs.dtype)

    @torch.no_grad()
    def sample(self, n: int | None = None) -> Tensor:
        """[..., U], or [..., n, U] independent ones; without gradient."""
        return self.rsample(n)

    def rsample(self, n: int | None = None) -> Tensor:
        """As `sample`, with the gradient through the Gaussians' mean and standard deviation."""
        if n is None:
            return self.normal.rsample().tanh() * self.mask
        return self.normal.rsample((n,)).movedim(0, -2).tanh() * self.mask.unsqueeze(-2)

    def mode(self) -> Tensor:
        """The tanh of the mean, [..., U]."""
        return self.normal.mean.tanh() * self.mask

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log density: [..., U] -> [...], or [..., n, U] (several for each row) -> [..., n]."""
        normal, mask = self.normal, self.mask
        if actions.dim() == mask.dim() + 1:
            normal, mask = (
                Normal(normal.loc.unsqueeze(-2), normal.scale.unsqueeze(-2), False),
                mask.unsqueeze(-2),
            )
        return _log_density(normal, actions.clamp(-_LARGEST, _LARGEST).atanh(), mask)

    def entropy(self, samples: Tensor | None = None) -> Tensor:
        """Monte-Carlo estimate [...], from `samples` [..., n, U] or else from one drawn with
        gradient.
        """
        if samples is None:
            return -_log_density(self.normal, self.normal.rsample(), self.mask)
        return -self.log_prob(samples).mean(-1)

    def kl(self, other: Policy) -> Tensor:
        """KL[self || other], [...], both continuous: that of the Gaussians, because both go through
        the same invertible map.
        """
        assert isinstance(other, SquashedGaussian)
        return (kl_divergence(self.normal, other.normal) * self.mask).sum(-1)


def _log_density(normal: Normal, before: Tensor, mask: Tensor) -> Tensor:
    """Of the tanh of `before` [..., U], which is drawn from `normal`: [...]."""
    return ((normal.log_prob(before) - _TANH.log_abs_det_jacobian(before, before)) * mask).sum(-1)


Policy = MaskedCategorical | SquashedGaussian


def policy_distribution(outputs: Tensor, avail_actions: Tensor, continuous: bool) -> Policy:
    """The policies that a network's outputs stand for.

    Args:
        outputs: logits [..., U], or mean and log std [..., 2U].
        avail_actions: [..., U].
        continuous: which of them.
    """
    return (SquashedGaussian if continuous else MaskedCategorical)(outputs, avail_actions)
