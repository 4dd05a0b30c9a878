//! Large pictures, which the denoiser sees in overlapping windows.

use std::sync::Arc;

use ndarray::{
    Array2, Array4, ArrayD, ArrayView, ArrayView4, ArrayViewMut4, Axis, CowArray, Dimension,
    RemoveAxis, Slice, Zip, s,
};
use serde::{Deserialize, Serialize};

use crate::{BoxError, Call, ControlCall, ControlKind, Denoiser, Inputs, Problem};

/// The largest number of windows of a picture, 4096.
pub const MAX_TILES: usize = 4096;

/// The windows in which a large picture is drawn.
///
/// Models repeat themselves in pictures that are much larger than the pictures they were trained
/// with. In each call of the denoiser, the latents are therefore cut into overlapping windows of a
/// size that the model knows. The denoiser makes a prediction for each window alone. Overlapping
/// predictions are averaged, so that the parts fit together without a seam. Every window sees the
/// whole prompt: "a fox" draws a fox in each of them, unless the run starts from a
/// [picture](crate::Start) or is a [second pass](crate::Hires). For landscapes and patterns this
/// does not matter.
///
/// The method is MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113), diffusers'
/// `StableDiffusionPanoramaPipeline` and the "Tiled Diffusion" of WebUI's extension
/// `multidiffusion-upscaler`. With [`TileWeights::Gaussian`], it is Mixture of Diffusers (Jiménez
/// 2023, arXiv 2302.02412).
///
/// The work of a step grows with the number of windows. Up to
/// [`max_batch`](crate::PipelineBuilder::max_batch) windows of all pictures of a batch share a
/// call. With a ControlNet, each window is a call. A picture that fits into one window is drawn as
/// without windows, bit for bit. Only the denoiser works in windows: the autoencoder decodes the
/// whole picture at once.
///
/// ```
/// use sd_core::{Request, Tiles, TileWeights};
///
/// let tiles = Tiles::new(512, 512).overlap(128).weights(TileWeights::Gaussian);
/// let request = Request::new("mountains under snow").size(2048, 512).tiles(tiles);
/// # assert_eq!(request.tiles, Some(tiles));
/// ```
///
/// With serde it is an object with a key for each field. Only `size` is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Tiles {
    /// Width and height of a window in pixels, usually the size that the model was trained with.
    ///
    /// Both are positive multiples of the model's factor
    /// ([`LatentCodec::factor`](crate::LatentCodec::factor)), which is 8 in Stable Diffusion. A
    /// window that is larger than the picture is cut to it. T2I-Adapters are refused.
    pub size: [u32; 2],
    /// The number of pixels by which neighboring windows overlap at least. It is smaller than both
    /// sides of a window, and a multiple of the model's factor. The windows are spread evenly over
    /// the picture, so that most overlap more.
    ///
    /// Default: `None`, half of the shorter side of a window, rounded down. diffusers' panoramas
    /// overlap by 448 of 512 pixels.
    #[serde(default)]
    pub overlap: Option<u32>,
    /// The weights of overlapping predictions.
    ///
    /// Default: [`TileWeights::Equal`].
    #[serde(default)]
    pub weights: TileWeights,
}

/// The weights of the predictions for overlapping [windows](Tiles).
///
/// With serde it is a name in lower case, such as `"gaussian"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TileWeights {
    /// All windows count equally, as in MultiDiffusion. This is the default.
    #[default]
    Equal,
    /// A window counts less towards its edges, as in Mixture of Diffusers: by a Gaussian curve
    /// along x and one along y, whose standard deviations are a tenth of the sides. As in the
    /// published code, the curve along y is highest half a latent below the middle.
    Gaussian,
}

impl Tiles {
    /// Creates windows of this width and height in pixels.
    pub fn new(width: u32, height: u32) -> Self {
        Self {
            size: [width, height],
            overlap: None,
            weights: TileWeights::default(),
        }
    }

    /// Sets [`overlap`](Self::overlap), in pixels.
    pub fn overlap(mut self, pixels: u32) -> Self {
        self.overlap = Some(pixels);
        self
    }

