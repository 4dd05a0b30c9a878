//! A UNet that another tool exported, with the inputs and the output of
//! [`unet`](crate::models::unet).

use std::path::Path;

use sd_core::{Inputs, SizeIds};
use sd_text::outside::{list, printable};

use super::{
    adapter::{Adapter, At, Limits, check_type, dims, int, same_side},
    file::{Node, OnnxFile, Port, Side},
    text::FLOATS,
};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Model, proto::DataType},
    models::unet::input,
};

/// The types that a timestep can have.
const TIMESTEPS: [DataType; 5] = [
    DataType::Float,
    DataType::Float16,
    DataType::Double,
    DataType::Int64,
    DataType::Int32,
];

/// The largest number of upsamplings that are counted. Published UNets have two or three.
const MOST_LEVELS: usize = 6;

/// A UNet and its inputs.
#[derive(Debug)]
pub(crate) struct UnetGraph {
    pub model: Model,
    pub limits: Limits,
    pub inputs: Inputs,
    /// The width of the guidance scale's sinusoidal embedding, in latent consistency models.
    pub guidance_width: Option<usize>,
    /// Height and width of the latents that the model is made for.
    pub sample_size: [usize; 2],
}

/// Reads a UNet's file.
///
/// `config` is the `config.json` beside it, if there is one. `sizes` is the size conditioning to
/// assume if the network takes one and the graph does not fix the number of its values.
pub(crate) fn graph(
    path: &Path,
    config: Option<&Config>,
    sizes: SizeIds,
) -> Result<UnetGraph, Error> {
    let file = OnnxFile::open(path)?;
    let mut unet = Unet {
        graph: Adapter::new(&file),
        limits: Limits::new(&file),
        file: &file,
        config,
    };
    let sample = unet.floats("sample")?;
    let context = unet.floats("encoder_hidden_states")?;
    let output = unet.output()?;
    let channels = unet.size(output, 1, "out_channels", Some(4))?;
    let all = unet.size(sample, 1, "in_channels", Some(channels))?;
    // Besides the latents, inpainting models take a mask and masked latents, and instruct-pix2pix
    // takes the latents of a picture.
    let beside = match all.checked_sub(channels) {
        Some(beside) if beside == 0 || beside == channels || beside == channels + 1 => beside,
        _ => {
            let (double, more) = (2 * channels, 2 * channels + 1);
            return Err(file.wrong(format!(
                "`sample` has {all} channels, expected {channels}, like the output, {double} for \
                 instruct-pix2pix or {more} for inpainting (depth-to-image models and upscalers \
                 are not supported)"
            )));
        }
    };
    let width = unet.size(context, 2, "cross_attention_dim", None)?;
    let mut inputs = Inputs::new(channels, width)
        .extra_channels(beside)
        .patch(patch(&file));

    let sides = dims(&file, sample, 4)?;
    unet.sample(sample, &sides, channels, beside);
    unet.timestep(sample)?;
    let context_sides = dims(&file, context, 3)?;
    unet.plain(context, input::CONTEXT, &context_sides);
    inputs = unet.pooled_and_sizes(inputs, sizes)?;
    let guidance_width = unet.guidance()?;
    inputs = inputs.guidance(guidance_width.is_some());
    unet.graph.feed_return_dict()?;
    let sample_size = unet.sample_size(&sides, &inputs)?;
    let Unet {
        mut graph, limits, ..
    } = unet;
    graph.output("output", &output.name);
    Ok(UnetGraph {
        model: graph.finish()?,
        limits,
        inputs,
        guidance_width,
        sample_size,
    })
}

/// Returns the number that the sides of latents must be multiples of. Exporters write upsampling as
/// doubling, which does not undo the halving of an odd side.
fn patch(file: &OnnxFile) -> usize {
    let doubles = |node: &&Node| match node.op.as_str() {
        "Upsample" => true,
        // A `Resize` with sizes as its last input takes the sizes of the downsampling path.
        "Resize" => node.inputs.get(3).is_none_or(String::is_empty),
        _ => false,
    };
    1 << file.nodes.iter().filter(doubles).count().min(MOST_LEVELS)
}

struct Unet<'f> {
    file: &'f OnnxFile,
    config: Option<&'f Config>,
    graph: Adapter<'f>,
    limits: Limits,
}

