//! CLIP's vision model by itself: encodes pictures as embeddings.

mod preprocess;

use std::{path::Path, sync::Arc};

use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView4, Axis, s};
use sd_core::{NetworkReport, image::RgbImage};

use self::preprocess::Preprocess;
use crate::{
    Error, RunError, builder,
    engine::Engine,
    models::clip_vision::{self, ClipVisionConfig, EMBEDDINGS, LAST, PENULTIMATE, PIXELS, POOLED},
    network::{Network, NetworkCall},
    session::Input,
    source::VisionFiles,
    text_encoder::normalise,
};

/// An encoder of pictures as CLIP embeddings, like transformers' `CLIPVisionModelWithProjection`.
///
/// The embedding of a picture and the embedding of a text by the same CLIP model are close to each
/// other if the text describes the picture. [`similarity`](crate::similarity) compares them.
///
/// Pictures of any size are accepted. As in transformers' `CLIPImageProcessor`, a picture is
/// resized to the model's size on its shorter side, 224 pixels in most models, and the centre is
/// cut out of it. A wide or tall picture therefore loses its ends. The resampling is the bicubic
/// filter of Pillow 13, with the same result in every byte. The pixel values of transformers differ
/// in the last bits of f32, if it uses Pillow. If it uses torchvision, they differ by up to 0.4 %.
///
/// An `ImageEncoder` is cheap to clone and can be used from several threads.
///
/// ```no_run
/// use sd_onnx::{ImageEncoder, Request, TextEncoder, similarity};
///
/// // One folder has both models of a CLIP model.
/// let texts = TextEncoder::load("clip-vit-large-patch14")?;
/// let pictures = ImageEncoder::load("clip-vit-large-patch14")?;
/// let prompts = ["a fox in the snow", "a pizza"];
/// let prompts = texts.encode_pooled(prompts)?.projected;
/// let prompts = prompts.expect("CLIP's folders have a projection");
///
/// let pipeline = sd_onnx::builder().load("stable-diffusion-v1-5")?;
/// let found = pipeline.generate(&Request::new("a fox in the snow").count(4))?;
/// let found = pictures.encode(found.pictures.iter().map(|picture| &picture.image))?;
/// assert_eq!(found.projected.dim(), (4, 768));
/// for picture in found.projected.rows() {
///     let [fox, pizza] = [0, 1].map(|text| similarity(prompts.row(text), picture));
///     println!("fox {fox:.2}, pizza {pizza:.2}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageEncoder {
    network: Arc<Network>,
    config: ClipVisionConfig,
    preprocess: Preprocess,
    normalised: bool,
    batch: usize,
}

/// One embedding per picture, in the order of the pictures. Returned by [`ImageEncoder::encode`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ImageEmbeddings {
    /// The last layer's state of the class token after the last layer norm, `[pictures, width]`:
    /// transformers' `pooler_output`.
    pub pooled: Array2<f32>,
    /// The projection of [`pooled`](Self::pooled), `[pictures, projected width]`: transformers'
    /// `image_embeds`.
    ///
    /// To compare pictures with texts, use this and
    /// [`PooledEmbeddings::projected`](crate::PooledEmbeddings::projected). To compare pictures
    /// with each other, use it too, because CLIP was trained on it.
    pub projected: Array2<f32>,
}

/// A layer of [`ImageEncoder::hidden_states`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageLayer {
    /// The last layer: transformers' `last_hidden_state`.
    Last,
    /// The layer before the last one: transformers' `hidden_states[-2]`. With a model of one layer,
    /// the input of that layer.
    Penultimate,
}

/// An error of encoding pictures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageEncoderError {
    /// A picture has no pixels.
    #[error("picture {index} has {width} × {height} pixels, expected at least 1 × 1")]
    Empty {
        /// The index of the picture in the call.
        index: usize,
        /// The picture's width.
        width: u32,
        /// The picture's height.
        height: u32,
    },
    /// An array of pixel values has the wrong shape.
    #[error("the pixel values have shape {found:?}, expected [any, 3, {side}, {side}]")]
    Shape {
        /// The model's height and width, [`ImageEncoder::side`].
        side: usize,
        /// The shape of the array.
        found: [usize; 4],
    },
    /// The network could not be run.
    #[error(transparent)]
    Model(#[from] RunError),
}

