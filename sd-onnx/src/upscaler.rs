//! Networks that enlarge pictures.

use std::path::Path;

use ndarray::{Array4, ArrayView4, ArrayViewD, Axis, IxDyn, s};
use sd_core::{BoxError, NetworkReport, PictureUpscaler, StopToken, upscale::Tiling};
use sd_text::outside::{list, printable};

use crate::{
    Error, checkpoint,
    checkpoint::Kind,
    engine::Engine,
    graph::Dialect,
    models::upscalers::{PICTURE, REGIONS, Shapes, UpscalerConfig, regions, unwrapped},
    network::{Network, NetworkCall},
    session::Input,
    source,
    weights::{Mapped, WeightFile, Weights},
};

/// A network that enlarges pictures, which is loaded at its first call.
#[derive(Debug)]
pub(crate) struct OnnxUpscaler {
    config: UpscalerConfig,
    network: Network,
    tiling: Tiling,
}

impl OnnxUpscaler {
    /// Reads the header of a file, and recognises its network.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`] if the file is no network that enlarges pictures, or one that is not
    ///   supported.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`] or
    ///   [`Error::UnusedTensors`] if its tensors are not those of the network.
    /// - The errors of reading the file.
    pub fn open(path: &Path, tiling: Tiling, engine: &Engine) -> Result<Self, Error> {
        let file = WeightFile::open(path)?;
        for warning in &file.warnings {
            tracing::warn!("{}: {warning}", printable(path.display()));
        }
        let (config, tensors) = recognised(&file)?;
        let weights = Weights::mapped(&file, &tensors)?;
        weights.check(
            config.class(),
            |name| config.is_left_out(name),
            |outline| config.graph(outline, Dialect::default()).map(drop),
        )?;
        let of_graph = config.clone();
        let network = Network::new("upscaler", engine, true, move |dialect| {
            of_graph.graph(&weights, dialect)
        });
        Ok(Self {
            config,
            network,
            tiling,
        })
    }

    /// Runs the graph for a picture whose sides are multiples of what the network needs.
    fn run(&self, picture: ArrayView4<'_, f32>, stop: &StopToken) -> Result<Array4<f32>, BoxError> {
        let picture = picture.as_standard_layout();
        let (.., height, width) = picture.dim();
        let windows = &self.config.windows;
        let largest = windows.iter().flatten().copied().max().unwrap_or(1);
        let sides =
            [height, width].map(|side| (side / self.config.unshuffle).next_multiple_of(largest));
        let shape = [1, windows.len(), sides[0], sides[1]];
        let parts: Vec<f32> = windows
            .iter()
            .flat_map(|&window| regions(sides, window))
            .collect();
        let values = picture.as_slice().expect("standard layout");
        let mut inputs = vec![(PICTURE, Input::F32(picture.shape(), values))];
        if !windows.is_empty() {
            inputs.push((REGIONS, Input::F32(&shape, &parts)));
        }
        let read = |shape: &[i64], data: &[f32]| {
            let dims: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
            ArrayViewD::from_shape(IxDyn(&dims), data).and_then(|found| {
                let found = found.into_dimensionality::<ndarray::Ix4>()?;
                Ok(found.to_owned())
            })
        };
        Ok(self.network.run(NetworkCall::new(&inputs), stop, read)??)
    }
}

impl PictureUpscaler for OnnxUpscaler {
    fn scale(&self) -> usize {
        self.config.scale
    }

