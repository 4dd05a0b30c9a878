//! What a control network is shown beside the latents.

mod preprocess;

pub use self::preprocess::Preprocessor;
