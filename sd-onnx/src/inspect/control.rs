//! Describes ControlNets, T2I-Adapters and IP-Adapters.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sd_text::outside;
use serde::Serialize;

use super::{Inspection, Part, name};
use crate::{
    Error,
    checkpoint::Kind,
    control::{CONTROL_NET, ControlFiles},
    models::{
        control_net::{self, ControlNetConfig},
        image_prompt::ImagePromptConfig,
        t2i_adapter::{self, T2iAdapterConfig},
    },
    weights::WeightFile,
};

/// What a ControlNet, a T2I-Adapter or an IP-Adapter guides and takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ControlFacts {
    /// The family of the models that it guides, such as `SDXL`. `None` if its shapes do not show
    /// it.
    pub family: Option<String>,
    /// The number of channels of its pictures: 3, or 1 for grey ones. `None` for an IP-Adapter,
    /// whose pictures go through CLIP.
    pub channels: Option<usize>,
    /// The number of tokens that an IP-Adapter makes from a picture. `None` for other networks, and
    /// for an IP-Adapter with one token for each patch of CLIP's picture.
    pub tokens: Option<usize>,
    /// The folder of CLIP's vision model that an IP-Adapter needs, if there is one beside it.
    pub encoder: Option<PathBuf>,
}

/// Describes a file of a network that guides a model.
pub(super) fn of_file(file: &WeightFile) -> Result<Inspection, Error> {
    let (files, warnings) = ControlFiles::of_file(file)?;
    let format = file.format.to_string();
    let mut found = of(&file.path, files, format);
    found.metadata = file.metadata.clone();
    found.warnings = warnings;
    Ok(found)
}

/// Describes a folder of a network that guides a model. Returns `None` if it is another folder.
pub(super) fn of_folder(path: &Path) -> Option<Inspection> {
    let class = ControlFiles::class_in(path)?;
    let format = "diffusers folder".to_owned();
    Some(match ControlFiles::open(path, None) {
        Ok(files) => of(path, files, format),
        Err(error) => Inspection {
            format,
            problems: vec![outside::chain(&error)],
            ..empty(path, format!("a folder of {class}"))
        },
    })
}

fn of(path: &Path, files: ControlFiles, format: String) -> Inspection {
    let family = files.family().map(|family| family.name().to_owned());
    let mut facts = ControlFacts {
        family,
        channels: None,
        tokens: None,
        encoder: None,
    };
    let (kind, part, weights, checked) = match files {
        ControlFiles::Net { config, weights } => {
            let checked = ControlNetConfig::new(&config).and_then(|config| {
                facts.channels = Some(config.picture_channels);
                control_net::check(&config, &weights)
            });
            (name(Kind::ControlNet), CONTROL_NET, weights, checked)
        }
        ControlFiles::Adapter { config, weights } => {
            let checked = T2iAdapterConfig::new(&config).and_then(|config| {
                facts.channels = Some(config.picture_channels);
                t2i_adapter::check(&config, &weights)
            });
            (name(Kind::T2iAdapter), "adapter", weights, checked)
        }
        ControlFiles::Image { weights, encoder } => {
            facts.encoder = encoder;
            let projection = ImagePromptConfig::new(path, &weights);
            let kind = projection.as_ref().map(ImagePromptConfig::name);
            let kind = kind.unwrap_or(name(Kind::IpAdapter));
            let checked = projection.map(|projection| facts.tokens = projection.tokens());
            (kind, "ip_adapter", weights, checked)
        }
    };
    let part = Part::of(part, weights.sizes());
    Inspection {
        format,
        memory: Some(4 * part.parameters),
        parts: vec![part],
        control: Some(facts),
        problems: checked
            .err()
            .map(|error| outside::chain(&error))
            .into_iter()
            .collect(),
        ..empty(path, kind.to_owned())
    }
}

/// Returns a description without facts.
fn empty(path: &Path, kind: String) -> Inspection {
    Inspection {
        path: path.to_path_buf(),
        format: String::new(),
        kind,
        prediction: None,
        prediction_because: None,
        class: None,
        parts: Vec::new(),
        memory: None,
        adapter: None,
        control: None,
        metadata: BTreeMap::new(),
        missing: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    }
}