    /// Sets [`weights`](Self::weights).
    pub fn weights(mut self, weights: TileWeights) -> Self {
        self.weights = weights;
        self
    }

    /// Sets [`overlap`](Self::overlap) to its default for a model with `factor` pixels per latent,
    /// if it is not set.
    pub(crate) fn resolved(self, factor: usize) -> Self {
        let [width, height] = self.size;
        let factor = factor as u32;
        let half = width.min(height) / 2 / factor * factor;
        self.overlap(self.overlap.unwrap_or(half))
    }

    /// Returns the windows in latents of this height and width. `None` if one window is enough.
    ///
    /// `factor` is the number of pixels per latent, and `multiple` the number of pixels of which
    /// windows must be multiples.
    ///
    /// # Errors
    /// A problem if the windows cannot be used.
    pub(crate) fn windows(
        &self,
        [height, width]: [usize; 2],
        factor: usize,
        multiple: usize,
        inputs: &Inputs,
    ) -> Result<Option<Windows>, Problem> {
        let sides = self.size.map(|side| side as usize);
        if let Some(side) = sides
            .iter()
            .find(|&side| *side == 0 || side % multiple != 0)
        {
            let expected = format!("sides that are positive multiples of {multiple}");
            return Err(Problem::new("tiles.size", expected, side));
        }
        let overlap = self.resolved(factor).overlap.unwrap_or_default() as usize;
        let shorter = sides[0].min(sides[1]);
        if overlap >= shorter || !overlap.is_multiple_of(factor) {
            let expected = format!("a multiple of {factor} below {shorter}, the shorter side");
            return Err(Problem::new("tiles.overlap", expected, overlap));
        }
        let [overlap, unit] = [overlap, multiple].map(|pixels| pixels / factor);
        let starts = |side: usize, whole: usize| starts(side / factor, whole, overlap, unit);
        let [columns, rows] = [starts(sides[0], width), starts(sides[1], height)];
        let count = columns.len().saturating_mul(rows.len());
        if count > MAX_TILES {
            let expected = format!("windows so that a picture has at most {MAX_TILES}");
            return Err(Problem::new("tiles", expected, count));
        }
        let seamless = inputs.seamless;
        if seamless.x && columns.len() > 1 || seamless.y && rows.len() > 1 {
            let expected = "windows as large as the picture, along which the model is seamless";
            return Err(Problem::new("tiles", expected, "smaller ones"));
        }
        let size = [
            (sides[1] / factor).min(height),
            (sides[0] / factor).min(width),
        ];
        Ok((count > 1).then(|| Windows::new([height, width], size, &rows, &columns, self.weights)))
    }
}

/// Returns the number of pixels of which windows must be multiples: of the latents, of the patches
/// of both models, and of the control networks with pictures of several resolutions.
pub(crate) fn multiple(factor: usize, models: &[&Inputs], networks: &[&str]) -> usize {
    let patches = models.iter().map(|inputs| factor * inputs.patch);
    let controls = models.iter().flat_map(|inputs| &inputs.controls);
    let of_controls = controls
        .filter(|of| networks.contains(&of.name.as_str()) && has_places(of.kind))
        .map(|of| of.multiple);
    patches
        .chain(of_controls)
        .fold(factor, least_common_multiple)
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor.max(1)).saturating_mul(b)
}

/// Returns where the windows of an axis start, in latents: evenly spread, and rounded down to a
/// `unit`.
fn starts(side: usize, whole: usize, overlap: usize, unit: usize) -> Vec<usize> {
    if side >= whole {
        return vec![0];
    }
    let count = (whole - overlap).div_ceil(side - overlap);
    let last = whole - side;
    let start = |index: usize| index * last / (count - 1) / unit * unit;
    (0..count).map(start).collect()
}

/// Whether the arrays that such a control network reads belong to places of the picture.
fn has_places(kind: ControlKind) -> bool {
    match kind {
        ControlKind::ControlNet => true,
        // T2I-Adapters are refused, because their features cover the whole picture.
        ControlKind::Adapter | ControlKind::ImagePrompt => false,
    }
}