    fn upscale(
        &self,
        picture: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError> {
        let (count, channels, height, width) = picture.dim();
        if [count, channels] != [1, 3] || height == 0 || width == 0 {
            let found = picture.shape();
            return Err(
                format!("the picture has the shape {found:?}, expected [1, 3, h, w]").into(),
            );
        }
        let config = &self.config;
        let mut padded = continued(picture, config.multiple);
        for (mut channel, mean) in padded.axis_iter_mut(Axis(1)).zip(config.mean) {
            channel.mapv_inplace(|value| (value - mean) * config.range);
        }
        let large = self.run(padded.view(), stop)?;
        let (height, width) = (height * config.scale, width * config.scale);
        let (.., high, wide) = large.dim();
        if high < height || wide < width || large.dim().1 != 3 {
            let found = large.shape();
            return Err(
                format!("the network returned {found:?}, expected {height}×{width}").into(),
            );
        }
        let mut large = large.slice(s![.., .., ..height, ..width]).to_owned();
        for (mut channel, mean) in large.axis_iter_mut(Axis(1)).zip(config.mean) {
            channel.mapv_inplace(|value| value / config.range + mean);
        }
        Ok(large)
    }

    fn tiling(&self) -> Tiling {
        self.tiling
    }

    fn report(&self) -> Vec<NetworkReport> {
        self.network.report()
    }
}

/// Returns the network of a file, and where its tensors are.
fn recognised(file: &WeightFile) -> Result<(UpscalerConfig, Vec<Mapped>), Error> {
    let wrong = |problem: String| Error::Checkpoint {
        path: file.path.clone(),
        problem: printable(problem),
    };
    let shapes = file.tensors.iter();
    let shapes: Shapes<'_> = shapes
        .map(|stored| (stored.name.as_str(), stored.shape.as_slice()))
        .collect();
    for (prefix, names) in unwrapped(&shapes) {
        let found = UpscalerConfig::recognise(&names).map_err(|problem| match &*prefix {
            "" => wrong(problem),
            prefix => wrong(format!("{problem}; all names begin with `{prefix}`")),
        })?;
        let Some((config, mut tensors)) = found else {
            continue;
        };
        for tensor in &mut tensors {
            tensor.stored.insert_str(0, &prefix);
        }
        if let Some((name, expected)) = config.assumed() {
            let name = format!("{prefix}{name}");
            if file.values(&name)? != expected {
                return Err(wrong(format!(
                    "tensor `{name}` has other values than in windows that are wider than high"
                )));
            }
        }
        let beside = shapes.len() - tensors.len();
        if beside > 0 {
            let path = printable(file.path.display());
            tracing::warn!("{path}: {beside} tensors outside `{prefix}` are ignored");
        }
        return Ok((config, tensors));
    }
    let kind = source::recognise(file, None, |facts| Ok(checkpoint::kind(facts)))?;
    let what = match kind {
        Kind::Unknown | Kind::Upscaler => "no network that is known".to_owned(),
        kind => kind.to_string(),
    };
    let names = shapes.keys();
    let tensors = match shapes.is_empty() {
        true => "it has no tensors".to_owned(),
        false => format!("its tensors: {}", list(names.take(4))),
    };
    Err(wrong(format!(
        "the file is {what}, expected a network that enlarges pictures; {tensors}"
    )))
}

/// Returns a picture whose sides are multiples of `multiple`. The new rows and columns at the end
/// mirror those before them.
fn continued(picture: ArrayView4<'_, f32>, multiple: usize) -> Array4<f32> {
    let (_, _, height, width) = picture.dim();
    let mirrored = |at: usize, length: usize| {
        let period = (2 * length - 2).max(1);
        let at = at % period;
        at.min(period - at).min(length - 1)
    };
    let [high, wide] = [height, width].map(|side| side.next_multiple_of(multiple));
    Array4::from_shape_fn((1, 3, high, wide), |(_, c, y, x)| {
        picture[[0, c, mirrored(y, height), mirrored(x, width)]]
    })
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn pictures_are_mirrored_at_the_end() {
        let line = array![1.0, 2.0, 3.0];
        let picture = Array4::from_shape_fn((1, 3, 1, 3), |(.., x)| line[x]);
        let wide = continued(picture.view(), 8);
        assert_eq!(wide.dim(), (1, 3, 8, 8));
        let row: Vec<f32> = wide.slice(s![0, 2, 5, ..]).to_vec();
        assert_eq!(row, [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]);
    }
}