impl<'f> Unet<'f> {
    /// Returns an input of the file that has a floating-point type.
    fn floats(&self, name: &str) -> Result<&'f Port, Error> {
        let port = self
            .file
            .input(name)
            .ok_or_else(|| self.file.wrong(format!("the graph has no input `{name}`")))?;
        check_type(self.file, port, &FLOATS)?;
        Ok(port)
    }

    fn output(&self) -> Result<&'f Port, Error> {
        let outputs = &self.file.outputs;
        let known = |port: &&Port| port.name == "out_sample" || port.name == "sample";
        let port = match &outputs[..] {
            [only] => Some(only),
            all => all.iter().find(known),
        };
        let port = port.ok_or_else(|| {
            let names = list(outputs.iter().map(|port| &port.name));
            self.file.wrong(format!(
                "no output is `out_sample`, the prediction; the outputs are {names}"
            ))
        })?;
        check_type(self.file, port, &FLOATS)?;
        Ok(port)
    }

    /// Returns a size that the graph fixes, or else the configuration's `key`. If both exist, they
    /// must agree.
    fn size(
        &self,
        port: &Port,
        place: usize,
        key: &str,
        default: Option<usize>,
    ) -> Result<usize, Error> {
        let configured = match self.config {
            Some(config) if config.value(key).is_some_and(|it| it.is_u64()) => {
                Some(config.usize(key, 0, SIZE)?)
            }
            _ => None,
        };
        match (port.fixed(place), configured) {
            // A projection in front of the network can take another width than its transformers.
            (Some(found), Some(expected)) if found != expected && key != "cross_attention_dim" => {
                Err(self.file.wrong(format!(
                    "`{}` is {}, expected {expected} in dimension {}, the `{key}` of config.json",
                    printable(&port.name),
                    port.shown(),
                    place + 1
                )))
            }
            (Some(size), _) if SIZE.contains(&size) => Ok(size),
            (Some(_), _) => Err(self.file.wrong(format!(
                "`{}` is {}, which is out of range",
                printable(&port.name),
                port.shown()
            ))),
            (None, Some(size)) => Ok(size),
            (None, None) => default.ok_or_else(|| {
                self.file.wrong(format!(
                    "`{}` is {}: the graph does not fix the size of dimension {}, and there is \
                     no `{key}` in a config.json",
                    printable(&port.name),
                    port.shown(),
                    place + 1
                ))
            }),
        }
    }

    /// Adds SDXL's pooled text and sizes, if the network takes them.
    fn pooled_and_sizes(&mut self, mut inputs: Inputs, sizes: SizeIds) -> Result<Inputs, Error> {
        let file = self.file;
        if file.input("text_embeds").is_some() {
            let port = self.floats("text_embeds")?;
            let sides = dims(file, port, 2)?;
            inputs = inputs.pooled(self.pooled_width(port, sizes)?);
            self.plain(port, input::POOLED, &sides);
        }
        if file.input("time_ids").is_some() {
            let port = self.floats("time_ids")?;
            let sides = dims(file, port, 2)?;
            inputs = inputs.sizes(match port.fixed(1) {
                None => sizes,
                Some(6) => SizeIds::Target,
                Some(5) => SizeIds::Score,
                Some(other) => {
                    return Err(file.wrong(format!(
                        "`time_ids` has {other} sizes, expected 6, or 5 for a refiner"
                    )));
                }
            });
            self.plain(port, input::SIZES, &sides);
        }
        Ok(inputs)
    }

    /// Adds the guidance scale of latent consistency models, if the network takes it. Returns the
    /// width of its sinusoidal embedding.
    fn guidance(&mut self) -> Result<Option<usize>, Error> {
        let file = self.file;
        if file.input("timestep_cond").is_none() {
            return Ok(None);
        }
        let port = self.floats("timestep_cond")?;
        let sides = dims(file, port, 2)?;
        let width = self.size(port, 1, "time_cond_proj_dim", None)?;
        if width % 2 != 0 || width < 4 {
            let problem =
                format!("`timestep_cond` is {width} wide, expected an even width of at least 4");
            return Err(file.wrong(problem));
        }
        self.plain(port, input::GUIDANCE, &sides);
        Ok(Some(width))
    }

    /// Returns the width of the pooled text. The configuration gives only its sum with the sizes.
    fn pooled_width(&self, port: &Port, sizes: SizeIds) -> Result<usize, Error> {
        if let Some(width) = port.fixed(1).filter(|width| SIZE.contains(width)) {
            return Ok(width);
        }
        let of = |config: &Config| -> Result<Option<usize>, Error> {
            let all = config.usize("projection_class_embeddings_input_dim", 0, 0..=*SIZE.end())?;
            let each = config.usize("addition_time_embed_dim", 256, SIZE)?;
            Ok(all.checked_sub(each * sizes.count()).filter(|&it| it > 0))
        };
        let width = self.config.map(of).transpose()?.flatten();
        width.ok_or_else(|| {
            self.file.wrong(format!(
                "`{}` is {}: neither the graph nor a config.json gives its width",
                port.name,
                port.shown()
            ))
        })
    }

    /// Adds an input that is passed on unchanged, except for its type.
    fn plain(&mut self, port: &Port, name: &'static str, sides: &[Option<usize>]) {
        self.limits.add(name, sides);
        let value = self.graph.input(name, DataType::Float, sides);
        self.graph.feed(port, &value);
    }

    /// Adds the latents, with the additional channels concatenated.
    fn sample(&mut self, port: &Port, sides: &[Option<usize>], channels: usize, beside: usize) {
        let mut sides = sides.to_vec();
        sides[1] = Some(channels);
        self.limits.add(input::LATENTS, &sides);
        let mut value = self.graph.input(input::LATENTS, DataType::Float, &sides);
        if beside > 0 {
            sides[1] = Some(beside);
            let other = self.graph.input(input::BESIDE, DataType::Float, &sides);
            let both = [&*value, &other];
            value = self
                .graph
                .node(At::Start, "Concat", &both, &[int("axis", 1)]);
        }
        self.graph.feed(port, &value);
    }

    /// Adds the timestep: a single number, in the form that the graph takes.
    fn timestep(&mut self, sample: &Port) -> Result<(), Error> {
        let file = self.file;
        let port = file
            .input("timestep")
            .ok_or_else(|| file.wrong("the graph has no input `timestep`"))?;
        check_type(file, port, &TIMESTEPS)?;
        let graph = &mut self.graph;
        let mut value = graph.input(input::TIMESTEP, DataType::Float, &[Some(1)]);
        if [DataType::Int64, DataType::Int32]
            .iter()
            .any(|&it| it as i32 == port.data_type)
        {
            // Rounds to the nearest integer. A cast alone would truncate.
            let half = graph.numbers(&[0.5], &[1]);
            value = graph.node(At::Start, "Add", &[&value, &half], &[]);
            value = graph.node(At::Start, "Floor", &[&value], &[]);
            tracing::info!(
                file = %printable(file.path.display()),
                "the UNet takes integer timesteps, so fractional ones are rounded"
            );
        }
        let batch = sample.dims.as_ref().and_then(|dims| dims.first());
        match port.dims.as_deref() {
            Some([]) => {
                let scalar = graph.sizes(&[], &[0]);
                value = graph.node(At::Start, "Reshape", &[&value, &scalar], &[]);
            }
            // One timestep for each picture.
            Some([side]) if same_side(Some(side), batch) => {
                let shape = graph.node(At::Start, "Shape", &[input::LATENTS], &[]);
                let first = graph.sizes(&[0], &[1]);
                let count = graph.node(At::Start, "Gather", &[&shape, &first], &[]);
                value = graph.node(At::Start, "Expand", &[&value, &count], &[]);
            }
            Some([Side::Fixed(count)]) => {
                let count = graph.sizes(&[*count as i64], &[1]);
                value = graph.node(At::Start, "Expand", &[&value, &count], &[]);
            }
            Some([Side::Any(_)]) | None => {}
            Some(_) => {
                return Err(file.wrong(format!(
                    "`timestep` is {}, expected a number or a list of numbers",
                    port.shown()
                )));
            }
        }
        graph.feed(port, &value);
        Ok(())
    }

    /// Returns the height and width of the latents: as the graph fixes them, as the configuration
    /// gives them, or the usual ones for such models.
    fn sample_size(&self, sides: &[Option<usize>], inputs: &Inputs) -> Result<[usize; 2], Error> {
        let configured = match self.config {
            Some(config) if config.is_set("sample_size") => {
                Some(config.per_level("sample_size", 64, 2)?)
            }
            _ => None,
        };
        let side = |place: usize| {
            let fixed = sides[2 + place];
            fixed.or(configured.as_ref().map(|sizes| sizes[place]))
        };
        if let (Some(height), Some(width)) = (side(0), side(1)) {
            return Ok([height, width]);
        }
        let usual = if inputs.sizes.is_some() { 128 } else { 64 };
        tracing::info!(
            file = %printable(self.file.path.display()),
            "neither the graph nor a config.json gives the size of the latents: assuming {usual}"
        );
        Ok([usual; 2])
    }
}
