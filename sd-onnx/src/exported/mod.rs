//! Loads ONNX graphs that other tools exported: optimum, and diffusers for its
//! `OnnxStableDiffusionPipeline`.
//!
//! The inputs and outputs of such graphs vary from tool to tool and from version to version. They
//! are read from the file, and the graph is rewritten to have the inputs and outputs of the graphs
//! in [`models`](crate::models). Its operators stay. Its weights stay too, as places in their
//! files. An input that this crate cannot provide is an error.

mod adapter;
mod file;
mod flow;
mod layers;
#[cfg(test)]
mod tests;
mod text;
mod unet;
mod vae;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) use adapter::Limits;
use sd_core::SizeIds;
use sd_text::outside::list;
pub(crate) use text::{TextFile, TextGraph};
pub(crate) use unet::UnetGraph;

use crate::{
    Error,
    config::{Config, MOST_CONFIG},
    graph::Model,
    models::vae::VaeConfig,
    weights::Sizes,
};

/// The usual name of a graph's file, which all exporters write.
const USUAL: &str = "model.onnx";
/// The folders of an exported autoencoder.
const DECODER: &str = "vae_decoder";
const ENCODER: &str = "vae_encoder";

/// Returns the graph's file of a component, if the component was exported. Its folder then has an
/// ONNX file, and no weights in another format.
///
/// # Errors
/// [`Error::Graph`] when there are several ONNX files and none has the usual name.
pub(crate) fn graph_in(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let mut graphs = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(None);
    };
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        let extension = path.extension().and_then(|it| it.to_str());
        match extension {
            Some("safetensors" | "bin" | "ckpt" | "pt") => return Ok(None),
            Some("onnx") => graphs.push(path),
            _ => {}
        }
    }
    if let Some(usual) = graphs.iter().position(|path| path.ends_with(USUAL)) {
        return Ok(Some(graphs.swap_remove(usual)));
    }
    graphs.sort();
    match graphs.len() {
        0 | 1 => Ok(graphs.pop()),
        _ => {
            let names = graphs.iter().filter_map(|path| path.file_name());
            Err(Error::graph(
                folder,
                format!(
                    "several graphs, and none is `{USUAL}`: {}",
                    list(names.map(|name| name.display()))
                ),
            ))
        }
    }
}

/// Whether a model's folder has an exported autoencoder and no other.
pub(crate) fn has_codec(folder: &Path) -> Result<bool, Error> {
    Ok(!folder.join("vae").is_dir() && graph_in(&folder.join(DECODER))?.is_some())
}

/// Lists the files of a component: its graph, and the files that hold its weights.
pub(crate) fn files(graph: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(file::OnnxFile::open(graph)?.files())
}

/// Returns the number, sizes and types of a graph's weights, without reading them.
pub(crate) fn outline(graph: &Path) -> Result<Sizes, Error> {
    Ok(file::OnnxFile::open(graph)?.sizes())
}

/// Reads a text model. `pooled` says whether its projected output is needed.
pub(crate) fn text(graph: &Path, pooled: bool) -> Result<TextFile, Error> {
    TextFile::open(graph, config_beside(graph)?, pooled)
}

/// Reads a UNet, and the `config.json` beside it if there is one.
pub(crate) fn unet(graph: &Path, sizes: SizeIds) -> Result<(UnetGraph, Option<Config>), Error> {
    let config = config_beside(graph)?;
    let unet = unet::graph(graph, config.as_ref(), sizes)?;
    Ok((unet, config))
}

/// An exported autoencoder.
#[derive(Debug)]
pub(crate) struct Codec {
    pub config: VaeConfig,
    decoder: PathBuf,
    /// The encoder's graph, or the folder in which it is missing.
    encoder: Result<PathBuf, PathBuf>,
}

impl Codec {
    /// Finds the autoencoder of a model. `is_xl` selects the scaling of an autoencoder whose
    /// configuration does not give it.
    pub fn open(folder: &Path, is_xl: bool) -> Result<Self, Error> {
        let decoder = folder.join(DECODER);
        let Some(decoder) = graph_in(&decoder)? else {
            return Err(Error::graph(&decoder, "no ONNX file in this folder"));
        };
        let encoder = folder.join(ENCODER);
        let encoder = graph_in(&encoder)?.ok_or(encoder);
        let mut config = config_beside(&decoder)?;
        if config.is_none()
            && let Ok(encoder) = &encoder
        {
            config = config_beside(encoder)?;
        }
        Ok(Self {
            config: vae::config(&decoder, config, is_xl)?,
            decoder,
            encoder,
        })
    }

    /// Returns the decoder's graph, from `latents` to `image`.
    pub fn decoder(&self) -> Result<(Model, Limits), Error> {
        let half = vae::decoder(&self.decoder, &self.config)?;
        Ok((half.model, half.limits))
    }

    /// Returns the encoder's graph, from `image` to `moments`.
    pub fn encoder(&self) -> Result<(Model, Limits), Error> {
        match &self.encoder {
            Ok(path) => {
                let half = vae::encoder(path, &self.config)?;
                Ok((half.model, half.limits))
            }
            Err(folder) => Err(Error::graph(
                folder,
                "the model has no encoder: pictures cannot be turned into latents",
            )),
        }
    }
}

/// Reads the `config.json` beside a graph, if there is one.
fn config_beside(graph: &Path) -> Result<Option<Config>, Error> {
    let path = graph.with_file_name("config.json");
    path.is_file()
        .then(|| Config::open(&path, MOST_CONFIG))
        .transpose()
}
