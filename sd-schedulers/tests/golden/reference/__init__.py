"""The samplers in float64, written from their papers.

A sampler is `name(model, x, sigmas, ..., noise=None)`: `model(x, sigma)` is the denoised sample and `noise(sigma, sigma')`, asked
for only where it is used, unit normal noise. `sigmas` are those of the rungs and the one that the run ends at. What comes back
are the states on reaching each of them, the start first; samplers that go over sigmas of their own give pairs of a sigma and the
state there. All is in the variance-exploding scaling, x = clean + sigma * noise; what uses nothing but the slope
(x - denoised) / sigma is the same on the path of flow matching, x = (1 - sigma) * clean + sigma * noise.
"""