impl ImageEncoder {
    /// Loads the vision model of a CLIP model, a file or a folder.
    ///
    /// Use [`Builder::load_image_encoder`](crate::Builder::load_image_encoder), which lists the
    /// accepted files, to set the number of threads, the device, or a variant of the weights.
    ///
    /// # Errors
    /// The same as for [`Builder::load`](crate::Builder::load).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        builder().load_image_encoder(path)
    }

    /// Loads the network.
    pub(crate) fn new(files: VisionFiles, engine: &Engine) -> Result<Self, Error> {
        let VisionFiles {
            config,
            weights,
            preprocessor,
        } = files;
        let config = ClipVisionConfig::new(config)?;
        let preprocess = match preprocessor {
            Some(preprocessor) => Preprocess::new(&preprocessor, config.side)?,
            None => Preprocess::clip(config.side),
        };
        clip_vision::check(&config, &weights)?;
        let of_graph = config.clone();
        // One session takes any number of pictures. Embeddings are compared with each other, so
        // exact values matter more than the memory that bf16 weights would save.
        let network = Network::new("image encoder", engine, false, move |dialect| {
            clip_vision::graph(&of_graph, &weights, dialect.for_few_weights())
        });
        network.prepare(&[])?;
        Ok(Self {
            network: network.into(),
            config,
            preprocess,
            normalised: false,
            batch: 4,
        })
    }

    /// Sets whether [`pooled`](ImageEmbeddings::pooled) and
    /// [`projected`](ImageEmbeddings::projected) are scaled to length 1.
    ///
    /// Default: false, as for [`TextEncoder::normalised`](crate::TextEncoder::normalised).
    /// [`similarity`](crate::similarity) is the same either way.
    pub fn normalised(mut self, normalised: bool) -> Self {
        self.normalised = normalised;
        self
    }

    /// Sets how many pictures go through the model in one call. The other pictures in a call change
    /// an embedding only by rounding. The working memory grows with the number.
    ///
    /// Default: 4. The value 0 counts as 1.
    pub fn batch(mut self, pictures: usize) -> Self {
        self.batch = pictures.max(1);
        self
    }

    /// Returns the height and width of the model's pictures, in pixels.
    pub fn side(&self) -> usize {
        self.config.side
    }

    /// Encodes any number of pictures and returns one embedding of each picture.
    ///
    /// # Errors
    /// - [`ImageEncoderError::Empty`] if a picture has no pixels.
    /// - [`ImageEncoderError::Model`] if ONNX Runtime fails.
    pub fn encode<'a>(
        &self,
        pictures: impl IntoIterator<Item = &'a RgbImage>,
    ) -> Result<ImageEmbeddings, ImageEncoderError> {
        let pictures = checked(pictures)?;
        let mut found = self.room_for(pictures.len());
        for (index, pictures) in pictures.chunks(self.batch).enumerate() {
            let pixels = self.preprocessed(pictures);
            self.encode_batch(pixels.view(), index * self.batch, &mut found)?;
        }
        Ok(self.finished(found))
    }

    /// Returns the preprocessed pictures `[pictures, 3, side, side]`: transformers' `pixel_values`.
    ///
    /// # Errors
    /// [`ImageEncoderError::Empty`] if a picture has no pixels.
    pub fn pixel_values<'a>(
        &self,
        pictures: impl IntoIterator<Item = &'a RgbImage>,
    ) -> Result<Array4<f32>, ImageEncoderError> {
        Ok(self.preprocessed(&checked(pictures)?))
    }

    /// Encodes preprocessed pictures `[pictures, 3, side, side]`, like [`encode`](Self::encode).
    ///
    /// # Errors
    /// - [`ImageEncoderError::Shape`] if the array has another shape.
    /// - [`ImageEncoderError::Model`] if ONNX Runtime fails.
    pub fn encode_pixel_values(
        &self,
        pixels: ArrayView4<'_, f32>,
    ) -> Result<ImageEmbeddings, ImageEncoderError> {
        self.check_shape(pixels)?;
        let mut found = self.room_for(pixels.dim().0);
        for (index, pixels) in pixels.axis_chunks_iter(Axis(0), self.batch).enumerate() {
            self.encode_batch(pixels, index * self.batch, &mut found)?;
        }
        Ok(self.finished(found))
    }

    /// Returns the hidden states `[pictures, length, width]` of a layer, without a norm, for
    /// preprocessed pictures `[pictures, 3, side, side]`.
    ///
    /// The first state of a picture is the one of the class token. The states of its patches
    /// follow, row by row.
    ///
    /// ```no_run
    /// use sd_onnx::{ImageEncoder, ImageLayer, image::RgbImage};
    ///
    /// let encoder = ImageEncoder::load("clip-vit-large-patch14")?;
    /// let pixels = encoder.pixel_values([&RgbImage::new(512, 512)])?;
    /// let states = encoder.hidden_states(pixels.view(), ImageLayer::Penultimate)?;
    /// assert_eq!(states.dim(), (1, 257, 1024));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`encode_pixel_values`](Self::encode_pixel_values).
    pub fn hidden_states(
        &self,
        pixels: ArrayView4<'_, f32>,
        layer: ImageLayer,
    ) -> Result<Array3<f32>, ImageEncoderError> {
        self.check_shape(pixels)?;
        let output = match layer {
            ImageLayer::Last => LAST,
            ImageLayer::Penultimate => PENULTIMATE,
        };
        let shape = (pixels.dim().0, self.config.length(), self.config.width);
        let mut all = Array3::zeros(shape);
        let places = all.axis_chunks_iter_mut(Axis(0), self.batch);
        for (mut place, pixels) in places.zip(pixels.axis_chunks_iter(Axis(0), self.batch)) {
            for states in self.run(pixels, &[output])? {
                place.assign(&states);
            }
        }
        Ok(all)
    }

    /// Returns the width of the hidden states.
    pub(crate) fn width(&self) -> usize {
        self.config.width
    }

    /// Returns the width of the projected embeddings.
    pub(crate) fn projected_width(&self) -> usize {
        self.config.projection
    }

    /// Returns the number of hidden states of a picture.
    pub(crate) fn length(&self) -> usize {
        self.config.length()
    }

    /// Returns where the nodes of the loaded network run.
    pub(crate) fn report(&self) -> Vec<NetworkReport> {
        self.network.report()
    }

    fn check_shape(&self, pixels: ArrayView4<'_, f32>) -> Result<(), ImageEncoderError> {
        let (count, channels, height, width) = pixels.dim();
        let side = self.side();
        if [channels, height, width] != [3, side, side] {
            let found = [count, channels, height, width];
            return Err(ImageEncoderError::Shape { side, found });
        }
        Ok(())
    }

    /// Preprocesses pictures, none of which is empty.
    fn preprocessed(&self, pictures: &[&RgbImage]) -> Array4<f32> {
        let side = self.side();
        let mut pixels = Array4::zeros((pictures.len(), 3, side, side));
        for (picture, mut pixels) in pictures.iter().zip(pixels.outer_iter_mut()) {
            let pixels = pixels.as_slice_mut().expect("a new array is contiguous");
            self.preprocess.write(picture, pixels);
        }
        pixels
    }

    /// Returns embeddings of zeros.
    fn room_for(&self, count: usize) -> ImageEmbeddings {
        ImageEmbeddings {
            pooled: Array2::zeros((count, self.config.width)),
            projected: Array2::zeros((count, self.config.projection)),
        }
    }

    /// Writes the embeddings of one batch to the rows from `first` on.
    fn encode_batch(
        &self,
        pixels: ArrayView4<'_, f32>,
        first: usize,
        found: &mut ImageEmbeddings,
    ) -> Result<(), ImageEncoderError> {
        let rows = first..first + pixels.dim().0;
        let states = self.run(pixels, &[POOLED, EMBEDDINGS])?;
        let all = [&mut found.pooled, &mut found.projected];
        for (all, states) in all.into_iter().zip(states) {
            all.slice_mut(s![rows.clone(), ..]).assign(&states);
        }
        Ok(())
    }

    fn finished(&self, mut found: ImageEmbeddings) -> ImageEmbeddings {
        if self.normalised {
            normalise(&mut found.pooled);
            normalise(&mut found.projected);
        }
        found
    }

    /// Runs the model once.
    fn run(
        &self,
        pixels: ArrayView4<'_, f32>,
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RunError> {
        let pixels = pixels.as_standard_layout();
        let values = pixels.as_slice().expect("standard layout");
        let inputs = [(PIXELS, Input::F32(pixels.shape(), values))];
        self.network.run_for(NetworkCall::new(&inputs), outputs)
    }
}

/// Returns the pictures, if none of them is empty.
fn checked<'a>(
    pictures: impl IntoIterator<Item = &'a RgbImage>,
) -> Result<Vec<&'a RgbImage>, ImageEncoderError> {
    let pictures = pictures.into_iter().enumerate().map(|(index, picture)| {
        let (width, height) = picture.dimensions();
        match width.min(height) {
            0 => Err(ImageEncoderError::Empty {
                index,
                width,
                height,
            }),
            _ => Ok(picture),
        }
    });
    pictures.collect()
}
