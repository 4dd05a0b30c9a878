//! What each parameter does to the picture. The README shows all of this in pictures.
//!
//! A picture begins as noise, a small array of random numbers called *latents*. At each step the model guesses, from the
//! noisy latents and the prompt, what the clean ones are, and the sampler goes a part of the way there. At the end the
//! autoencoder turns the latents into pixels, 8 × 8 of them for each place in Stable Diffusion 1.x.
//!
//! | parameter | default | useful | too little | too much |
//! |---|---|---|---|---|
//! | [`steps`](crate::Request::steps) | 20 | 15 to 30 | blurred, unfinished | nothing is gained; ancestral samplers draw another picture for every number |
//! | [`guidance`](crate::Request::guidance) | 7.5 | 4 to 10 | the prompt is half ignored | burnt colours, hard contrasts, then debris |
//! | [`seed`](crate::Request::seed) | random | any | | |
//! | [`size`](crate::Request::size) | the model's | near the model's | mush: the model never saw so small a picture | the subject is repeated, for the model draws several pictures side by side |
//! | [`clip_skip`](crate::Request::clip_skip) | 1 | 1 or 2 | | the prompt is read too superficially: another picture |
//! | [`scheduler`](crate::Request::scheduler) | DPM++ 2M | | | |
//! | [`ladder`](crate::Request::ladder) | the scheduler's | | | |
//!
//! # Seed and size
//! They alone decide the noise. The same seed at the same size begins as the same noise whatever the prompt, model, steps
//! or scheduler, which is why neighbouring settings give pictures that look alike. At another size it is another noise, and
//! so another picture. The noise is that of `torch.randn` on a CPU: a seed means what it means in diffusers, and in WebUI
//! with its noise set to CPU.
//!
//! # Steps
//! More steps follow the same path in smaller strides. Samplers of second order ([`DpmPlusPlus2M`](crate::schedulers::DpmPlusPlus2M),
//! [`Heun`](crate::schedulers::Heun)) are as near to its end after 20 steps as [`Euler`](crate::schedulers::Euler) is after
//! many more; from then on only time is spent. [`EulerAncestral`](crate::schedulers::EulerAncestral) adds fresh noise in
//! every step, so its path has no end to come near to: 30 steps draw another picture than 20.
//!
//! # Guidance
//! At each step the model is asked twice: for the prompt, and for the negative prompt (the empty one, if none is given). The
//! guidance scale, also called CFG, says how far to go from the second answer in the direction of the first, and beyond it:
//! 1 is the first answer itself, 7.5 goes seven and a half times as far. See [`guide`](crate::guide()). At 1 and below only the prompt is
//! asked for, which takes half the time. A large scale pushes the latents out of the range that the autoencoder knows:
//! colours saturate, edges harden, in the end it is debris, and
//! [`GenerateError::NotFinite`](crate::GenerateError::NotFinite) when numbers run out.
//!
//! # Clip skip
//! The text model reads the prompt in layers (12 in Stable Diffusion 1.x), each working on what the one before made of it.
//! Clip skip takes the result of an earlier layer: 1 is the last, 2 the one before. **It skips layers of the text model, not
//! steps of the noise**, and costs and saves next to nothing. Models that were trained on the second to last layer (many of
//! those for anime) want 2; all others were trained on 1, and 2 gives them a reading that is a little off.
//!
//! # Scheduler and ladder
//! The scheduler (in the papers: the sampler) is the rule by which a step is made; the ladder is the list of noise levels that
//! the steps go through. They are chosen apart from each other, but DDIM can't stand on Karras' levels. [`schedulers`](crate::schedulers)
//! has the table of both.
