"""Boxes that are carried from noise to objects: states, paths, couplings and the network that steers them.

From noise to data in four steps of theory, with ``alpha`` the share of data in a state, ``sigma`` that of noise, and
time t from 0 (noise) to 1 (data) for all of them; the diffusion papers count the other way.

**DDPM** (Ho, Jain, Abbeel, NeurIPS 2020). A state is x_t = alpha_t x1 + sigma_t noise with alpha^2 = abar and sigma^2
= 1 - abar (equation 4). Given x1, the state one step closer to the data is Gaussian (equations 6 and 7)::

    x_s | x_t, x1 ~ N(mean, d^2),   d^2 = (sigma_s / sigma_t)^2 (1 - alpha_t^2 / alpha_s^2)

A network that guesses x1 from x_t, put in its place, makes a sampler of it.

**DDIM** (Song, Meng, Ermon, ICLR 2021). The marginals of all x_t, which are all that training sees, stay the same for
any d in (equations 7 and 12)::

    x_s = alpha_s x1 + sqrt(sigma_s^2 - d^2) (x_t - alpha_t x1) / sigma_t + d noise

The mean above is this one's with DDPM's d; eta scales d (equation 16), and eta = 0 is a sampler without chance.

**One ODE.** Without chance, and written with x / alpha, a step is Euler's on d(x / alpha) = guessed noise d(sigma /
alpha) (section 4.3). Which alpha and sigma, only says at which speed the same kind of line is travelled.

**Rectified flow** (Liu, Gong, Liu, ICLR 2023, section 2). alpha = t and sigma = 1 - t: each pair of noise and data is
joined by a straight line travelled at constant speed x1 - x0, and the network learns its mean over all lines through
x_t: v = E[x1 - x0 | x_t] = (E[x1 | x_t] - x_t) / (1 - t), so that guessing x1 and guessing the velocity are the same.
DDIM's step, above, for these alpha and sigma and d = 0 is x_t + (s - t) v: Euler's. On a path that is straight v is
the same at all its points, so that Euler's method is exact whatever its steps, one alone as well; what several are
for is the bend that is left. Pairs that do not cross (an optimal coupling; the pairs that a flow itself makes,
"reflow") leave less of it.
"""
