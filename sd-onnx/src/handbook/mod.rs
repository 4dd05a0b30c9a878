//! How to use the library, chapter by chapter.
//!
//! Every example runs in the project's tests, on the small model that it ships with; put the folder of your own in its place.
//!
//! 1. [`parameters`]: what each of them does to the picture, and what too much of it does.
//! 2. [`prompts`]: the prompt language, and long texts.
//! 3. [`sampling`]: which sampler, which noise levels, and what other programs call them.
//! 4. [`programs`]: servers, windows, games: sharing a pipeline, watching, stopping and streaming runs.
//! 5. [`pieces`]: embeddings, textual inversions, latents, noise, samplers and guidance of one's own.
//! 6. [`families`]: SDXL, its refiner, LCM and other models: what each of them wants.
//! 7. [`files`]: model files, what loads, converting, and what a PNG says about itself.
//! 8. [`devices`]: OpenVINO, bf16, and how much memory a model needs.
//! 9. [`where_it_goes`]: which file a change to this project touches.

pub mod devices;
pub mod families;
pub mod files;
pub mod parameters;
pub mod pieces;
pub mod programs;
pub mod prompts;
pub mod sampling;
pub mod where_it_goes;
