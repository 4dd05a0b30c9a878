"""The samplers in float64, written from their papers.

A sampler is `name(model, x, sigmas, ..., noise=None)`. `model(x, sigma)` returns the denoised
sample. `noise(sigma, sigma')` returns unit normal noise, and is called only where it is used.
`sigmas` are the sigmas of the rungs, followed by the sigma at which the run ends.

A sampler returns the states on reaching each sigma, the start first. A sampler that visits its own
sigmas returns pairs of a sigma and the state there.

All states are in the variance-exploding scaling, x = clean + sigma * noise. A sampler that uses
only the slope (x - denoised) / sigma is the same on the path of flow matching, x = (1 - sigma) *
clean + sigma * noise.
"""