/// The windows of latents, at least two.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Windows {
    /// The height and width of a window.
    size: [usize; 2],
    /// The row and the column of the first latent of each window.
    starts: Vec<[usize; 2]>,
    /// The weight of each latent of a window, of the size of a window.
    weights: Array2<f32>,
    /// The sum of the weights at each latent of the picture.
    totals: Array2<f32>,
}

impl Windows {
    fn new(
        whole: [usize; 2],
        size: [usize; 2],
        rows: &[usize],
        columns: &[usize],
        weights: TileWeights,
    ) -> Self {
        let weights = match weights {
            TileWeights::Equal => Array2::ones(size),
            TileWeights::Gaussian => gaussian(size),
        };
        let mut windows = Self {
            size,
            starts: Vec::with_capacity(rows.len() * columns.len()),
            weights,
            totals: Array2::zeros(whole),
        };
        for &row in rows {
            for &column in columns {
                let [height, width] = size;
                let area = s![row..row + height, column..column + width];
                let mut totals = windows.totals.slice_mut(area);
                totals += &windows.weights;
                windows.starts.push([row, column]);
            }
        }
        windows
    }

    /// Calls the denoiser for each window, and writes the average of its predictions to `output`.
    /// Up to `most` windows of all pictures share a call.
    pub fn predict(
        &self,
        denoiser: &dyn Denoiser,
        call: &Call<'_>,
        most: usize,
        mut output: ArrayViewMut4<'_, f32>,
    ) -> Result<(), BoxError> {
        let (batch, channels, ..) = call.latents.dim();
        let together = match self.cuts_hints(denoiser.inputs(), call.controls) {
            // A hint is for all pictures of a call, and here each window has its own.
            true => 1,
            false => (most / batch.max(1)).max(1),
        };
        output.fill(0.0);
        let [height, width] = self.size;
        let shape = (together * batch, channels, height, width);
        let mut predicted = Array4::zeros(shape);
        for starts in self.starts.chunks(together) {
            if call.stop.is_stopped() {
                return Err("stopped between two windows".into());
            }
            let mut predicted = predicted.slice_mut(s![..starts.len() * batch, .., .., ..]);
            self.call(denoiser, call, starts, predicted.view_mut())?;
            for (&start, one) in starts
                .iter()
                .zip(predicted.axis_chunks_iter(Axis(0), batch))
            {
                self.add(one, start, &mut output);
            }
        }
        for mut picture in output.outer_iter_mut() {
            for mut channel in picture.outer_iter_mut() {
                channel /= &self.totals;
            }
        }
        Ok(())
    }

    /// Makes the prediction for some windows together, `[windows · batch, channels, h, w]`.
    fn call(
        &self,
        denoiser: &dyn Denoiser,
        call: &Call<'_>,
        starts: &[[usize; 2]],
        output: ArrayViewMut4<'_, f32>,
    ) -> Result<(), BoxError> {
        let times = starts.len();
        let latents = self.cut(call.latents, starts);
        let beside = call.beside.map(|beside| self.cut(beside, starts));
        let context = repeated(call.context, times);
        let pooled = call.pooled.map(|pooled| repeated(pooled, times));
        let sizes = call.sizes.map(|sizes| repeated(sizes, times));
        let guidance = call.guidance.map(|scales| repeated(scales, times));
        let hints = self.cut_hints(denoiser.inputs(), call.controls, starts[0]);
        let controls: Vec<_> = call
            .controls
            .iter()
            .zip(&hints)
            .map(|(control, hint)| match hint {
                Some(hint) => ControlCall { hint, ..*control },
                None => *control,
            })
            .collect();
        let call = Call {
            latents: latents.view(),
            timestep: call.timestep,
            context: context.view(),
            pooled: pooled.as_ref().map(|pooled| pooled.view()),
            sizes: sizes.as_ref().map(|sizes| sizes.view()),
            guidance: guidance.as_ref().map(|scales| scales.view()),
            beside: beside.as_ref().map(|beside| beside.view()),
            controls: &controls,
            step: call.step,
            // Each window has other features.
            deep: None,
            merge_tokens: call.merge_tokens,
            stop: call.stop,
        };
        denoiser.predict(&call, output)
    }

