"""Paths from noise to data, and the one step that all samplers take on them; the theory is the package's docstring."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from detkit.config import PATHS, Share
from detkit.utils.transfer import sent


class Path(ABC):
    """A state at time t is alpha(t) x1 + sigma(t) noise: t = 0 is noise and t = 1 data, for every path.

    ``eta``: the share of DDPM's chance in a step, 0 for none.
    """

    eta: float = 0.0

    @abstractmethod
    def alpha(self, t: float) -> float:
        """The share of data at time ``t`` in [0, 1]: 0 at 0, growing, 1 at 1."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """The share of noise: 1 at 0, falling, 0 at 1."""

    @final
    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times, from 0 to 1 in equal steps."""
        return [i / steps for i in range(steps + 1)]

    @final
    def mix(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The states (B, N, D) at times ``t`` (B,) on the way from ``noise`` to ``data``."""
        shares = [(self.alpha(one), self.sigma(one)) for one in t.tolist()]
        of_data, of_noise = sent(shares, data.device, data.dtype)[:, :, None, None].unbind(1)
        return of_data * data + of_noise * noise

    @final
    def step(self, state: Tensor, data: Tensor, t: float, s: float, noise: Tensor | None = None) -> Tensor:
        """The state at time ``s`` > ``t`` after ``state`` at ``t``, which is guessed to lead to ``data``.

        DDIM's (Song et al., ICLR 2021, equation 12), and on a linear path Euler's.

        Args:
            noise: like ``state``, from a standard normal; only where ``eta`` is more than 0.
        """
        alpha_t, alpha_s, sigma_t, sigma_s = self.alpha(t), self.alpha(s), self.sigma(t), self.sigma(s)
        drawn = self.eta * (sigma_s / sigma_t) * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
        kept = math.sqrt(max(sigma_s**2 - drawn**2, 0.0)) / sigma_t
        after = (alpha_s - kept * alpha_t) * data + kept * state
        return after if noise is None or self.eta == 0 else after + drawn * noise


@PATHS
class LinearPath(Path):
    """Straight lines at constant speed: alpha = t, sigma = 1 - t (Liu, Gong, Liu, ICLR 2023, section 2)."""

    def alpha(self, t: float) -> float:
        return t

    def sigma(self, t: float) -> float:
        return 1 - t


@PATHS
class CosinePath(Path):
    """Diffusion's: alpha^2 = abar, sigma^2 = 1 - abar (Nichol and Dhariwal, ICML 2021, equation 17).

    abar is a squared cosine, in continuous time, so that t = 0 is noise alone; their thousand steps end at an abar of
    2.4e-9.

    Args:
        offset: their s, which keeps the noise of the last steps from vanishing.
        eta: 0 for DDIM, 1 for DDPM (Song et al., ICLR 2021, equation 16).
    """

    def __init__(self, *, offset: float = 0.008, eta: Share = 0.0) -> None:
        if offset < 0:
            raise ValueError(f"offset must not be negative, not {offset}")
        self.offset, self.eta = offset, eta

    def alpha(self, t: float) -> float:
        return 0.0 if t <= 0 else self._cosine(t) / self._cosine(1.0)

    def sigma(self, t: float) -> float:
        return math.sqrt(max(1 - self.alpha(t) ** 2, 0.0))

    def _cosine(self, t: float) -> float:
        return math.cos((1 - t + self.offset) / (1 + self.offset) * math.pi / 2)
