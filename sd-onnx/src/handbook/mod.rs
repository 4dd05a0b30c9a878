//! The handbook: how to use the library, chapter by chapter.
//!
//! The project's tests compile every example. Most examples also run there, on the small model that
//! ships with the project. Replace its folder with the folder of your own model.
//!
//! 1. [`parameters`]: what each parameter does to the picture, and what too high a value does.
//! 2. [`prompts`]: the prompt language, and texts of any length.
//! 3. [`sampling`]: samplers, noise levels, and their names in other programs.
//! 4. [`shortcuts`]: faster runs, whose pictures change a little.
//! 5. [`programs`]: servers, windows and games: how to share a pipeline, and how to watch, stop and
//!    stream a run.
//! 6. [`pictures`]: pictures as input: image to image, inpainting, outpainting and
//!    instruct-pix2pix; also second passes, large pictures in windows and seamless pictures.
//! 7. [`control`]: ControlNets, T2I-Adapters and IP-Adapters, which make a run follow a picture.
//! 8. [`upscaling`]: networks that enlarge pictures, and redrawing large pictures in tiles.
//! 9. [`pieces`]: embeddings, textual inversions, latents, noise, and custom samplers, guidance and
//!    networks.
//! 10. [`families`]: SDXL, its refiner, LCM and other families of models, and what each of them
//!     needs.
//! 11. [`files`]: which model files load, how to use LoRAs, how to convert models, and what a
//!     picture file records.
//! 12. [`devices`]: OpenVINO, CUDA, bf16, int8, how much memory a model needs, and the autoencoder
//!     in tiles.
//! 13. [`contributing`]: how to build and test this project, and how to write golden files.
//! 14. [`where_it_goes`]: which files of this project a change touches.

pub mod contributing;
pub mod control;
pub mod devices;
pub mod families;
pub mod files;
pub mod parameters;
pub mod pictures;
pub mod pieces;
pub mod programs;
pub mod prompts;
pub mod sampling;
pub mod shortcuts;
pub mod upscaling;
pub mod where_it_goes;