    /// Returns the parts of an array that lie in some windows, one after the other.
    fn cut(&self, whole: ArrayView4<'_, f32>, starts: &[[usize; 2]]) -> Array4<f32> {
        let [height, width] = self.size;
        let part = |&[row, column]: &[usize; 2]| {
            whole.slice_move(s![.., .., row..row + height, column..column + width])
        };
        let parts: Vec<_> = starts.iter().map(part).collect();
        ndarray::concatenate(Axis(0), &parts).expect("all windows have the same size")
    }

    /// Adds the weighted prediction for a window.
    fn add(
        &self,
        one: ArrayView4<'_, f32>,
        [row, column]: [usize; 2],
        output: &mut ArrayViewMut4<'_, f32>,
    ) {
        let [height, width] = self.size;
        let sums = output.slice_mut(s![.., .., row..row + height, column..column + width]);
        Zip::from(sums)
            .and(one)
            .and_broadcast(&self.weights)
            .for_each(|sum, value, weight| *sum += value * weight);
    }

    /// Returns whether a control network of the call sees another part of its picture in each
    /// window.
    fn cuts_hints(&self, inputs: &Inputs, controls: &[ControlCall<'_>]) -> bool {
        let mut kinds = controls.iter().map(|it| inputs.controls[it.network].kind);
        kinds.any(has_places)
    }

    /// Returns the parts of the control networks' arrays that lie in the window, for each control.
    /// `None` if the arrays do not belong to places of the picture.
    ///
    /// Arrays of four dimensions, `[1, channels, h, w]`, cover the whole picture in any resolution.
    fn cut_hints(
        &self,
        inputs: &Inputs,
        controls: &[ControlCall<'_>],
        start: [usize; 2],
    ) -> Vec<Option<Vec<ArrayD<f32>>>> {
        let whole = [self.totals.nrows(), self.totals.ncols()];
        let part = |array: &ArrayD<f32>| {
            let mut part = array.view();
            for (axis, &length) in array.shape().iter().enumerate().skip(2) {
                let place = |latents: usize| latents * length / whole[axis - 2];
                let (from, size) = (place(start[axis - 2]), place(self.size[axis - 2]));
                part.slice_axis_inplace(Axis(axis), Slice::from(from..from + size));
            }
            // Networks read contiguous arrays.
            part.as_standard_layout().into_owned()
        };
        let cut = |control: &ControlCall<'_>| {
            has_places(inputs.controls[control.network].kind).then(|| {
                let arrays = control.hint.iter();
                let cut = |array: &ArrayD<f32>| match array.ndim() {
                    4 => part(array),
                    _ => array.clone(),
                };
                arrays.map(cut).collect()
            })
        };
        controls.iter().map(cut).collect()
    }
}

/// The windows of a run, and how many of them share a call of the denoiser at most.
pub(crate) type Tiled = (Arc<Windows>, usize);

/// Repeats an array along its first axis.
fn repeated<D>(array: ArrayView<'_, f32, D>, times: usize) -> CowArray<'_, f32, D>
where
    D: Dimension + RemoveAxis,
{
    if times == 1 {
        return array.into();
    }
    let all = vec![array; times];
    let all = ndarray::concatenate(Axis(0), &all).expect("all have the same shape");
    all.into()
}

/// Returns the weights of Mixture of Diffusers for a window of this height and width.
fn gaussian([height, width]: [usize; 2]) -> Array2<f32> {
    const VARIANCE: f64 = 0.01;
    let curve = |place: usize, middle: f64, side: usize| {
        let distance = (place as f64 - middle) / side as f64;
        (-distance * distance / (2.0 * VARIANCE)).exp()
    };
    Array2::from_shape_fn([height, width], |(y, x)| {
        let down = curve(y, height as f64 / 2.0, height);
        let across = curve(x, (width as f64 - 1.0) / 2.0, width);
        (down * across) as f32
    })
}
