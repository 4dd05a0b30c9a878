//! ONNX graphs that other tools exported: optimum's, and those of diffusers'
//! `OnnxStableDiffusionPipeline`.
//!
//! Such a graph has other inputs and outputs from tool to tool and from year to year. They are read
//! from the file, and the graph is rewritten so that it takes and gives what the graphs of
//! [`models`](crate::models) do. Its operators stay, and so do its weights, as places in the files
//! that they lie in. What a graph asks for and nobody can give is an error.

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

/// The name of a graph's file as all exporters write it.
const USUAL: &str = "model.onnx";
/// The folders of an exported autoencoder.
const DECODER: &str = "vae_decoder";
const ENCODER: &str = "vae_encoder";

/// The graph's file of a component, if that is an exported one: its folder has an ONNX file and no
/// weights that are read otherwise.
///
/// # Errors
/// [`Error::Variants`] when there are several and none has the usual name.
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
                    "several graphs and none is `{USUAL}`: {}",
                    list(names.map(|name| name.display()))
                ),
            ))
        }
    }
}

/// Whether a model's folder has an exported autoencoder, and no other one.
pub(crate) fn has_codec(folder: &Path) -> Result<bool, Error> {
    Ok(!folder.join("vae").is_dir() && graph_in(&folder.join(DECODER))?.is_some())
}

/// The files of a component: its graph, and what its weights lie in.
pub(crate) fn files(graph: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(file::OnnxFile::open(graph)?.files())
}

/// How much the weights of a graph are. None of them is read.
pub(crate) fn outline(graph: &Path) -> Result<Sizes, Error> {
    Ok(file::OnnxFile::open(graph)?.sizes())
}

/// Reads a text model. `pooled` says whether its projected output is needed.
pub(crate) fn text(graph: &Path, pooled: bool) -> Result<TextFile, Error> {
    TextFile::open(graph, config_beside(graph)?, pooled)
}

/// Reads a UNet, with its `config.json` if there is one.
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
    /// Or the folder that it is missing in.
    encoder: Result<PathBuf, PathBuf>,
}

impl Codec {
    /// Finds the autoencoder of a model. `is_xl` chooses the scaling of one that does not say its
    /// own.
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

    /// The decoder's graph, from `latents` to `image`.
    pub fn decoder(&self) -> Result<(Model, Limits), Error> {
        let half = vae::decoder(&self.decoder, &self.config)?;
        Ok((half.model, half.limits))
    }

    /// The encoder's graph, from `image` to `moments`.
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

/// The `config.json` beside a graph, if there is one.
fn config_beside(graph: &Path) -> Result<Option<Config>, Error> {
    let path = graph.with_file_name("config.json");
    path.is_file()
        .then(|| Config::open(&path, MOST_CONFIG))
        .transpose()
}
